import { once } from 'node:events';
import { createServer, connect, type AddressInfo, type Server, type Socket } from 'node:net';

/** The two ends of one connection; a deaf one stays open and loses what is sent. */
interface Link {
  readonly near: Socket;
  readonly far: Socket;
  /** The first bytes of the client: PostgreSQL's startup packet, with the application_name. */
  startup: string;
  deaf: boolean;
}

interface Target {
  readonly host: string;
  readonly port: number;
}

/**
 * A TCP proxy in front of a server, to make connections half-open: nobody closes them, and what is
 * sent never arrives.
 */
export class FaultProxy {
  readonly #server: Server;
  readonly #links = new Set<Link>();
  /** Connections that never reach the server. */
  readonly #unheard = new Set<Socket>();
  #target: Target;
  #deafToNew = false;
  #connections = 0;

  private constructor(server: Server, target: Target) {
    this.#server = server;
    this.#target = target;
  }

  /** Listens on a free port of the loopback address. */
  static async start(target: Target): Promise<FaultProxy> {
    const server = createServer();
    const proxy = new FaultProxy(server, target);
    server.on('connection', (near) => proxy.#take(near));
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    return proxy;
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port;
  }

  /** How many there have been since the start. */
  get connections(): number {
    return this.#connections;
  }

  /** An address that moves: new connections lead to another server, open ones stay with the old. */
  leadTo(target: Target): void {
    this.#target = target;
  }

  /** From now on loses what is sent on every connection, new ones included. */
  swallowAll(): void {
    this.#deafToNew = true;
    for (const link of this.#links) link.deaf = true;
  }

  /** From now on loses what is sent on the connections that are open; new ones are as ever. */
  swallowOpen(): void {
    for (const link of this.#links) link.deaf = true;
  }

  /**
   * Loses what is sent on the open connections of one application_name; new ones are as ever.
   *
   * @returns how many there were.
   */
  swallow(applicationName: string): number {
    const links = [...this.#links].filter(({ startup }) => startup.includes(applicationName));
    for (const link of links) link.deaf = true;
    return links.length;
  }

  /** Cuts the connections that are open; new ones are as ever, also after `swallowAll`. */
  cut(): void {
    this.#deafToNew = false;
    for (const { near, far } of this.#links) {
      near.destroy();
      far.destroy();
    }
    this.#links.clear();
    for (const near of this.#unheard) near.destroy();
    this.#unheard.clear();
  }

  /** Cuts all connections and listens no more. Idempotent. */
  async stop(): Promise<void> {
    this.cut();
    if (!this.#server.listening) return;
    this.#server.close();
    await once(this.#server, 'close');
  }

  #take(near: Socket): void {
    this.#connections += 1;
    if (!this.#deafToNew) {
      this.#join(near, connect(this.#target.port, this.#target.host));
      return;
    }
    // The server must not see it: PostgreSQL does not stop before a connection that says nothing is given up,
    // which takes authentication_timeout.
    this.#unheard.add(near);
    near.on('error', () => undefined);
    near.on('close', () => this.#unheard.delete(near));
    near.resume();
  }

  #join(near: Socket, far: Socket): void {
    const link: Link = { near, far, startup: '', deaf: false };
    this.#links.add(link);
    near.on('data', (chunk: Buffer) => {
      // A client may first ask for TLS, in a packet of this length.
      if (link.startup === '' && chunk.length > 8) link.startup = chunk.toString('latin1');
    });
    this.#forward(link, near, far);
    this.#forward(link, far, near);
  }

  #forward(link: Link, from: Socket, to: Socket): void {
    from.on('data', (chunk: Buffer) => {
      if (!link.deaf) to.write(chunk);
    });
    from.on('close', () => {
      if (!link.deaf) to.destroy();
      if (to.destroyed) this.#links.delete(link);
    });
    from.on('error', () => undefined);
  }
}
