import { setTimeout as delay } from 'node:timers/promises';
import type { Pool } from 'pg';
import type { Queryable } from '../postgres/queries.js';
import { errorText } from '../postgres/session.js';
import { isSessionLost, sqlState } from '../postgres/sqlstate.js';
import type { Settings } from '../config/settings.js';
import { linkSignals, Loop } from '../wait.js';
import type { Logger } from '../logger.js';
import { createPool, type PoolOptions } from '../postgres/pool.js';
import type { Attempt } from '../tasks/finish.js';
import { type CopyState, lookThere, judge, lookHere, markHeld } from './waiting.js';

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

/** Entries that are read at once. */
const BATCH = 100;
const RETRY_FIRST_MS = 1_000;
const RETRY_MOST_MS = 60_000;

interface OtherDatabaseOptions {
  readonly database: string;
  /** The same there as here. */
  readonly schema: string;
  /** Sessions in it. */
  readonly pool: Pool;
  /** Sessions in this database, where its outbox is. */
  readonly db: Queryable;
  readonly onForwarded: (entry: Entry) => void;
  readonly onTrouble: (database: string, text: string, error: unknown) => void;
}

/** Another Citus database on the same nodes, to which every report into this one is forwarded. */
export class OtherDatabase {
  readonly database: string;
  readonly #options: OtherDatabaseOptions;
  #failure: string | undefined;
  /** Since when no controller has been active there, as performance.now() has it. */
  #unledSince: number | undefined;
  /** When it is asked again although there is nothing to forward, after it has failed. */
  #lookAt = 0;
  #lookDelayMs = 0;
  /** What it answered to the reports of one group, while it takes those of others. */
  readonly #refusals = new Map<number, string>();

  constructor(options: OtherDatabaseOptions) {
    this.database = options.database;
    this.#options = options;
  }

  /** For statements in it. */
  get db(): Queryable {
    return this.#options.pool;
  }

  /** For how long no controller has been active there, in milliseconds; 0 when one is. */
  get unledMs(): number {
    return this.#unledSince === undefined ? 0 : performance.now() - this.#unledSince;
  }

  /** What it says of a report: of one that was never made, only whether a controller is active. */
  async look(report: {
    origin: string;
    id: string;
    groupid: number;
  }): Promise<CopyState | undefined> {
    const copy = await lookThere(this.#options.pool, report);
    if (copy?.led === true) this.#unledSince = undefined;
    else this.#unledSince ??= performance.now();
    return copy;
  }

  /** What an error of a session in it means. */
  async describe(error: unknown): Promise<string> {
    return describeTrouble(this.#options.pool, this.#options.schema, error);
  }

  /** Why reports of a group could not be forwarded the last time; undefined when they could. */
  failureOf(groupid: number): string | undefined {
    return this.#failure ?? this.#refusals.get(groupid);
  }

  /**
   * Forwards what is to be forwarded, in order; of a group whose reports cannot be forwarded now, nothing
   * that came later either. Never throws.
   *
   * @returns true when another session reports for a group just now: it is soon to be tried again.
   */
  async forward(signal: AbortSignal): Promise<boolean> {
    const left = new Set<number>();
    let forwarded = 0;
    try {
      let entries: Entry[];
      do {
        entries = await readOutbox(this.#options.db, this.database, BATCH, [...left]);
        forwarded += entries.length;
        for (const entry of entries) {
          if (signal.aborted) return false;
          const { groupid } = entry;
          if (groupid !== null && left.has(groupid)) continue;
          if (!(await this.#forwardOne(entry)) && groupid !== null) left.add(groupid);
        }
      } while (entries.length === BATCH);
      if (forwarded === 0 && performance.now() < this.#lookAt) return false;
      await this.look(NO_REPORT);
      this.#failure = undefined;
      this.#lookDelayMs = 0;
    } catch (error) {
      if (signal.aborted) return false;
      const text = await this.describe(error);
      if (text !== this.#failure) this.#options.onTrouble(this.database, text, error);
      this.#failure = text;
      this.#lookDelayMs = Math.min(Math.max(2 * this.#lookDelayMs, RETRY_FIRST_MS), RETRY_MOST_MS);
      this.#lookAt = performance.now() + this.#lookDelayMs;
      return false;
    }
    for (const groupid of this.#refusals.keys()) {
      if (!left.has(groupid)) this.#refusals.delete(groupid);
    }
    return [...left].some((groupid) => !this.#refusals.has(groupid));
  }

  /** @returns false when it cannot be forwarded now. */
  async #forwardOne(entry: Entry): Promise<boolean> {
    const { db, onForwarded } = this.#options;
    if (entry.report !== null && !(await this.#follow(entry, entry.report))) return false;
    await forgetEntry(db, entry.id);
    onForwarded(entry);
    return true;
  }

  async #follow({ groupid, origin }: Entry, report: string): Promise<boolean> {
    // Without a session the next entry would fare no better.
    const session = await this.#options.pool.connect();
    let lost = false;
    try {
      const { rows } = await session.query<{ followed: boolean }>({
        name: 'mpp-follow',
        text: FOLLOW,
        values: [origin, report],
      });
      return rows[0]?.followed === true;
    } catch (error) {
      lost = sqlState(error) === undefined || isSessionLost(error);
      if (lost || isUnprepared(error)) throw error;
      await this.#refused(groupid ?? 0, error);
      return false;
    } finally {
      session.release(lost);
    }
  }

  /** By group: that of one must not keep the reports of others from being waited for. */
  async #refused(groupid: number, error: unknown): Promise<void> {
    const text = await this.describe(error);
    if (text !== this.#refusals.get(groupid))
      this.#options.onTrouble(this.database, `group ${groupid}: ${text}`, error);
    this.#refusals.set(groupid, text);
  }
}

/** Tasks are counted from 1, groups from 0. */
const NO_REPORT = { origin: '', id: '0', groupid: -1 };

const FOLLOW = 'SELECT @mpp.mpp_follow($1::name, $2::jsonb) AS followed';

/**
 * What an error of a session in another database means, and what to do about it. After a lock timeout it names the
 * session that has locked mpp_tasks there.
 *
 * @param db sessions in the other database
 */
async function describeTrouble(db: Queryable, schema: string, error: unknown): Promise<string> {
  if (isUnprepared(error)) {
    return 'it has no tables of mpp-controller; run mpp-controller migrate, or take it out of MPP_DATABASES';
  }
  if (sqlState(error) !== LOCK_NOT_AVAILABLE) return errorText(error);
  const { rows } = await db
    .query<{ blocker: string }>({ name: 'mpp-lock-holder', text: HOLDER, values: [schema] })
    .catch(() => ({ rows: [] }));
  return rows[0]?.blocker ?? `mpp_tasks is locked there: ${errorText(error)}`;
}

/** True where the schema, a table or a function of it is missing: no report can be forwarded there. */
function isUnprepared(error: unknown): boolean {
  return ['42P01', '42883', '3F000'].includes(sqlState(error) ?? '');
}

const LOCK_NOT_AVAILABLE = '55P03';

/** The strongest lock first: a weak one is held for a row, and only a writer's can be in conflict. */
const HOLDER = `
  SELECT format('mpp_tasks is locked there by pid %s (%s), whose transaction began %s s ago; wait for it, or run ' ||
                'SELECT pg_terminate_backend(%s)',
                a.pid, coalesce(nullif(a.application_name, ''), a.usename, 'unknown'),
                coalesce(round(extract(epoch FROM clock_timestamp() - a.xact_start)), 0), a.pid) AS blocker
  FROM pg_locks AS l
  JOIN pg_stat_activity AS a ON a.pid = l.pid
  WHERE l.locktype = 'relation' AND l.granted
    AND l.relation = to_regclass(format('%I.mpp_tasks', $1::text))
    AND l.database = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
    AND l.mode <> 'AccessShareLock'
    AND l.pid <> pg_backend_pid()
  ORDER BY array_position(
             ARRAY['AccessExclusiveLock', 'ExclusiveLock', 'ShareRowExclusiveLock', 'ShareLock'], l.mode),
           a.xact_start
  LIMIT 1`;

/** Something that is to be forwarded to another database: a report, or what became of it. */
export interface Entry {
  readonly id: string;
  /** null when its task has been pruned. */
  readonly groupid: number | null;
  /** This database, as the other one is to know it. */
  readonly origin: string;
  /**
   * The row of mpp_tasks as JSON; null when there is nothing to forward: it has been pruned, or is a confirmed
   * report since which another was confirmed. Forwarded after all, it would move the row back for a moment.
   */
  readonly report: string | null;
}

/** Says to which databases reports are forwarded from now on. Writes nothing where that is known. */
export async function registerDatabases(
  db: Queryable,
  databases: readonly string[],
): Promise<void> {
  await db.query({ name: 'mpp-register-databases', text: REGISTER, values: [databases] });
}

const REGISTER = `
  WITH gone AS (
    DELETE FROM @mpp.mpp_databases AS s WHERE s.database <> ALL ($1::name[])
  )
  INSERT INTO @mpp.mpp_databases (database)
  SELECT wanted.database
  FROM unnest($1::name[]) AS wanted (database)
  WHERE wanted.database NOT IN (SELECT s.database FROM @mpp.mpp_databases AS s)
  ON CONFLICT DO NOTHING`;

/**
 * @param without groups that are passed over
 * @returns the oldest entries for one database, at most `limit`.
 */
export async function readOutbox(
  db: Queryable,
  database: string,
  limit: number,
  without: readonly number[],
): Promise<Entry[]> {
  const { rows } = await db.query<Entry>({
    name: 'mpp-read-outbox',
    text: READ,
    values: [database, limit, without],
  });
  return rows;
}

const READ = `
  SELECT o.id, t.groupid, current_database() AS origin,
         CASE
           WHEN NOT (t.event = 'after_promote' AND EXISTS (
             SELECT
             FROM @mpp.mpp_tasks AS f
             WHERE f.groupid = t.groupid AND f.event = 'after_promote' AND f.source = 'client'
               AND f.id > t.id AND f.status = 'done' AND f.origin_id IS NULL))
             THEN to_jsonb(t)::text
         END AS report
  FROM @mpp.mpp_outbox AS o
  LEFT JOIN @mpp.mpp_tasks AS t ON t.id = o.task_id
  WHERE o.database = $1
    AND (t.groupid IS NULL OR t.groupid <> ALL ($3::integer[]))
  ORDER BY o.id
  LIMIT $2`;

export async function forgetEntry(db: Queryable, id: string): Promise<void> {
  await db.query({ name: 'mpp-forget-entry', text: FORGET, values: [id] });
}

const FORGET = 'DELETE FROM @mpp.mpp_outbox AS o WHERE o.id = $1';
