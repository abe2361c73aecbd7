import { setTimeout as pause } from 'node:timers/promises';
import pg from 'pg';
import type { Connection } from '../../../src/postgres/session.js';
import { describeFailure, isLostSession, type Effects, type Tally } from './report.js';
import type { Statement, Work } from './work.js';

export interface ClientOptions {
  /** The node where its statements enter. */
  readonly connection: Connection;
  readonly thinkMs: number;
  readonly statementTimeoutMs: number;
}

const RECONNECT_PAUSE_MS = 20;
const NOTHING: Effects = { inserted: 0, items: 0, notes: 0 };

/** One client: a session, opened again whenever it is lost. What failed is never tried again. */
export class Client {
  readonly #options: ClientOptions;
  readonly #tally: Tally;
  readonly #stopping: AbortSignal;
  readonly #entry: string;
  #session: pg.Client | undefined;

  constructor(options: ClientOptions, tally: Tally, stopping: AbortSignal) {
    this.#options = options;
    this.#tally = tally;
    this.#stopping = stopping;
    this.#entry = `${options.connection.host}:${options.connection.port}`;
  }

  /** Works until the signal comes; ends what is in flight then. */
  async run(works: Generator<Work, never>): Promise<void> {
    try {
      while (!this.#stopping.aborted) {
        const session = await this.#open();
        if (session === undefined) await this.#pause(RECONNECT_PAUSE_MS);
        else {
          await this.#perform(session, works.next().value);
          // Evenly between 0 and twice the mean: clients with one fixed pause come in step.
          await this.#pause(this.#options.thinkMs * 2 * Math.random());
        }
      }
    } finally {
      await this.#close();
    }
  }

  async #open(): Promise<pg.Client | undefined> {
    if (this.#session !== undefined) return this.#session;
    const { connection, statementTimeoutMs } = this.#options;
    const session = new pg.Client({
      ...connection,
      statement_timeout: statementTimeoutMs,
      connectionTimeoutMillis: 5_000,
      // Not of the controller's sessions, which tests look for by name.
      application_name: 'traffic',
    });
    session.on('error', () => this.#forget(session));
    session.on('end', () => this.#forget(session));
    try {
      await session.connect();
    } catch {
      // The entry node is away. Nothing was sent, so nothing failed.
      await session.end().catch(() => undefined);
      return undefined;
    }
    this.#session = session;
    return session;
  }

  async #perform(session: pg.Client, work: Work): Promise<void> {
    const { kind, effects, done } = work;
    this.#tally.began(kind);
    for (const { text, values } of statementsOf(work)) {
      try {
        await this.#tally.timed(kind, () => session.query(text, [...values]));
      } catch (error) {
        const commits = kind !== 'transaction' || text === COMMIT.text;
        const failure = describeFailure(kind, text, this.#entry, error);
        this.#tally.failed(failure, commits ? effects : NOTHING, error);
        // What is sent to a session that is ending only fails for it. A pool does not keep a session
        // with a broken transaction either.
        if (kind === 'transaction' || isLostSession(error)) {
          this.#forget(session);
          await session.end().catch(() => undefined);
        }
        return;
      }
    }
    done?.();
    this.#tally.succeeded(kind, effects);
  }

  #forget(session: pg.Client): void {
    if (this.#session === session) this.#session = undefined;
  }

  async #pause(milliseconds: number): Promise<void> {
    if (milliseconds <= 0) return;
    await pause(milliseconds, undefined, { signal: this.#stopping }).catch(() => undefined);
  }

  async #close(): Promise<void> {
    const session = this.#session;
    this.#session = undefined;
    await session?.end().catch(() => undefined);
  }
}

const BEGIN: Statement = { text: 'BEGIN', values: [] };
const COMMIT: Statement = { text: 'COMMIT', values: [] };

function statementsOf({ kind, statements }: Work): readonly Statement[] {
  return kind === 'transaction' ? [BEGIN, ...statements, COMMIT] : statements;
}
