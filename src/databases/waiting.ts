import type { Queryable } from '../postgres/queries.js';
import type { Attempt } from '../tasks/finish.js';

/** What a look into this database says of a report that waits for the other databases. */
interface OwnState {
  /** True when another event of the group has been reported, so that no session is to wait any longer. */
  readonly hurried: boolean;
  /** Databases to which it is yet to be forwarded. */
  readonly unsent: readonly string[];
}

/** What a look into another database says of the report's copy there. */
export interface CopyState {
  /** True when the group's traffic waits there, for whatever report. */
  readonly held: boolean;
  /** Status and reason of the copy; null when there is none. */
  readonly status: string | null;
  readonly reason: string | null;
  /** True when another session's report is about to make it wait there. */
  readonly coming: boolean;
  /** True when a controller is active there. */
  readonly led: boolean;
}

/** What is known of one other database. */
export interface Known {
  /** True once the report was forwarded. */
  readonly forwarded: boolean;
  /** Why it could not be reached; undefined while it could. */
  readonly failure: string | undefined;
  readonly copy: CopyState | undefined;
  /** For how long no controller has been active there, in milliseconds. */
  readonly unledMs: number;
}

const OPEN: ReadonlySet<string> = new Set(['pending', 'claimed', 'holding']);
/** How long a database may be without an active controller: another one takes less to take over. */
const UNLED_MOST_MS = 2_000;

/**
 * Whether a report must wait for another database any longer, and what is to be said if it need not. Pure.
 *
 * @returns undefined to wait; null when the traffic waits there; else why it does not, or not wholly.
 */
export function judge({ forwarded, failure, copy, unledMs }: Known): string | null | undefined {
  if (failure !== undefined) return failure;
  if (!forwarded || copy === undefined) return undefined;
  const { held, status, reason, coming, led } = copy;
  if (held) return status === 'holding' ? reason : null;
  if (status === null && !coming) return 'a newer report was made there';
  // One that is holding without a lock has lost its controller, and is soon taken up again.
  if (status !== null && !OPEN.has(status)) return reason ?? `its task is ${status}`;
  if (!led && unledMs > UNLED_MOST_MS) return 'no controller is active there';
  return undefined;
}

/**
 * Writes down that the group's traffic waits here, before the report is acknowledged: a database whose
 * own report waits for this one is not to wait for the acknowledgement, or both would.
 *
 * @returns milliseconds until the report is too late to be acknowledged, or undefined when there is nothing to
 *   wait for: the task is a copy itself, or not a client's, or claimed by another attempt.
 */
export async function markHeld(db: Queryable, attempt: Attempt): Promise<number | undefined> {
  const { rows } = await db.query<{ remaining_ms: number }>({
    name: 'mpp-mark-held',
    text: MARK_HELD,
    values: [attempt.id, attempt.controller, attempt.attempt],
  });
  return rows[0]?.remaining_ms;
}

const MARK_HELD = `
  UPDATE @mpp.mpp_tasks AS t
  -- One that is taken up again waits again: until now its traffic went on.
  SET held_at = clock_timestamp()
  WHERE t.id = $1 AND t.claimed_by = $2 AND t.attempt = $3 AND t.status = 'claimed'
    AND t.source = 'client' AND t.origin_id IS NULL
  RETURNING (extract(epoch FROM coalesce(t.deadline, t.created_at + t.timeout) - clock_timestamp()) * 1000)::float8
    AS remaining_ms`;

export async function lookHere(db: Queryable, taskId: string): Promise<OwnState> {
  const { rows } = await db.query<OwnState>({
    name: 'mpp-look-here',
    text: LOOK_HERE,
    values: [taskId],
  });
  return rows[0] ?? { hurried: true, unsent: [] };
}

const LOOK_HERE = `
  SELECT EXISTS (
           SELECT
           FROM @mpp.mpp_tasks AS n
           WHERE n.finished_at IS NULL
             AND n.groupid = t.groupid
             AND n.id > t.id
             AND n.status = 'pending'
             AND n.event <> 'suspect'
             AND (n.event, n.nodename, n.nodeport) <> (t.event, t.nodename, t.nodeport)
         ) AS hurried,
         ARRAY(SELECT o.database::text FROM @mpp.mpp_outbox AS o WHERE o.task_id = t.id) AS unsent
  FROM @mpp.mpp_tasks AS t
  WHERE t.id = $1 AND t.finished_at IS NULL`;

/** @param db a session in the other database */
export async function lookThere(
  db: Queryable,
  report: { origin: string; id: string; groupid: number },
): Promise<CopyState | undefined> {
  const { rows } = await db.query<CopyState>({
    name: 'mpp-look-there',
    text: LOOK_THERE,
    values: [report.origin, report.id, report.groupid],
  });
  return rows[0];
}

/** The lock proves that the session that marked the hold is alive. */
const LOOK_THERE = `
  WITH lock AS MATERIALIZED (
    SELECT l.classid, l.objid
    FROM pg_locks AS l
    WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 2
      AND l.database = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
  )
  SELECT EXISTS (SELECT FROM @mpp.mpp_group_sessions AS s WHERE s.groupid = $3)
           AND EXISTS (
             SELECT
             FROM @mpp.mpp_tasks AS t
             WHERE t.finished_at IS NULL
               AND t.groupid = $3
               AND (t.status = 'holding' OR (t.status = 'claimed' AND t.held_at >= t.claimed_at))
           ) AS held,
         EXISTS (
           SELECT
           FROM @mpp.mpp_tasks AS t
           WHERE t.finished_at IS NULL
             AND t.groupid = $3
             AND t.event IN ('before_demote', 'before_promote')
             AND t.source = 'client'
         ) AS coming,
         @mpp.mpp_leader_pid() IS NOT NULL AS led,
         copy.status, copy.reason
  FROM (VALUES (0)) AS one (row)
  LEFT JOIN LATERAL (
    SELECT t.status, t.reason
    FROM @mpp.mpp_tasks AS t
    WHERE t.origin_id = $2 AND t.origin_database = $1
    ORDER BY t.created_at DESC
    LIMIT 1
  ) AS copy ON true`;
