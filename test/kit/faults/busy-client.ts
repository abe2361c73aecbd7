import { setTimeout as delay } from 'node:timers/promises';
import pg from 'pg';
import { waitFor, type Server } from '../servers/index.js';

/** One statement of a transaction that is repeated. */
export type BusyStatement = readonly [text: string, values?: readonly unknown[]];

/** A client that repeats a transaction in one session until it is stopped. */
export class BusyClient {
  readonly #session: pg.Client;
  readonly #statements: readonly BusyStatement[];
  readonly #thinkMs: number;
  readonly #durations: number[] = [];
  readonly #done: Promise<void>;
  #stopping = false;
  #rounds = 0;
  #sentAt: number | undefined;
  #failure: Error | undefined;

  private constructor(session: pg.Client, statements: readonly BusyStatement[], thinkMs: number) {
    this.#session = session;
    this.#statements = statements;
    this.#thinkMs = thinkMs;
    session.on('error', (error) => (this.#failure ??= error));
    this.#done = this.#run();
  }

  /**
   * @param statements of one transaction; a single one is sent without BEGIN and COMMIT.
   * @param thinkMs how long it pauses after each, in milliseconds
   */
  static async start(
    server: Server,
    statements: readonly BusyStatement[],
    thinkMs = 0,
  ): Promise<BusyClient> {
    const session = new pg.Client({ ...server.connection, application_name: 'shop' });
    await session.connect();
    return new BusyClient(session, statements, thinkMs);
  }

  /** The first statement that failed, or the loss of the session; it has worked no further. */
  get failure(): Error | undefined {
    return this.#failure;
  }

  /** How long the longest statement so far has taken, in milliseconds. */
  get longestMs(): number {
    return Math.max(0, ...this.#durations);
  }

  /** Resolves once so many further transactions have been committed. */
  async progress(count: number): Promise<void> {
    const target = this.#rounds + count;
    await waitFor(`a client to commit ${count} transactions`, () =>
      Promise.resolve(this.#failure !== undefined || this.#rounds >= target),
    );
  }

  /**
   * Starts to add up for how long statements take beyond `usualMs`, the one in flight included.
   *
   * @returns the sum so far, in milliseconds
   */
  measureWaits(usualMs: number): () => number {
    const first = this.#durations.length;
    return () => {
      const inFlight = this.#sentAt === undefined ? 0 : performance.now() - this.#sentAt;
      return [...this.#durations.slice(first), inFlight].reduce(
        (sum, ms) => sum + Math.max(0, ms - usualMs),
        0,
      );
    };
  }

  /** Lets it finish its transaction, and ends its session. Idempotent. */
  async stop(): Promise<void> {
    this.#stopping = true;
    await this.#done;
    await this.#session.end().catch(() => undefined);
  }

  async #run(): Promise<void> {
    const isTransaction = this.#statements.length > 1;
    const statements: readonly BusyStatement[] = isTransaction
      ? [['BEGIN'], ...this.#statements, ['COMMIT']]
      : this.#statements;
    try {
      while (!this.#stopping) {
        for (const [text, values = []] of statements) await this.#send(text, values);
        this.#rounds += 1;
        if (this.#thinkMs > 0) await delay(this.#thinkMs);
      }
    } catch (error) {
      this.#failure ??= error as Error;
    }
  }

  async #send(text: string, values: readonly unknown[]): Promise<void> {
    const sentAt = performance.now();
    this.#sentAt = sentAt;
    try {
      await this.#session.query(text, [...values]);
    } finally {
      this.#durations.push(performance.now() - sentAt);
      this.#sentAt = undefined;
    }
  }
}
