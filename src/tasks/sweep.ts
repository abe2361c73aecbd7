import type { Pool } from 'pg';
import type { Queryable } from '../postgres/queries.js';
import { type Logger, OncePerChange } from '../logger.js';
import { remedyOf } from '../postgres/sqlstate.js';
import { errorText } from '../postgres/session.js';
import { pruneTasks } from './finish.js';
import { Loop } from '../wait.js';

/** What a sweep changed. */
interface Swept {
  readonly id: string;
  readonly groupid: number;
  readonly status: string;
}

/** The groups of this controller. */
interface SweepScope {
  /** Groups that a task is running for. */
  readonly busy: readonly number[];
  /** Groups that are held. */
  readonly held: readonly number[];
}

/** Rows that one statement changes at most, so that none is long. */
export const SWEEP_ROWS = 500;

/**
 * Ends pending tasks that are too late, at most 500. None waits for a lock: a row that another session
 * has locked is passed over, and found by the next sweep.
 */
export async function expire(db: Queryable): Promise<Swept[]> {
  const { rows } = await db.query<Swept>({
    name: 'mpp-expire',
    text: EXPIRE,
    values: [SWEEP_ROWS],
  });
  return rows;
}

/** Locks: the rows of late tasks. Read by an index that has pending before_ tasks by their end. */
const EXPIRE = `
  WITH late AS MATERIALIZED (
    SELECT t.id
    FROM @mpp.mpp_tasks AS t
    WHERE t.status = 'pending'
      AND t.event <> 'after_promote'
      AND coalesce(t.deadline, t.expires_at) <= statement_timestamp()
    ORDER BY coalesce(t.deadline, t.expires_at)
    LIMIT $1
    FOR UPDATE SKIP LOCKED
  )
  UPDATE @mpp.mpp_tasks AS t
  SET status = CASE WHEN t.deadline IS NULL THEN 'expired' ELSE 'rolled_back' END,
      reason = CASE
        WHEN t.deadline IS NOT NULL
          THEN 'the hold was lost and its deadline passed before it could be taken again'
        ELSE format('still pending when its timeout of %s had passed'::text, t.timeout)
          || coalesce('; the last attempt: '::text || t.reason, '')
      END
  FROM late
  WHERE t.id = late.id
  RETURNING t.id, t.groupid, t.status`;

/**
 * Takes back tasks whose controller has died, or that this one could not end because another session had
 * locked their rows: a running task whose group is free has no controller that works on it.
 */
export async function takeBack(db: Queryable, { busy, held }: SweepScope): Promise<Swept[]> {
  const { rows } = await db.query<Swept>({
    name: 'mpp-take-back',
    text: TAKE_BACK,
    values: [busy, held, SWEEP_ROWS],
  });
  return rows;
}

/**
 * Locking the group's row is what proves it free; the lock is given back when the statement commits, so a
 * controller that wants it at that moment tries again. A group without a row gets one: no other session can
 * have locked that.
 */
const TAKE_BACK = `
  WITH running AS MATERIALIZED (
    SELECT DISTINCT t.groupid
    FROM @mpp.mpp_tasks AS t
    WHERE t.status IN ('claimed', 'holding')
      AND t.groupid <> ALL ($1::integer[])
  ), missing AS (
    INSERT INTO @mpp.mpp_groups (groupid)
    SELECT r.groupid FROM running AS r
    ON CONFLICT DO NOTHING
    RETURNING groupid
  ), free AS MATERIALIZED (
    SELECT g.groupid
    FROM @mpp.mpp_groups AS g
    WHERE g.groupid IN (SELECT r.groupid FROM running AS r)
      AND g.groupid <> ALL ($2::integer[])
    FOR UPDATE SKIP LOCKED
  ), lost AS MATERIALIZED (
    -- As the row is once it is locked: the controller that had the task may have written it meanwhile.
    SELECT t.id, t.event, t.deadline, coalesce(t.deadline, t.created_at + t.timeout) AS due
    FROM @mpp.mpp_tasks AS t
    WHERE t.status IN ('claimed', 'holding')
      AND (t.groupid IN (SELECT f.groupid FROM free AS f UNION ALL SELECT m.groupid FROM missing AS m)
           OR (t.status = 'claimed' AND t.groupid = ANY ($2::integer[]) AND t.groupid <> ALL ($1::integer[])))
    ORDER BY t.id
    LIMIT $3
    FOR UPDATE SKIP LOCKED
  )
  UPDATE @mpp.mpp_tasks AS t
  SET status = end_of.status,
      not_before = CASE
        WHEN end_of.status = 'pending' AND t.attempt > 1
          THEN clock_timestamp() + least(interval '30 s', interval '50 ms' * 2 ^ least(t.attempt, 20))
      END,
      reason = CASE end_of.status
        WHEN 'expired' THEN format('not acknowledged when its timeout of %s had passed'::text, t.timeout)
        WHEN 'rolled_back' THEN 'the hold was lost and its deadline passed before it could be taken again'
        ELSE 'taken up again after its controller was lost'
      END
  FROM lost
  CROSS JOIN LATERAL (
    SELECT CASE
        WHEN lost.event = 'after_promote' OR lost.due > clock_timestamp() THEN 'pending'
        WHEN lost.deadline IS NULL THEN 'expired'
        ELSE 'rolled_back'
      END AS status
  ) AS end_of
  WHERE t.id = lost.id
  RETURNING t.id, t.groupid, t.status`;

interface ExpiryOptions {
  readonly db: Pool;
  /** How often late tasks are looked for at least. */
  readonly pollMs: number;
  readonly retentionMs: number;
  /** Ends it like `stop`. */
  readonly signal: AbortSignal;
  readonly logger: Logger;
}

/** A waiter is answered by the end of its timeout and a moment more, however rarely MPP_POLL has the queue looked at. */
const EXPIRE_EVERY_MS = 500;
/** Batches that one heartbeat prunes, so that it is over long before the next. */
const PRUNE_BATCHES = 5;

/**
 * Ends pending tasks that are too late, and deletes what ended long ago. Runs beside the claims, so that
 * no backlog and no failure of it delays one.
 */
export class Expiry {
  readonly #options: ExpiryOptions;
  readonly #loop: Loop;
  readonly #trouble = new OncePerChange();

  constructor(options: ExpiryOptions) {
    this.#options = options;
    this.#loop = new Loop({
      intervalMs: Math.min(options.pollMs, EXPIRE_EVERY_MS),
      signal: options.signal,
      work: (signal) => this.#expire(signal),
    });
  }

  start(): void {
    this.#loop.start();
  }

  async stop(): Promise<void> {
    await this.#loop.stop();
  }

  /** Deletes some of what ended before the retention; the rest next time. */
  async prune(): Promise<void> {
    const { db, retentionMs, signal } = this.#options;
    for (let batch = 0; batch < PRUNE_BATCHES && !signal.aborted; batch += 1) {
      if ((await pruneTasks(db, retentionMs)) === 0) return;
    }
  }

  async #expire(signal: AbortSignal): Promise<void> {
    const { db, logger } = this.#options;
    try {
      for (let more = true; more && !signal.aborted;) {
        const expired = await expire(db);
        for (const { id, groupid, status } of expired) {
          logger.info({ task: id, groupid, status }, 'a pending task was too late');
        }
        more = expired.length === SWEEP_ROWS;
      }
      this.#trouble.clear();
    } catch (error) {
      const remedy = remedyOf(error) ?? 'it is tried again';
      const text = `late tasks could not be ended: ${errorText(error)}; ${remedy}`;
      this.#trouble.say(text, () => logger.warn({ err: error }, text));
    }
  }
}

/** What a client may ask for, in milliseconds. */
interface Limits {
  readonly maxTimeoutMs: number;
  readonly minCooldownMs: number;
}

/**
 * Has the trigger of mpp_tasks hold clients to these limits, and notes the present name and members of the
 * roles that are limited to groups. Writes only what differs, and waits for no lock.
 */
export async function keepLimits(
  db: Queryable,
  controller: string,
  { maxTimeoutMs, minCooldownMs }: Limits,
): Promise<void> {
  await db.query({
    name: 'mpp-keep-limits',
    text: KEEP_LIMITS,
    values: [controller, maxTimeoutMs, minCooldownMs],
  });
}

const KEEP_LIMITS = `
  SELECT @mpp.mpp_keep_limits($1::text, $2::float8 * interval '1 millisecond', $3::float8 * interval '1 millisecond')`;
