import { setTimeout as delay } from 'node:timers/promises';
import type { Client } from 'pg';
import type { Server } from '../test/kit/servers/index.js';

/** One statement of a client; times by performance.now(). */
export interface Lap {
  /** `host:port` of the node where it entered. */
  readonly entry: string;
  readonly kind: 'read' | 'write';
  readonly sentAt: number;
  readonly answeredAt: number;
  readonly ok: boolean;
}

const TEXTS = {
  read: 'SELECT * FROM items WHERE id = $1',
  write: 'UPDATE items SET v = v + 1 WHERE id = $1',
} as const;

/**
 * Clients of single statements that note the time of each one; the traffic of the tests only counts.
 * Every client has a row of its own, so that none waits for another. What fails is not tried again.
 */
export class Stopwatch {
  readonly #running: readonly Promise<void>[];
  readonly #stopping: AbortController;
  readonly #laps: Lap[];

  private constructor(running: readonly Promise<void>[], stopping: AbortController, laps: Lap[]) {
    this.#running = running;
    this.#stopping = stopping;
    this.#laps = laps;
  }

  /**
   * @param keys one row of items for each client of a node; they must be there
   * @param thinkMs how long a client pauses on average, evenly spread between 0 and twice this
   */
  static async start(
    entries: readonly Server[],
    keys: readonly number[],
    thinkMs: number,
  ): Promise<Stopwatch> {
    const stopping = new AbortController();
    const laps: Lap[] = [];
    const running: Promise<void>[] = [];
    for (const entry of entries) {
      for (const [index, key] of keys.entries()) {
        const kind = index % 2 === 0 ? 'write' : 'read';
        const session = await entry.connect('bench');
        const client = { entry: entry.address, kind, session, key } as const;
        running.push(run(client, laps, thinkMs, stopping.signal));
      }
    }
    return new Stopwatch(running, stopping, laps);
  }

  /** The statements answered since the last call, in the order of the answers. */
  take(): Lap[] {
    return this.#laps.splice(0);
  }

  async stop(): Promise<void> {
    this.#stopping.abort();
    await Promise.all(this.#running);
  }
}

interface TimedClient {
  readonly entry: string;
  readonly kind: Lap['kind'];
  readonly session: Client;
  readonly key: number;
}

async function run(
  { entry, kind, session, key }: TimedClient,
  laps: Lap[],
  thinkMs: number,
  stopping: AbortSignal,
): Promise<void> {
  // A session of an entry node outlives the switchover of another group.
  session.on('error', () => undefined);
  while (!stopping.aborted) {
    const sentAt = performance.now();
    const ok = await session.query(TEXTS[kind], [key]).then(
      () => true,
      () => false,
    );
    laps.push({ entry, kind, sentAt, answeredAt: performance.now(), ok });
    await delay(thinkMs * 2 * Math.random());
  }
  await session.end();
}

/** What to add to performance.now() to get milliseconds since 1970: exact when Date.now() ticks. */
export function epochOffset(): number {
  const before = Date.now();
  let now = before;
  while (now === before) now = Date.now();
  return now - performance.now();
}
