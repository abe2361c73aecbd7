import { Socket } from 'node:net';
import type { Duplex } from 'node:stream';
import type pg from 'pg';
import { within } from '../wait.js';

/** How long a peer may take to say goodbye, in milliseconds. One that has vanished never does. */
export const CLOSE_MS = 1_000;

/** Closes a session: asks the server first, and destroys the socket when that takes too long. Never throws. */
export async function closeSession(client: pg.Client, ms = CLOSE_MS): Promise<void> {
  try {
    await within(
      ms,
      client.end().catch(() => undefined),
      undefined,
    );
  } finally {
    client.connection.stream.destroy();
  }
}

/** Sockets of sessions that another library opens, so that they can be destroyed whatever it waits for. */
export class Sockets {
  readonly #create: () => Duplex;
  readonly #open = new Set<Duplex>();

  /** @param config of the sessions, whose own stream may encrypt */
  constructor({ stream }: Pick<pg.ClientConfig, 'stream'>) {
    this.#create = () => stream?.() ?? new Socket();
  }

  /** For `stream` in the configuration of a node-postgres client. */
  readonly create = (): Duplex => {
    const socket = this.#create();
    this.#open.add(socket);
    socket.once('close', () => this.#open.delete(socket));
    return socket;
  };

  /** Resolves once all of them are closed, by themselves within `ms` or else destroyed. */
  async close(ms: number): Promise<void> {
    const closed = [...this.#open].map(
      (socket) => new Promise<void>((resolve) => void socket.once('close', () => resolve())),
    );
    await within(ms, Promise.all(closed), undefined);
    this.destroy();
  }

  destroy(): void {
    for (const socket of this.#open) socket.destroy();
  }
}
