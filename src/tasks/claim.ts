import type { Queryable } from '../postgres/queryable.js';
import { GROUP_LOCK } from '../postgres/locks.js';
import { parseAddress, type Pause, type Task, type TaskEvent } from './task.js';

/** Which groups a claim may look at. */
export interface ClaimScope {
  /** Id of this controller, for claimed_by. */
  readonly controller: string;
  /** Groups that a task of ours is running for. */
  readonly busy: readonly number[];
  /** Groups that we hold; their tasks come first. */
  readonly held: readonly number[];
  /** Whether a task of a further group may be taken. */
  readonly open: boolean;
}

interface ClaimedRow {
  id: string;
  event: TaskEvent;
  groupid: number;
  nodename: string;
  nodeport: number;
  secondaries: string[] | null;
  timeout_ms: number;
  cooldown_ms: number;
  pause: Pause | null;
  source: Task['source'];
  attempt: number;
  remaining_ms: number;
  resumed: boolean;
  rebuild_at: string | null;
}

/** A task, and when an operator last called mpp_rebuild_cache(). */
export interface Claimed {
  readonly task: Task;
  readonly rebuildAt: string | null;
}

/**
 * Takes the next task, or undefined when there is none that may be taken now.
 *
 * One statement, one commit: whoever dies after it leaves a row in `claimed` whose group nobody has
 * locked, which `sweep` finds.
 */
export async function claimTask(db: Queryable, scope: ClaimScope): Promise<Claimed | undefined> {
  const { rows } = await db.query<ClaimedRow>({
    name: 'mpp-claim',
    text: CLAIM,
    values: [scope.controller, scope.busy, scope.held, scope.open],
  });
  const row = rows[0];
  if (row === undefined) return undefined;
  return { task: toTask(row), rebuildAt: row.rebuild_at };
}

function toTask(row: ClaimedRow): Task {
  return {
    id: row.id,
    event: row.event,
    groupid: row.groupid,
    address: { host: row.nodename, port: row.nodeport },
    secondaries: row.secondaries === null ? null : row.secondaries.map(parseAddress),
    timeoutMs: row.timeout_ms,
    cooldownMs: row.cooldown_ms,
    pause: row.pause,
    source: row.source,
    attempt: row.attempt,
    remainingMs: row.remaining_ms,
    resumed: row.resumed,
  };
}

/**
 * Order: a held group, group 0, the oldest. Within a group one task at a time, in the order of ids,
 * with two exceptions:
 *
 * - a retry that is not due yet holds nobody back. A report that comes makes it due at once, so it is
 *   tried once more before that report; a change that keeps failing must not block a switchover;
 * - what is older than a hold is frozen until the hold ends, or an old fact would commit it; so is
 *   an after_promote that no client has reported, such as the rest of an earlier change.
 *
 * A before_ task that is late is left to `sweep`, and holds nobody back either.
 *
 * Locks: FOR UPDATE on one row. SKIP LOCKED passes over a row that a client is superseding or
 * cancelling; what comes after it in its group still waits, because the row is seen as pending.
 * The view mpp_queue shows the same order.
 */
const CLAIM = `
  WITH next AS (
    SELECT t.id
    FROM @mpp.mpp_tasks AS t
    WHERE t.finished_at IS NULL
      AND t.status = 'pending'
      AND (t.not_before IS NULL OR t.not_before <= clock_timestamp())
      AND (t.event = 'after_promote'
           OR coalesce(t.deadline, t.created_at + t.timeout) > clock_timestamp())
      AND t.groupid <> ALL ($2::integer[])
      AND ($4::boolean OR t.groupid = ANY ($3::integer[]))
      AND NOT EXISTS (
        SELECT
        FROM @mpp.mpp_tasks AS e
        WHERE e.finished_at IS NULL
          AND e.groupid = t.groupid
          AND (e.status = 'claimed'
               OR (e.status = 'holding'
                   AND (e.id > t.id OR (t.event = 'after_promote' AND t.source <> 'client')))
               OR (e.status = 'pending' AND e.id < t.id
                   AND (e.not_before IS NULL OR e.not_before <= clock_timestamp())
                   AND (e.event = 'after_promote'
                        OR coalesce(e.deadline, e.created_at + e.timeout) > clock_timestamp())
                   AND NOT EXISTS (
                     SELECT
                     FROM @mpp.mpp_tasks AS h
                     WHERE h.finished_at IS NULL
                       AND h.groupid = e.groupid
                       AND h.status = 'holding'
                       AND (h.id > e.id OR (e.event = 'after_promote' AND e.source <> 'client'))))))
    ORDER BY t.groupid = ANY ($3::integer[]) DESC, t.groupid = 0 DESC, t.id
    LIMIT 1
    FOR UPDATE SKIP LOCKED
  )
  UPDATE @mpp.mpp_tasks AS t
  SET status = 'claimed',
      attempt = t.attempt + 1,
      claimed_by = $1,
      claimed_at = clock_timestamp(),
      not_before = NULL,
      reason = NULL
  FROM next
  WHERE t.id = next.id
  RETURNING t.id, t.event, t.groupid, t.nodename, t.nodeport, t.secondaries, t.pause, t.source, t.attempt,
    (extract(epoch FROM t.timeout) * 1000)::float8 AS timeout_ms,
    (extract(epoch FROM t.cooldown) * 1000)::float8 AS cooldown_ms,
    (extract(epoch FROM coalesce(t.deadline, t.created_at + t.timeout) - clock_timestamp()) * 1000)::float8
      AS remaining_ms,
    t.deadline IS NOT NULL AS resumed,
    (SELECT c.rebuild_at::text FROM @mpp.mpp_controllers AS c WHERE c.id = $1) AS rebuild_at`;

/**
 * Whether a task of any other group is pending, due or not. It keeps the common case short: while a
 * hold is being opened nothing else waits, and whether two groups may be held need not be asked.
 */
export async function othersWait(db: Queryable, groups: readonly number[]): Promise<boolean> {
  const { rows } = await db.query<{ waiting: boolean }>({
    name: 'mpp-others-wait',
    text: OTHERS_WAIT,
    values: [groups],
  });
  return rows[0]?.waiting ?? false;
}

const OTHERS_WAIT = `
  SELECT EXISTS (
    SELECT
    FROM @mpp.mpp_tasks AS t
    WHERE t.finished_at IS NULL
      AND t.status = 'pending'
      AND t.groupid <> ALL ($1::integer[])) AS waiting`;

/** What a sweep changed. */
export interface Swept {
  readonly id: string;
  readonly groupid: number;
  readonly status: string;
}

/**
 * Ends tasks that are too late, and takes back those whose controller has died: a group with a
 * running task that is not ours and whose lock is free has nobody working on it. Also ends what the
 * report after it could not see to supersede: a transaction of REPEATABLE READ has an old snapshot.
 *
 * @param ours groups that this controller works on or holds.
 */
export async function sweep(db: Queryable, ours: readonly number[]): Promise<Swept[]> {
  const { rows } = await db.query<Swept>({
    name: 'mpp-sweep',
    text: SWEEP,
    values: [ours, GROUP_LOCK],
  });
  return rows;
}

/**
 * Taking the group's lock is what proves it free; it is given back when the statement commits, so a
 * controller that wants it at that moment tries again.
 */
const SWEEP = `
  WITH orphaned AS MATERIALIZED (
    SELECT DISTINCT t.groupid
    FROM @mpp.mpp_tasks AS t
    WHERE t.finished_at IS NULL
      AND t.status IN ('claimed', 'holding')
      AND t.groupid <> ALL ($1::integer[])
  ), free AS MATERIALIZED (
    SELECT groupid FROM orphaned WHERE pg_try_advisory_xact_lock($2, groupid)
  ), change AS (
    SELECT t.id, t.status AS was, t.attempt,
      CASE
        WHEN t.event <> 'after_promote' AND t.deadline <= clock_timestamp() THEN 'rolled_back'
        WHEN t.event <> 'after_promote'
          AND coalesce(t.deadline, t.created_at + t.timeout) <= clock_timestamp() THEN 'expired'
        WHEN newer.id IS NOT NULL THEN 'superseded'
        ELSE 'pending'
      END AS status,
      newer.id AS newer
    FROM @mpp.mpp_tasks AS t
    CROSS JOIN LATERAL @mpp.mpp_superseded_by(t) AS newer (id)
    WHERE t.finished_at IS NULL
      AND (t.status = 'pending' OR t.groupid IN (SELECT groupid FROM free))
  )
  UPDATE @mpp.mpp_tasks AS t
  SET status = change.status,
      not_before = CASE
        WHEN change.status = 'pending' AND t.attempt > 1
          THEN clock_timestamp() + least(interval '30 s', interval '50 ms' * 2 ^ least(t.attempt, 20))
      END,
      reason = CASE change.status
        WHEN 'expired' THEN format('still pending when its timeout of %s had passed', t.timeout)
        WHEN 'rolled_back' THEN 'the hold was lost and its deadline passed before it could be taken again'
        WHEN 'superseded' THEN format('superseded by task %s', change.newer)
        ELSE 'taken up again after its controller was lost'
      END
  FROM change
  WHERE t.id = change.id
    AND change.status <> change.was
    AND t.status = change.was
    AND t.attempt = change.attempt
  RETURNING t.id, t.groupid, t.status`;
