import { createServer, type Server } from 'node:net';

export const LOOPBACK = '127.0.0.1';

// Below the ephemeral ranges of Linux and macOS: there an outgoing connection could take a server's
// port while that server is stopped.
const FIRST_PORT = 20_000;
const LAST_PORT = 31_998;

/**
 * Gives out ports that no other process with an allocator of this kind gets.
 *
 * Servers get even ports. The odd port after each is kept listening by us for as long as the even
 * one is given out: a lock that the kernel frees when we die, and that needs no files.
 */
export class PortAllocator {
  readonly #locks = new Map<number, Server>();

  /** A free port of the loopback address; ours until `release`. */
  async allocate(): Promise<number> {
    const count = (LAST_PORT - FIRST_PORT) / 2 + 1;
    const start = Math.floor(Math.random() * count);
    for (let tried = 0; tried < count; tried++) {
      const port = FIRST_PORT + ((start + tried) % count) * 2;
      if (this.#locks.has(port)) continue;
      const lock = await listen(port + 1);
      if (lock === undefined) continue;
      const probe = await listen(port);
      if (probe === undefined) {
        await close(lock);
        continue;
      }
      await close(probe);
      lock.unref();
      this.#locks.set(port, lock);
      return port;
    }
    throw new Error(`no free port between ${FIRST_PORT} and ${LAST_PORT} on ${LOOPBACK}`);
  }

  async release(port: number): Promise<void> {
    const lock = this.#locks.get(port);
    this.#locks.delete(port);
    if (lock !== undefined) await close(lock);
  }

  async releaseAll(): Promise<void> {
    await Promise.all([...this.#locks.keys()].map((port) => this.release(port)));
  }
}

/** Undefined when the port is taken. */
async function listen(port: number): Promise<Server | undefined> {
  const server = createServer((socket) => socket.destroy());
  return new Promise((resolve) => {
    server.once('error', () => resolve(undefined));
    server.listen({ port, host: LOOPBACK, exclusive: true }, () => resolve(server));
  });
}

async function close(server: Server): Promise<void> {
  await new Promise((resolve) => server.close(resolve));
}
