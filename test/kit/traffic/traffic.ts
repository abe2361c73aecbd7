import { setMaxListeners } from 'node:events';
import { setTimeout as pause } from 'node:timers/promises';
import pg from 'pg';
import type { Connection } from '../../../src/postgres/session.js';
import { Client } from './client.js';
import { Tally, type TrafficReport, type WorkKind } from './report.js';
import { Ids, readerWork, transactionWork, writerWork, type OwnRows, type Work } from './work.js';

export type { Effects, FailedStatement, PerKind, TrafficReport, WorkKind } from './report.js';

export interface TrafficOptions {
  /**
   * Where statements enter: the coordinator, or any node that has `items` of schema.ts. Of a list,
   * each node gets all the clients below.
   */
  readonly connection: Connection | readonly Connection[];
  readonly clients: {
    /** Insert a row of items, then update it: one statement a transaction. */
    readonly writers: number;
    /** Read a row of items that was inserted, through whichever node. */
    readonly readers: number;
    /** Change rows of items and notes and read lookup in transactions of several statements. */
    readonly transactions?: number;
  };
  /**
   * How long a client pauses after a statement or transaction, in milliseconds: evenly spread
   * between 0 and twice this. 0 is a saturated server. There is no pause within a transaction.
   */
  readonly thinkMs: number;
  /**
   * Of how many rows of notes all transactions take one, so that they wait for one another, on a
   * worker and through different entry nodes. By default each client has its own.
   */
  readonly sharedNotes?: number;
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
   * Resolves once `count` further statements or transactions have succeeded.
   *
   * @param options.kind counts only these.
   * @param options.timeoutMs how long it may take, 30 s by default.
   * @throws Error with the failures so far when it takes longer; what made the seeding fail.
   */
  waitForProgress(count: number, options?: { kind?: WorkKind; timeoutMs?: number }): Promise<void>;
  /**
   * Lets every client finish its statement or transaction, then says what happened. Idempotent.
   *
   * @throws what made the seeding fail.
   */
  stop(): Promise<TrafficReport>;
}

/** Rows of a transaction client: enough for its transactions to vary over the shards. */
const ITEMS_OF_CLIENT = 12;
const NOTES_OF_CLIENT = 4;

/**
 * Starts clients, each with a session of its own. One whose session is lost, or whose transaction
 * failed, opens another; what failed is only counted, never tried again.
 *
 * Where there are transactions, their rows are inserted first, through the first entry node; no
 * client begins before they are there. The first progress proves that they are.
 */
export function startTraffic(options: TrafficOptions): Traffic {
  const tally = new Tally();
  const stopping = new AbortController();
  const ids = new Ids(options.firstId ?? 1, options.accepts ?? (() => true));
  const finished = run(options, ids, tally, stopping.signal);
  // Whoever waits or stops is told.
  finished.catch(() => undefined);

  return {
    snapshot: () => tally.report(),
    get blocked() {
      return tally.waiting;
    },
    waitForProgress: (count, { kind, timeoutMs = 30_000 } = {}) =>
      withinBound(tally, Promise.race([tally.further(count, kind), ended(finished)]), timeoutMs),
    stop: async () => {
      stopping.abort();
      await finished;
      return tally.report();
    },
  };
}

/** @throws always, once the traffic has ended: what was waited for does not come any more. */
async function ended(finished: Promise<void>): Promise<void> {
  await finished;
  throw new Error('the traffic was stopped');
}

async function run(
  options: TrafficOptions,
  ids: Ids,
  tally: Tally,
  stopping: AbortSignal,
): Promise<void> {
  // Every client listens while it pauses.
  setMaxListeners(0, stopping);
  const { connection, clients, thinkMs, statementTimeoutMs = 60_000 } = options;
  const entries = isList(connection) ? connection : [connection];
  const [first] = entries;
  if (first === undefined) throw new Error('traffic needs a node to enter through');
  const rows = await seed(first, entries.length * (clients.transactions ?? 0), options, ids, tally);
  const runs = entries.map((entry, index) => {
    const start = (work: Generator<Work, never>) =>
      new Client({ connection: entry, thinkMs, statementTimeoutMs }, tally, stopping).run(work);
    const count = clients.transactions ?? 0;
    return [
      ...Array.from({ length: clients.writers }, () => start(writerWork(ids))),
      ...Array.from({ length: clients.readers }, () => start(readerWork(ids))),
      ...rows.slice(index * count, (index + 1) * count).map((own) => start(transactionWork(own))),
    ];
  });
  await Promise.all(runs.flat());
}

function isList(value: Connection | readonly Connection[]): value is readonly Connection[] {
  return Array.isArray(value);
}

/** Makes the rows of `clients` transaction clients. */
async function seed(
  connection: Connection,
  clients: number,
  options: TrafficOptions,
  ids: Ids,
  tally: Tally,
): Promise<OwnRows[]> {
  if (clients === 0) return [];
  const shared =
    options.sharedNotes === undefined ? undefined : ids.takeSeveral(options.sharedNotes);
  const rows = Array.from({ length: clients }, () => ({
    items: ids.takeSeveral(ITEMS_OF_CLIENT),
    notes: shared ?? ids.takeSeveral(NOTES_OF_CLIENT),
  }));
  const items = rows.flatMap((own) => own.items);
  const notes = shared ?? rows.flatMap((own) => own.notes);
  const session = new pg.Client({ ...connection, application_name: 'traffic' });
  session.on('error', () => undefined);
  try {
    await session.connect();
    await session.query('BEGIN');
    for (const id of items) await session.query('INSERT INTO items VALUES ($1, 0)', [id]);
    for (const id of notes) await session.query('INSERT INTO notes VALUES ($1, 0)', [id]);
    await session.query('COMMIT');
  } finally {
    await session.end().catch(() => undefined);
  }
  for (const id of items) ids.inserted(id);
  tally.seeded({ inserted: items.length, items: 0, notes: 0 });
  return rows;
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
