import type { ClientBase } from 'pg';
import type { Queryable } from '../postgres/queries.js';
import type { BlockerNote, Pause, Task, TaskEnd } from './task.js';

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

/** The rows of the attempts $1 to $3 that are still this controller's. */
const ATTEMPTS = `
    FROM @mpp.mpp_tasks AS t
    JOIN unnest($1::bigint[], $2::integer[]) AS a (id, attempt) ON t.id = a.id AND t.attempt = a.attempt
    WHERE t.claimed_by = $3
      AND t.status IN ('claimed', 'holding')`;

/**
 * The same rows, locked: those that are still this controller's. A row that another session has locked
 * (an operator who cancels or releases, and has not committed) is left out and not waited for: the caller
 * leaves its task as it is, and `takeBack` sees to it.
 */
const MINE = `
  WITH mine AS MATERIALIZED (
    SELECT t.id ${ATTEMPTS}
    ORDER BY t.id
    FOR UPDATE OF t SKIP LOCKED
  )`;

/** How the rows of some attempts stand: all locked now, some locked by another session, or claimed by another attempt. */
type RowsState = 'locked' | 'busy' | 'lost';

/**
 * Locks the rows of attempts until the transaction ends, without waiting.
 *
 * @returns `lost` when one of them is no longer this controller's: its hold was released, or taken over.
 */
export async function lockTasks(
  transaction: Queryable,
  attempts: readonly Attempt[],
): Promise<RowsState> {
  const { rows } = await transaction.query<{ mine: number; locked: number }>({
    name: 'mpp-lock-tasks',
    text: LOCK_TASKS,
    values: [...valuesOf(attempts)],
  });
  const { mine = 0, locked = 0 } = rows[0] ?? {};
  if (mine < attempts.length) return 'lost';
  return locked < mine ? 'busy' : 'locked';
}

const LOCK_TASKS = `
  ${MINE}
  SELECT (SELECT count(*)::integer FROM mine) AS locked,
         (SELECT count(*)::integer ${ATTEMPTS}) AS mine`;

/**
 * Acknowledges a before_ task or suspect: the traffic of its group waits.
 *
 * The deadline counts from when the hold opened; a hold that is taken up again keeps the one it had.
 * Doing it twice is the same as once, so that it can be repeated when the answer was lost.
 *
 * @returns milliseconds until the deadline by the server's clock, or undefined when the attempt is no
 *   longer this controller's (released, or taken over), or another session has locked its row.
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
    values: [...valuesOf([attempt]), nodeid, reason],
  });
  return rows[0]?.remaining_ms;
}

const MARK_HOLDING = `
  ${MINE}
  UPDATE @mpp.mpp_tasks AS t
  SET status = 'holding',
      held_at = coalesce(t.held_at, clock_timestamp()),
      deadline = coalesce(t.deadline, clock_timestamp() + t.timeout),
      nodeid = $4,
      reason = $5
  FROM mine
  WHERE t.id = mine.id
  RETURNING (extract(epoch FROM t.deadline - clock_timestamp()) * 1000)::float8 AS remaining_ms`;

/**
 * Writes the reason of a task while it has this status. A row that another session has locked is left as it is.
 *
 * @param blockers sessions that block it
 */
export async function markReason(
  db: Queryable,
  attempt: Attempt,
  status: 'claimed' | 'holding',
  reason: string,
  blockers?: readonly BlockerNote[],
): Promise<void> {
  await db.query({
    name: 'mpp-mark-reason',
    text: MARK_REASON,
    values: [...valuesOf([attempt]), status, reason, blockers ? JSON.stringify(blockers) : null],
  });
}

const MARK_REASON = `
  ${MINE}
  UPDATE @mpp.mpp_tasks AS t
  SET reason = $5, blockers = $6::jsonb
  FROM mine
  WHERE t.id = mine.id AND t.status = $4`;

/** What is to be said of a hold that has ended, or of a primary that has moved: the view mpp_switchovers shows it. */
export interface Summary {
  /** Id of the task whose log has it. */
  readonly task: string;
  /** Ids of the tasks that end with it. */
  readonly tasks: readonly string[];
  readonly pause: Pause;
  /** Sessions of clients that waited, as far as they were seen. */
  readonly sessionsWaiting: number | null;
  /** For how long the statement had been running that waited longest. */
  readonly longestWaitMs: number | null;
  /** Sessions that the controller terminated. */
  readonly terminated: number;
  /** Statements that it cancelled. */
  readonly cancelled: number;
}

/** Rows of pg_dist_node for the log, before and after a change. */
interface NodeChange {
  readonly before: unknown;
  readonly after: unknown;
  /** Undefined where no primary moves and no hold ends. */
  readonly summary: Summary | undefined;
}

/** Hands the rows to the trigger that writes the log, for what else this transaction records. */
export async function recordChange(transaction: ClientBase, change: NodeChange): Promise<void> {
  await transaction.query({
    name: 'mpp-record-change',
    text: RECORD_CHANGE,
    values: [
      JSON.stringify(change.before),
      JSON.stringify(change.after),
      change.summary ? JSON.stringify(change.summary) : '',
    ],
  });
}

const RECORD_CHANGE = `
  SELECT set_config('mpp.node_before', $1, true),
         set_config('mpp.node_after', $2, true),
         set_config('mpp.ended', $3, true)`;

/**
 * Ends every task of a change at once, in the transaction that makes the change.
 *
 * @returns false when one of them was claimed by another attempt; the caller must then roll back.
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
  ${MINE}
  UPDATE @mpp.mpp_tasks AS t
  SET status = 'done', nodeid = coalesce($4, t.nodeid), reason = $5
  FROM mine
  WHERE t.id = mine.id`;

/**
 * Ends tasks without a change of pg_dist_node. Those that are no longer this controller's are left alone.
 *
 * @returns how many were ended.
 */
export async function endTasks(
  db: Queryable,
  attempts: readonly Attempt[],
  end: {
    readonly status: TaskEnd;
    readonly nodeid?: number | null;
    readonly reason: string | null;
    /** Where a hold ends with them. */
    readonly summary?: Summary;
  },
): Promise<number> {
  const { rowCount } = await db.query({
    name: 'mpp-end',
    text: END,
    values: [
      ...valuesOf(attempts),
      end.status,
      end.nodeid ?? null,
      end.reason,
      end.summary ? JSON.stringify(end.summary) : '',
    ],
  });
  return rowCount ?? 0;
}

const END = `
  ${MINE}, handed_over AS MATERIALIZED (
    SELECT set_config('mpp.ended', $7, true)
  )
  UPDATE @mpp.mpp_tasks AS t
  SET status = $4, nodeid = coalesce($5, t.nodeid), reason = $6
  FROM mine
  CROSS JOIN handed_over
  WHERE t.id = mine.id`;

/**
 * Gives tasks back to the queue: to be tried again after `delayMs`, or at once.
 *
 * @returns how many were given back.
 */
export async function requeueTasks(
  db: Queryable,
  attempts: readonly Attempt[],
  reason: string,
  delayMs: number,
): Promise<number> {
  const { rowCount } = await db.query({
    name: 'mpp-requeue',
    text: REQUEUE,
    values: [...valuesOf(attempts), reason, delayMs],
  });
  return rowCount ?? 0;
}

const REQUEUE = `
  ${MINE}
  UPDATE @mpp.mpp_tasks AS t
  SET status = 'pending',
      reason = $4,
      not_before = CASE WHEN $5::float8 > 0
        THEN clock_timestamp() + $5::float8 * interval '1 millisecond' END
  FROM mine
  WHERE t.id = mine.id`;

/** How many of `attempts` are still this controller's. */
export async function countMine(db: Queryable, attempts: readonly Attempt[]): Promise<number> {
  const { rows } = await db.query<{ mine: number }>({
    name: 'mpp-count-mine',
    text: `SELECT count(*)::integer AS mine ${ATTEMPTS}`,
    values: [...valuesOf(attempts)],
  });
  return rows[0]?.mine ?? 0;
}

/** Those of `attempts` whose task is still holding; the others were released or taken over. */
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
  SELECT t.id ${ATTEMPTS}
    AND t.status = 'holding'`;

/**
 * Reports the rest of a change as a task of its own, in the transaction of the change: secondaries
 * can be added and removed only once the metadata is in sync again, which it is after the commit.
 */
export async function addFollowUp(transaction: ClientBase, task: Task): Promise<void> {
  await transaction.query({ name: 'mpp-follow-up', text: FOLLOW_UP, values: [task.id] });
}

const FOLLOW_UP = `
  INSERT INTO @mpp.mpp_tasks (event, groupid, nodename, nodeport, secondaries, timeout, cooldown, source)
  SELECT t.event, t.groupid, t.nodename, t.nodeport, t.secondaries, t.timeout, t.cooldown, 'sync'
  FROM @mpp.mpp_tasks AS t
  WHERE t.id = $1`;

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
    WHERE t.finished_at < statement_timestamp() - $1::float8 * interval '1 millisecond'
      -- As the index has it, or all ended tasks are read.
      AND t.finished_at IS NOT NULL
    ORDER BY t.finished_at
    LIMIT $2
    FOR UPDATE SKIP LOCKED
  ), log AS (
    DELETE FROM @mpp.mpp_task_log AS l USING old WHERE l.task_id = old.id
  )
  DELETE FROM @mpp.mpp_tasks AS t USING old WHERE t.id = old.id`;

/**
 * Who has ended a hold by mpp_release, in the words of the reason of its newest task.
 *
 * @returns undefined when the hold has not ended so, or that is not committed.
 */
export async function readRelease(
  db: Queryable,
  attempts: readonly Attempt[],
): Promise<string | undefined> {
  const { rows } = await db.query<{ reason: string }>({
    name: 'mpp-read-release',
    text: READ_RELEASE,
    values: [attempts.map(({ id }) => id)],
  });
  return rows[0]?.reason;
}

const READ_RELEASE = `
  SELECT t.reason
  FROM @mpp.mpp_tasks AS t
  WHERE t.id = ANY ($1::bigint[]) AND t.status = 'rolled_back' AND t.reason LIKE '%released by %'
  ORDER BY t.id DESC
  LIMIT 1`;

/** The newest after_promote of a group that was tried and is open, and why it has not been done. */
export async function readUnfinishedChange(
  db: Queryable,
  groupid: number,
): Promise<{ readonly id: string; readonly reason: string } | undefined> {
  const { rows } = await db.query<{ id: string; reason: string }>({
    name: 'mpp-read-unfinished-change',
    text: READ_UNFINISHED_CHANGE,
    values: [groupid],
  });
  return rows[0];
}

const READ_UNFINISHED_CHANGE = `
  SELECT t.id, t.reason
  FROM @mpp.mpp_tasks AS t
  WHERE t.finished_at IS NULL AND t.groupid = $1 AND t.event = 'after_promote' AND t.attempt > 0
    AND t.reason IS NOT NULL
  ORDER BY t.id DESC
  LIMIT 1`;
