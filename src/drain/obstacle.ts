import type { LockSession } from './lock-session.js';
import type { Server } from './server.js';

/** A transaction that is in the way for so long is not about to end. */
const PATIENCE_MS = 500;

function listed(described: readonly string[]): string | undefined {
  return described.join(', ') || undefined;
}

const NOBODY: ReadonlyMap<string, string> = new Map();

/** Tells those who are in the way of a lock and do not go on from a crowd in which each does. */
export class Obstacle {
  readonly #server: Server;
  #since = 0;
  #seen = NOBODY;
  #seenAt = 0;

  constructor(server: Server) {
    this.#server = server;
  }

  /**
   * To be called every now and then.
   *
   * @param session what waits longest, if anything waits
   * @returns for people, who has been in its way all the time; undefined as long as that is nobody.
   */
  async look(session: LockSession | undefined): Promise<string | undefined> {
    const waiting = session?.waiting;
    if (!session || !waiting) return undefined;
    const now = performance.now();
    const isNew = waiting.since !== this.#since;
    if (!isNew && now - this.#seenAt < PATIENCE_MS) return undefined;
    // Where nobody can be seen nobody is known to be in the way: the lock may come all the same.
    const blockers = await this.#server.blockersOf(session.pid).catch(() => NOBODY);
    const stuck = isNew ? [] : [...blockers].filter(([transaction]) => this.#seen.has(transaction));
    this.#since = waiting.since;
    this.#seen = blockers;
    this.#seenAt = now;
    return listed(stuck.map(([, described]) => described));
  }

  /** @returns for people, who these are that wait for what is kept; undefined if nobody. */
  async name(pids: readonly number[]): Promise<string | undefined> {
    return listed(await this.#server.describe(pids).catch(() => []));
  }
}
