import type { Pool } from 'pg';
import type { Queryable } from '../postgres/queryable.js';
import { errorText } from '../postgres/session.js';
import { isSessionLost, sqlState } from '../postgres/sqlstate.js';
import { type Entry, forgetEntry, readOutbox } from './outbox.js';
import { type CopyState, lookThere } from './waiting.js';

/** Entries that are read at once. */
const BATCH = 100;
const LOOK_FIRST_MS = 1_000;
const LOOK_MOST_MS = 60_000;

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
      this.#lookDelayMs = Math.min(Math.max(2 * this.#lookDelayMs, LOOK_FIRST_MS), LOOK_MOST_MS);
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
