import type { ClientBase } from 'pg';
import type { Queryable } from '../postgres/queryable.js';
import { REPORT_LOCK } from '../postgres/locks.js';
import type { Task, TaskEnd } from './task.js';

/** Names one attempt at one task: a controller that lost it to another changes nothing. */
export interface Attempt {
  readonly controller: string;
  readonly id: string;
  readonly attempt: number;
}

export function attemptOf(controller: string, task: Task): Attempt {
  return { controller, id: task.id, attempt: task.attempt };
}

/** As $1 to $3: the ids, their attempts, and the one controller that has them all. */
function valuesOf(attempts: readonly Attempt[]): [string[], number[], string | undefined] {
  return [
    attempts.map(({ id }) => id),
    attempts.map(({ attempt }) => attempt),
    attempts[0]?.controller,
  ];
}

/**
 * Acknowledges a before_ task or suspect: the traffic of its group waits.
 *
 * The deadline counts from when the hold opened; a hold that is taken up again keeps the one it had.
 * Doing it twice is the same as once, so that it can be repeated when the answer was lost.
 *
 * @returns milliseconds until the deadline by the server's clock, or undefined when the attempt is
 *   no longer ours (released, or taken over).
 */
export async function markHolding(
  db: Queryable,
  attempt: Attempt,
  nodeid: number,
  reason: string | null,
): Promise<number | undefined> {
  const { rows } = await db.query<{ remaining_ms: number }>({
    name: 'mpp-mark-holding',
    text: MARK_HOLDING,
    values: [attempt.id, attempt.controller, attempt.attempt, nodeid, reason],
  });
  return rows[0]?.remaining_ms;
}

const MARK_HOLDING = `
  UPDATE @mpp.mpp_tasks AS t
  SET status = 'holding',
      held_at = coalesce(t.held_at, clock_timestamp()),
      deadline = coalesce(t.deadline, clock_timestamp() + t.timeout),
      nodeid = $4,
      reason = $5
  WHERE t.id = $1 AND t.claimed_by = $2 AND t.attempt = $3 AND t.status IN ('claimed', 'holding')
  RETURNING (extract(epoch FROM t.deadline - clock_timestamp()) * 1000)::float8 AS remaining_ms`;

/** Rows of pg_dist_node for the log, before and after a change. */
export interface NodeChange {
  readonly before: unknown;
  readonly after: unknown;
}

/** Hands the rows to the trigger that writes the log, for what else this transaction records. */
export async function recordChange(transaction: ClientBase, change: NodeChange): Promise<void> {
  await transaction.query({
    name: 'mpp-record-change',
    text: RECORD_CHANGE,
    values: [JSON.stringify(change.before), JSON.stringify(change.after)],
  });
}

const RECORD_CHANGE =
  "SELECT set_config('mpp.node_before', $1, true), set_config('mpp.node_after', $2, true)";

/**
 * Ends every task of a change at once, in the transaction that makes the change.
 *
 * @returns false when one of them is no longer ours; the caller must then roll back.
 */
export async function completeTasks(
  transaction: ClientBase,
  attempts: readonly Attempt[],
  end: { nodeid: number | null; reason: string | null },
): Promise<boolean> {
  if (attempts.length === 0) return true;
  const { rowCount } = await transaction.query({
    name: 'mpp-complete',
    text: COMPLETE,
    values: [...valuesOf(attempts), end.nodeid, end.reason],
  });
  return rowCount === attempts.length;
}

const COMPLETE = `
  UPDATE @mpp.mpp_tasks AS t
  SET status = 'done', nodeid = coalesce($4, t.nodeid), reason = $5
  FROM unnest($1::bigint[], $2::integer[]) AS mine (id, attempt)
  WHERE t.id = mine.id
    AND t.attempt = mine.attempt
    AND t.claimed_by = $3
    AND t.status IN ('claimed', 'holding')`;

/** Ends tasks without a change of pg_dist_node. Those that are no longer ours are left alone. */
export async function endTasks(
  db: Queryable,
  attempts: readonly Attempt[],
  end: { status: TaskEnd; nodeid?: number | null; reason: string | null },
): Promise<void> {
  await db.query({
    name: 'mpp-end',
    text: END,
    values: [...valuesOf(attempts), end.status, end.nodeid ?? null, end.reason],
  });
}

const END = `
  UPDATE @mpp.mpp_tasks AS t
  SET status = $4, nodeid = coalesce($5, t.nodeid), reason = $6
  FROM unnest($1::bigint[], $2::integer[]) AS mine (id, attempt)
  WHERE t.id = mine.id
    AND t.attempt = mine.attempt
    AND t.claimed_by = $3
    AND t.status IN ('claimed', 'holding')`;

/** Gives tasks back to the queue: to be tried again after `delayMs`, or at once. */
export async function requeueTasks(
  db: Queryable,
  attempts: readonly Attempt[],
  reason: string,
  delayMs: number,
): Promise<void> {
  await db.query({
    name: 'mpp-requeue',
    text: REQUEUE,
    values: [...valuesOf(attempts), reason, delayMs],
  });
}

const REQUEUE = `
  UPDATE @mpp.mpp_tasks AS t
  SET status = 'pending',
      reason = $4,
      not_before = CASE WHEN $5::float8 > 0
        THEN clock_timestamp() + $5::float8 * interval '1 millisecond' END
  FROM unnest($1::bigint[], $2::integer[]) AS mine (id, attempt)
  WHERE t.id = mine.id
    AND t.attempt = mine.attempt
    AND t.claimed_by = $3
    AND t.status IN ('claimed', 'holding')`;

/** Those of `attempts` whose task is still holding and ours; the others were released or taken. */
export async function stillHolding(
  db: Queryable,
  attempts: readonly Attempt[],
): Promise<Set<string>> {
  const { rows } = await db.query<{ id: string }>({
    name: 'mpp-still-holding',
    text: STILL_HOLDING,
    values: [...valuesOf(attempts)],
  });
  return new Set(rows.map(({ id }) => id));
}

const STILL_HOLDING = `
  SELECT t.id
  FROM @mpp.mpp_tasks AS t
  JOIN unnest($1::bigint[], $2::integer[]) AS mine (id, attempt)
    ON t.id = mine.id AND t.attempt = mine.attempt
  WHERE t.claimed_by = $3 AND t.status = 'holding'`;

/**
 * Reports the rest of a change as a task of its own, in the transaction of the change: secondaries
 * can be added and removed only once the metadata is in sync again, which it is after the commit.
 *
 * @returns false when somebody has an uncommitted report for the group: a hold must not wait for it.
 */
export async function addFollowUp(transaction: ClientBase, task: Task): Promise<boolean> {
  const { rowCount } = await transaction.query({
    name: 'mpp-follow-up',
    text: FOLLOW_UP,
    values: [task.id, REPORT_LOCK],
  });
  return rowCount === 1;
}

const FOLLOW_UP = `
  WITH turn AS MATERIALIZED (
    SELECT t.id, pg_try_advisory_xact_lock($2, t.groupid) AS mine FROM @mpp.mpp_tasks AS t WHERE t.id = $1
  )
  INSERT INTO @mpp.mpp_tasks (event, groupid, nodename, nodeport, secondaries, timeout, cooldown, source)
  SELECT t.event, t.groupid, t.nodename, t.nodeport, t.secondaries, t.timeout, t.cooldown, 'sync'
  FROM @mpp.mpp_tasks AS t
  JOIN turn ON turn.id = t.id
  WHERE turn.mine`;

/**
 * Deletes tasks that ended longer ago than `retentionMs`, and their log, at most `limit` at once so
 * that no transaction is long.
 *
 * @returns how many tasks were deleted.
 */
export async function pruneTasks(
  db: Queryable,
  retentionMs: number,
  limit = 1_000,
): Promise<number> {
  const { rowCount } = await db.query({
    name: 'mpp-prune',
    text: PRUNE,
    values: [retentionMs, limit],
  });
  return rowCount ?? 0;
}

const PRUNE = `
  WITH old AS (
    SELECT t.id
    FROM @mpp.mpp_tasks AS t
    WHERE t.finished_at < clock_timestamp() - $1::float8 * interval '1 millisecond'
    ORDER BY t.finished_at
    LIMIT $2
    FOR UPDATE SKIP LOCKED
  ), log AS (
    DELETE FROM @mpp.mpp_task_log AS l USING old WHERE l.task_id = old.id
  )
  DELETE FROM @mpp.mpp_tasks AS t USING old WHERE t.id = old.id`;
