import { setMaxListeners } from 'node:events';
import { setTimeout as pause } from 'node:timers/promises';
import pg from 'pg';
import type { Connection } from '../../../src/postgres/session.js';
import { isLostSession, Tally, type StatementKind, type TrafficReport } from './report.js';

export type { FailedStatement, PerKind, StatementKind, TrafficReport } from './report.js';

export interface TrafficOptions {
  /** The coordinator, where `items` of schema.ts is. */
  readonly connection: Connection;
  readonly clients: { readonly writers: number; readonly readers: number };
  /** The pause of a client between two statements, in milliseconds; 0 for none. */
  readonly thinkMs: number;
  /** The first id inserted, where tests share a table. */
  readonly firstId?: number;
  /** After how long a statement fails, in milliseconds; by default 60 s, longer than any hold. */
  readonly statementTimeoutMs?: number;
  /** Inserts only such ids, for traffic on one group alone. */
  readonly accepts?: (id: number) => boolean;
}

export interface Traffic {
  /** What has happened so far. */
  snapshot(): TrafficReport;
  /** Statements in flight: while traffic waits, every client has one. */
  readonly blocked: number;
  /**
   * Resolves once `count` further statements have succeeded.
   *
   * @param options.kind counts only these.
   * @param options.timeoutMs how long it may take, 30 s by default.
   * @throws Error with the failures so far when it takes longer.
   */
  waitForProgress(
    count: number,
    options?: { kind?: StatementKind; timeoutMs?: number },
  ): Promise<void>;
  /** Lets every client finish its statement, then says what happened. Idempotent. */
  stop(): Promise<TrafficReport>;
}

const INSERT = 'INSERT INTO items VALUES ($1, $2)';
const UPDATE = 'UPDATE items SET v = v + 1 WHERE id = $1';
const SELECT = 'SELECT * FROM items WHERE id = $1';

const RECONNECT_PAUSE_MS = 20;

/**
 * Starts clients on `items`, each with a session of its own and one statement a transaction. Writers
 * insert a row and update it in turn; readers read rows inserted. A client whose session is lost
 * opens another; what failed is only counted, never tried again.
 */
export function startTraffic(options: TrafficOptions): Traffic {
  const tally = new Tally();
  const stopping = new AbortController();
  // Every client listens while it pauses.
  setMaxListeners(0, stopping.signal);
  const ids = new Ids(options.firstId ?? 1, options.accepts ?? (() => true));
  const { writers, readers } = options.clients;
  const clients = [
    ...Array.from({ length: writers }, () => new Client(options, tally, stopping.signal)),
    ...Array.from({ length: readers }, () => new Client(options, tally, stopping.signal)),
  ];
  const finished = Promise.all(
    clients.map((client, index) =>
      client.run(index < writers ? writerStatements(ids) : readerStatements(ids)),
    ),
  );

  return {
    snapshot: () => tally.report(),
    get blocked() {
      const { inFlight } = tally.report();
      return inFlight.write + inFlight.read;
    },
    waitForProgress: (count, { kind, timeoutMs = 30_000 } = {}) =>
      withinBound(tally, tally.further(count, kind), timeoutMs),
    stop: async () => {
      stopping.abort();
      await finished;
      return tally.report();
    },
  };
}

interface Statement {
  readonly kind: StatementKind;
  readonly text: string;
  readonly values: readonly number[];
  /** Called once the statement has succeeded. */
  readonly done: () => void;
}

/** Hands out ids to insert, and remembers those that are there. */
class Ids {
  readonly #accepts: (id: number) => boolean;
  readonly #inserted: number[] = [];
  #next: number;

  constructor(first: number, accepts: (id: number) => boolean) {
    this.#next = first;
    this.#accepts = accepts;
  }

  take(): number {
    while (!this.#accepts(this.#next)) this.#next += 1;
    return this.#next++;
  }

  inserted(id: number): void {
    this.#inserted.push(id);
  }

  /** An id inserted before, or one that is not there while none is. */
  any(): number {
    return this.#inserted[Math.floor(Math.random() * this.#inserted.length)] ?? this.#next;
  }
}

/** A row inserted is then updated by the same client, so that no two wait for each other's row. */
function* writerStatements(ids: Ids): Generator<Statement, never> {
  let unchanged: number[] = [];
  for (;;) {
    const id = ids.take();
    const done = () => {
      ids.inserted(id);
      unchanged.push(id);
    };
    yield { kind: 'write', text: INSERT, values: [id, 0], done };
    for (const row of unchanged)
      yield { kind: 'write', text: UPDATE, values: [row], done: nothing };
    unchanged = [];
  }
}

function* readerStatements(ids: Ids): Generator<Statement, never> {
  for (;;) yield { kind: 'read', text: SELECT, values: [ids.any()], done: nothing };
}

const nothing = () => undefined;

/** One client: a session, opened again whenever it is lost. */
class Client {
  readonly #options: TrafficOptions;
  readonly #tally: Tally;
  readonly #stopping: AbortSignal;
  #session: pg.Client | undefined;

  constructor(options: TrafficOptions, tally: Tally, stopping: AbortSignal) {
    this.#options = options;
    this.#tally = tally;
    this.#stopping = stopping;
  }

  async run(statements: Generator<Statement, never>): Promise<void> {
    try {
      while (!this.#stopping.aborted) {
        const session = await this.#open();
        if (session === undefined) await this.#pause(RECONNECT_PAUSE_MS);
        else {
          await this.#send(session, statements.next().value);
          if (this.#options.thinkMs > 0) await this.#pause(this.#options.thinkMs);
        }
      }
    } finally {
      await this.#close();
    }
  }

  async #open(): Promise<pg.Client | undefined> {
    if (this.#session !== undefined) return this.#session;
    const { connection, statementTimeoutMs = 60_000 } = this.#options;
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
      // The coordinator is away. Nothing was sent, so nothing failed.
      await session.end().catch(() => undefined);
      return undefined;
    }
    this.#session = session;
    return session;
  }

  async #send(session: pg.Client, { kind, text, values, done }: Statement): Promise<void> {
    const sentAt = performance.now();
    this.#tally.sending(kind);
    try {
      await session.query(text, [...values]);
      done();
      this.#tally.succeeded(kind, performance.now() - sentAt, text === INSERT ? 1 : 0);
    } catch (error) {
      this.#tally.failed(kind, text, performance.now() - sentAt, error);
      // What is sent to a session that is ending only fails for it.
      if (isLostSession(error)) {
        this.#forget(session);
        await session.end().catch(() => undefined);
      }
    }
  }

  #forget(session: pg.Client): void {
    if (this.#session === session) this.#session = undefined;
  }

  async #pause(milliseconds: number): Promise<void> {
    await pause(milliseconds, undefined, { signal: this.#stopping }).catch(() => undefined);
  }

  async #close(): Promise<void> {
    const session = this.#session;
    this.#session = undefined;
    await session?.end().catch(() => undefined);
  }
}

async function withinBound(
  tally: Tally,
  progress: Promise<void>,
  timeoutMs: number,
): Promise<void> {
  const timer = new AbortController();
  const late = pause(timeoutMs, undefined, { signal: timer.signal }).then(
    () => {
      const report = JSON.stringify(tally.report(), null, 2);
      throw new Error(`the traffic made too little progress in ${timeoutMs} ms: ${report}`);
    },
    () => undefined,
  );
  try {
    await Promise.race([progress, late]);
  } finally {
    timer.abort();
  }
}
