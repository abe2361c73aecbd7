import { setTimeout as delay } from 'node:timers/promises';
import type { Pool } from 'pg';
import type { Settings } from '../config/settings.js';
import { linkSignals } from '../wait.js';
import type { Logger } from '../logger.js';
import { createPool, type PoolOptions } from '../postgres/pool.js';
import type { Queryable } from '../postgres/queryable.js';
import type { Attempt } from '../tasks/finish.js';
import { Loop } from '../loop.js';
import { registerDatabases } from './outbox.js';
import { OtherDatabase } from './other-database.js';
import { judge, lookHere, markHeld } from './waiting.js';

interface OtherDatabasesOptions extends Pick<PoolOptions, 'identity' | 'onOtherServer'> {
  /** Sessions in this database. */
  readonly db: Queryable;
  readonly settings: Pick<Settings, 'connection' | 'schema' | 'otherDatabases' | 'pollMs'>;
  readonly logger: Logger;
}

/** A report that is about to be acknowledged: its group's traffic waits here. */
export interface HeldReport extends Attempt {
  readonly groupid: number;
  readonly cooldownMs: number;
  /** Whether it still does. */
  readonly isHeld: () => boolean;
}

/** One statement takes milliseconds; a server that is slower is as good as unreachable. */
const STATEMENT_MS = 5_000;
/** A lock that another session keeps for longer is not waited for: the hold here would wait with it. */
const LOCK_MS = 250;
/** When reports of a group are forwarded again whose reporters were busy there. */
const BUSY_MS = 50;
/** At first; then rarer, as each look reads the locks of the whole server. */
const LOOK_MS = 5;
const LOOK_MOST_MS = 50;
/** What another database may take beyond its cooldown: as another node of one hold. */
const LATE_MS = 2_000;
/** Of the time that the report has left: the client that waits for its acknowledgement must still be there. */
const MOST_OF_REST = 0.75;

/**
 * The other Citus databases on the same nodes. Reports into this one are forwarded there, in the order of
 * each group and through any crash: what is to be forwarded stands in a table until it is.
 */
export class OtherDatabases {
  readonly #options: OtherDatabasesOptions;
  readonly #pools: readonly Pool[];
  readonly #others: readonly OtherDatabase[];
  readonly #abort = new AbortController();
  /** One each: a slow one delays no other. */
  readonly #loops: readonly Loop[];
  #isStarted = false;

  constructor(options: OtherDatabasesOptions) {
    const { settings, logger, db } = options;
    this.#options = options;
    this.#pools = settings.otherDatabases.map((database) => poolFor(database, options));
    this.#others = settings.otherDatabases.map((database, index) => {
      const pool = this.#pools[index];
      if (pool === undefined) throw new Error('a database without sessions');
      return new OtherDatabase({
        ...{ database, pool, db, schema: settings.schema },
        onForwarded: ({ groupid, id }) =>
          logger.debug({ groupid, entry: id, otherDatabase: database }, 'report forwarded'),
        onTrouble: (name, text, error) => {
          logger.warn(
            { err: error, otherDatabase: name },
            `reports cannot be forwarded to database ${name}: ${text}; it is tried again`,
          );
        },
      });
    });
    this.#loops = this.#others.map(
      (other, index) =>
        new Loop({
          intervalMs: settings.pollMs,
          signal: this.#abort.signal,
          work: async (signal) => {
            if (!(await other.forward(signal)) || signal.aborted) return;
            await delay(BUSY_MS, undefined, { signal }).catch(() => undefined);
            this.#loops[index]?.wake();
          },
        }),
    );
  }

  /** Sessions in each of them. */
  get databases(): readonly { readonly database: string; readonly db: Queryable }[] {
    return this.#others;
  }

  /** From now on each report into this database is forwarded to all. Idempotent. */
  async start(): Promise<void> {
    await registerDatabases(this.#options.db, this.#options.settings.otherDatabases);
    for (const loop of this.#loops) loop.start();
    this.#isStarted = true;
  }

  get isStarted(): boolean {
    return this.#isStarted;
  }

  /** Something may have been reported. */
  wake(): void {
    for (const loop of this.#loops) loop.wake();
  }

  async stop(): Promise<void> {
    this.#abort.abort(new Error('the controller is to stop'));
    await Promise.all(this.#loops.map((loop) => loop.stop()));
    await Promise.all(this.#pools.map((pool) => pool.end()));
  }

  /**
   * Waits until the group's traffic waits in every other database as well: not longer than a hold may
   * take to open there or the report allows, nor once another event of the group has been reported, or
   * the traffic here waits no more.
   *
   * @returns a sentence that names where it does not, or null.
   */
  async follow(report: HeldReport, signal: AbortSignal): Promise<string | null> {
    if (this.#others.length === 0) return null;
    const remainingMs = await markHeld(this.#options.db, report);
    if (remainingMs === undefined) return null;
    this.wake();
    const began = performance.now();
    const mostMs = Math.min(2 * report.cooldownMs + LATE_MS, MOST_OF_REST * remainingMs);
    const over = linkSignals([signal, this.#abort.signal]);
    try {
      return await this.#followUntil(report, mostMs, began, over.signal);
    } finally {
      over.release();
    }
  }

  async #followUntil(
    report: HeldReport,
    mostMs: number,
    began: number,
    over: AbortSignal,
  ): Promise<string | null> {
    for (;;) {
      const waitedMs = performance.now() - began;
      const here = await lookHere(this.#options.db, report.id);
      const looks = this.#others.map(async (other) => ({
        database: other.database,
        answer: await this.#lookAt(other, report, !here.unsent.includes(other.database)),
      }));
      const seen = await Promise.all(looks);
      if (!report.isHeld()) return null;
      if (here.hurried || waitedMs >= mostMs || seen.every(({ answer }) => answer !== undefined)) {
        const late = here.hurried
          ? 'another report came first'
          : 'its locks could not be had in time';
        const reasons = seen.flatMap(({ database, answer = late }) =>
          answer === null ? [] : [`in database ${database}: ${answer}`],
        );
        return reasons.join('; ') || null;
      }
      const pauseMs = Math.min(LOOK_MS + waitedMs / 20, LOOK_MOST_MS);
      await delay(pauseMs, undefined, { signal: over });
    }
  }

  async #lookAt(
    other: OtherDatabase,
    { id, groupid }: HeldReport,
    forwarded: boolean,
  ): Promise<string | null | undefined> {
    const { unledMs } = other;
    if (!forwarded) {
      return judge({ forwarded, unledMs, failure: other.failureOf(groupid), copy: undefined });
    }
    const origin = this.#options.settings.connection.database ?? '';
    try {
      const copy = await other.look({ origin, id, groupid });
      return judge({ forwarded, unledMs: other.unledMs, failure: undefined, copy });
    } catch (error) {
      return other.describe(error);
    }
  }
}

function poolFor(
  database: string,
  { settings, logger, identity, onOtherServer }: OtherDatabasesOptions,
): Pool {
  return createPool(
    { ...settings.connection, database },
    {
      schema: settings.schema,
      purpose: 'other database',
      max: 4,
      statementTimeoutMs: STATEMENT_MS,
      lockTimeoutMs: LOCK_MS,
      ...(identity && { identity }),
      ...(onOtherServer && { onOtherServer }),
      onIdleError: (error) => logger.debug({ err: error, database }, 'an idle session was lost'),
    },
  );
}
