import { setTimeout as delay } from 'node:timers/promises';
import pg from 'pg';
import { errorText } from '../src/postgres/session.js';
import type { Server } from '../test/support/servers/index.js';

/** What a client does again and again, on rows of its own. */
export type Work = 'read' | 'write' | 'transaction';

export interface SteadyClientOptions {
  readonly server: Server;
  readonly work: Work;
  /** Ids of rows of `items` that no other client writes to. */
  readonly ids: readonly number[];
  /** Between two pieces of work, in milliseconds. */
  readonly thinkMs: number;
  /** How long a transaction does nothing between its two statements, in milliseconds. */
  readonly lastsMs?: number;
}

/** When a statement was sent and answered, by performance.now(). */
interface Span {
  readonly from: number;
  readonly to: number;
}

/** One client, whose every statement is timed. */
export class SteadyClient {
  readonly #options: SteadyClientOptions;
  readonly #spans: Span[] = [];
  readonly #failures: string[] = [];
  #since: number | undefined;
  #count = 0;
  #isOver = false;
  #running: Promise<void> | undefined;

  constructor(options: SteadyClientOptions) {
    this.#options = options;
  }

  get failures(): readonly string[] {
    return this.#failures;
  }

  /** How many pieces of work it has done. */
  get count(): number {
    return this.#count;
  }

  start(): void {
    this.#running ??= this.#run();
  }

  /** Returns once its present work is done. */
  async stop(): Promise<void> {
    this.#isOver = true;
    await this.#running;
  }

  /**
   * How long its statements waited between two moments, in milliseconds.
   *
   * @param usualMs what a statement takes when it waits for nothing; not counted
   */
  waitedMs(from: number, to: number, usualMs: number): number {
    const open = this.#since === undefined ? [] : [{ from: this.#since, to: performance.now() }];
    return [...this.#spans, ...open]
      .map((span) => Math.min(span.to, to) - Math.max(span.from, from) - usualMs)
      .filter((ms) => ms > 0)
      .reduce((sum, ms) => sum + ms, 0);
  }

  async #run(): Promise<void> {
    let session: pg.Client | undefined;
    while (!this.#isOver) {
      try {
        session ??= await this.#connect();
        await this.#work(session);
        this.#count += 1;
      } catch (error) {
        this.#failures.push(errorText(error));
        await session?.end().catch(() => undefined);
        session = undefined;
      }
      if (this.#options.thinkMs > 0) await delay(this.#options.thinkMs);
    }
    await session?.end().catch(() => undefined);
  }

  async #connect(): Promise<pg.Client> {
    const session = new pg.Client({
      ...this.#options.server.connection,
      application_name: 'bench client',
    });
    // Told by the statement as well.
    session.on('error', () => undefined);
    await session.connect();
    return session;
  }

  async #work(session: pg.Client): Promise<void> {
    const { work, ids, lastsMs = 0 } = this.#options;
    const [first = 0, second = first] = ids;
    switch (work) {
      case 'read':
        return this.#timed(session, 'SELECT v FROM items WHERE id = $1', [first]);
      case 'write':
        return this.#timed(session, UPDATE, [first]);
      case 'transaction':
        await this.#timed(session, 'BEGIN');
        await this.#timed(session, UPDATE, [first]);
        if (lastsMs > 0) await delay(lastsMs);
        await this.#timed(session, UPDATE, [second]);
        await this.#timed(session, 'COMMIT');
    }
  }

  async #timed(session: pg.Client, text: string, values: readonly number[] = []): Promise<void> {
    const from = performance.now();
    this.#since = from;
    try {
      await session.query(text, [...values]);
    } finally {
      this.#since = undefined;
      this.#spans.push({ from, to: performance.now() });
    }
  }
}

/** Waits until each has done so much more work. */
export async function waitForWork(clients: readonly SteadyClient[], count: number): Promise<void> {
  const goals = clients.map((client) => client.count + count);
  const until = performance.now() + 30_000;
  while (clients.some((client, index) => client.count < (goals[index] ?? 0))) {
    if (performance.now() > until) {
      const failures = clients.flatMap((client) => client.failures);
      throw new Error(`clients do not get on: ${failures.at(-1) ?? 'they wait'}`);
    }
    await delay(5);
  }
}

const UPDATE = 'UPDATE items SET v = v + 1 WHERE id = $1';
