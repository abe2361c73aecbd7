import { once } from 'node:events';
import { createServer as createHttp, type Server } from 'node:http';
import { createServer as createHttps } from 'node:https';
import type { AddressInfo } from 'node:net';

/** How a member is in an answer of `GET /cluster`. */
export interface PatroniMember {
  readonly name?: string;
  readonly role: string;
  readonly state?: string;
  readonly host?: string;
  readonly port?: number;
  readonly timeline?: number;
  readonly tags?: Readonly<Record<string, unknown>>;
}

export interface RestServerOptions {
  /** Certificate and key, for https. */
  readonly tls?: { readonly cert: string; readonly key: string };
  /** `user:password` that is asked for. */
  readonly auth?: string;
}

/** What answers like the REST API of a Patroni; the test says what it knows. */
export class RestServer {
  readonly #server: Server;
  readonly #scheme: string;
  #requests = 0;
  /** The body of `GET /cluster`; undefined for status 503, null for no answer at all. */
  answer: unknown;
  /** The body of `GET /config`. */
  config: unknown = {};

  private constructor(options: RestServerOptions) {
    const { tls, auth } = options;
    const listener: Parameters<typeof createHttp>[1] = (request, response) => {
      this.#requests += 1;
      const wanted = auth && `Basic ${Buffer.from(auth).toString('base64')}`;
      if (wanted !== undefined && request.headers.authorization !== wanted) {
        response.writeHead(401).end();
      } else if (request.url === '/config') {
        response.setHeader('content-type', 'application/json').end(JSON.stringify(this.config));
      } else if (request.url !== '/cluster') {
        response.writeHead(404).end();
      } else if (this.answer === undefined) {
        response.writeHead(503).end('{}');
      } else if (this.answer !== null) {
        response.setHeader('content-type', 'application/json');
        response.end(typeof this.answer === 'string' ? this.answer : JSON.stringify(this.answer));
      }
    };
    this.#server = tls === undefined ? createHttp(listener) : createHttps(tls, listener);
    this.#scheme = tls === undefined ? 'http' : 'https';
  }

  static async start(options: RestServerOptions = {}): Promise<RestServer> {
    const server = new RestServer(options);
    server.#server.listen(0, '127.0.0.1');
    await once(server.#server, 'listening');
    return server;
  }

  get url(): string {
    return `${this.#scheme}://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  /** How often it was asked. */
  get requests(): number {
    return this.#requests;
  }

  set members(members: readonly PatroniMember[]) {
    this.answer = { members };
  }

  /** Idempotent. */
  async stop(): Promise<void> {
    this.#server.closeAllConnections();
    if (!this.#server.listening) return;
    this.#server.close();
    await once(this.#server, 'close');
  }
}
