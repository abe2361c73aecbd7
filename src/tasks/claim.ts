import type { Queryable } from '../postgres/queries.js';
import { parseAddress } from '../address.js';
import type { Pause, Task, TaskEvent } from './task.js';

/** Which groups a claim may look at. */
interface ClaimScope {
  /** Id of this controller, for claimed_by. */
  readonly controller: string;
  /** Groups that a task of this controller is running for. */
  readonly busy: readonly number[];
  /** Groups that this controller holds; their tasks come first. */
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
 * Takes the next task, or undefined when there is none that may be taken now. Pending tasks that a newer
 * one supersedes are ended first.
 *
 * One statement, one commit: a controller that dies after it leaves a row in `claimed` whose group has
 * no lock, which `sweep` finds. It waits for no lock.
 */
export async function claimTask(db: Queryable, scope: ClaimScope): Promise<Claimed | undefined> {
  const passed = [...scope.busy];
  for (;;) {
    const { rows } = await db.query<ClaimedRow & { next: number; superseded: boolean }>({
      name: 'mpp-claim',
      text: CLAIM,
      values: [scope.controller, passed, scope.held, scope.open],
    });
    const [row] = rows;
    if (row === undefined) return undefined;
    if (!row.superseded) return { task: toTask(row), rebuildAt: row.rebuild_at };
    // Another session has their rows locked: the group is looked at again with the next claim.
    if ((await supersede(db, row.next)) === 0) passed.push(row.next);
  }
}

/** Ends the pending tasks of a group that a newer one supersedes, and says how many. */
async function supersede(db: Queryable, groupid: number): Promise<number> {
  const { rows } = await db.query<{ ended: number }>({
    name: 'mpp-supersede',
    text: 'SELECT @mpp.mpp_supersede($1::integer) AS ended',
    values: [groupid],
  });
  return rows[0]?.ended ?? 0;
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

/** What keeps a task from running now: a delay that is not over, or its end. */
const isDue = (task: string): string => `
        (${task}.not_before IS NULL OR ${task}.not_before <= clock_timestamp())
        AND (${task}.event = 'after_promote'
             OR coalesce(${task}.deadline, ${task}.expires_at) > clock_timestamp())`;

/** That a pending task has come since which takes its place. */
const isSuperseded = (task: string): string => `
        EXISTS (
          SELECT
          FROM @mpp.mpp_tasks AS n
          WHERE n.finished_at IS NULL
            AND n.groupid = ${task}.groupid
            AND n.id > ${task}.id
            AND n.status = 'pending'
            AND n.attempt = 0
            AND @mpp.mpp_supersedes(n.event, n.source, ${task}.event, ${task}.source)
          OFFSET 0)`;

/**
 * Whether the newer task is done already, or a client's fact is pending that this one would undo. Of the tasks of a
 * lost hold, which go back to the queue together, the older ones do not come too late.
 */
const comesTooLate = `
        ((t.attempt = 0 OR t.event = 'after_promote') AND EXISTS (
          SELECT
          FROM @mpp.mpp_tasks AS d
          WHERE d.status = 'done' AND d.source = 'client' AND d.event <> 'suspect'
            AND d.groupid = t.groupid
            AND d.id > t.id
            AND @mpp.mpp_supersedes(d.event, d.source, t.event, t.source)))
        OR (t.event = 'after_promote' AND t.source <> 'client' AND EXISTS (
          SELECT
          FROM @mpp.mpp_tasks AS f
          WHERE f.finished_at IS NULL
            AND f.groupid = t.groupid
            AND f.status = 'pending'
            AND f.event = 'after_promote'
            AND f.source = 'client'
            AND f.attempt < 5))`;

/** That a task has to leave alone the hold that another one is part of. */
const isFrozenBy = (task: string, hold: string): string =>
  `${hold}.id > ${task}.id
             OR (${task}.event = 'after_promote' AND ${task}.source <> 'client' AND ${hold}.source <> 'probe')`;

const candidate = (scope: string, order: string): string => `
    SELECT t.id, t.groupid, ${isSuperseded('t')} OR ${comesTooLate} AS superseded
    FROM @mpp.mpp_tasks AS t
    WHERE t.status = 'pending'
      AND ${isDue('t')}
      AND t.groupid <> ALL ($2::integer[])
      AND ${scope}
      AND NOT EXISTS (
        SELECT
        FROM @mpp.mpp_tasks AS r
        WHERE r.status IN ('claimed', 'holding')
          AND r.groupid = t.groupid
          AND (r.status = 'claimed' OR ${isFrozenBy('t', 'r')})
        OFFSET 0)
      AND NOT EXISTS (
        SELECT
        FROM @mpp.mpp_tasks AS e
        WHERE e.finished_at IS NULL
          AND e.groupid = t.groupid
          AND e.status = 'pending'
          AND e.id < t.id
          AND ${isDue('e')}
          AND NOT ${isSuperseded('e')}
          AND NOT EXISTS (
            SELECT
            FROM @mpp.mpp_tasks AS h
            WHERE h.status IN ('claimed', 'holding')
              AND h.status = 'holding'
              AND h.groupid = e.groupid
              AND (${isFrozenBy('e', 'h')})
            OFFSET 0)
        OFFSET 0)
    ORDER BY ${order}
    LIMIT 1
    FOR UPDATE OF t SKIP LOCKED`;

/**
 * Order: a held group, group 0, the oldest. Within a group one task at a time, in the order of ids, with
 * these exceptions:
 *
 * - a retry that is not due yet holds no other task back. A report that comes makes it due at once, so it
 *   is tried once more before that report; a change that keeps failing must not block a switchover;
 * - what is older than a hold is frozen until the hold ends, or an old fact would commit it; so is
 *   an after_promote that no client has reported, such as the rest of an earlier change, unless the probe
 *   alone has opened the hold;
 * - a task that a newer one supersedes does not run. As a rule it has ended with the commit of that one;
 *   the statement says so where it has not.
 *
 * A before_ task that is late is left to `sweep`, and holds no other task back either.
 *
 * Locks: FOR UPDATE on one row of mpp_tasks. SKIP LOCKED passes over a row that an operator is
 * cancelling; what comes after it in its group still waits, because the row is seen as pending.
 *
 * Rows read: pending ones by id until one can be taken, and for each of these what is open of its group.
 * OFFSET 0 keeps the planner from a join instead, which would read all that is open.
 * The view mpp_queue shows the same order.
 */
const CLAIM = `
  WITH first AS MATERIALIZED (${candidate(
    't.finished_at IS NULL AND t.groupid = ANY (CASE WHEN $4::boolean THEN $3::integer[] || 0 ELSE $3::integer[] END)',
    't.groupid = ANY ($3::integer[]) DESC, t.groupid = 0 DESC, t.id',
  )}
  ), other AS MATERIALIZED (${candidate(
    '$4::boolean AND NOT EXISTS (SELECT FROM first)',
    // An index has the pending tasks in this order.
    't.id',
  )}
  ), next AS MATERIALIZED (
    SELECT f.* FROM first AS f
    UNION ALL
    SELECT o.* FROM other AS o
  ), claimed AS (
    UPDATE @mpp.mpp_tasks AS t
    SET status = 'claimed',
        attempt = t.attempt + 1,
        claimed_by = $1,
        claimed_at = clock_timestamp(),
        not_before = NULL
    FROM next
    WHERE t.id = next.id AND NOT next.superseded
    RETURNING t.id, t.event, t.groupid, t.nodename, t.nodeport, t.secondaries, t.pause, t.source, t.attempt,
      (extract(epoch FROM t.timeout) * 1000)::float8 AS timeout_ms,
      (extract(epoch FROM t.cooldown) * 1000)::float8 AS cooldown_ms,
      (extract(epoch FROM coalesce(t.deadline, t.created_at + t.timeout) - clock_timestamp()) * 1000)::float8
        AS remaining_ms,
      t.deadline IS NOT NULL AS resumed
  )
  SELECT next.groupid AS next, next.superseded, claimed.*,
         (SELECT extract(epoch FROM c.rebuild_at)::text FROM @mpp.mpp_controllers AS c WHERE c.id = $1) AS rebuild_at
  FROM next
  LEFT JOIN claimed ON claimed.id = next.id`;

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
