/** A row of mpp_switchovers. Durations are in milliseconds. */
export interface PastSwitchover {
  readonly id: number;
  readonly groupid: number;
  readonly kind: string;
  readonly from: string | null;
  readonly to: string | null;
  readonly reportedAt: string;
  readonly endedAt: string;
  /** For people, in UTC. */
  readonly ended: string;
  readonly openingMs: number | null;
  readonly heldMs: number | null;
  readonly committingMs: number | null;
  readonly longestWaitMs: number | null;
  readonly sessionsWaiting: number | null;
  readonly sessionsTerminated: number | null;
  readonly statementsCancelled: number | null;
  readonly pause: string | null;
  readonly source: string;
  readonly reportedBy: string;
  readonly controller: string | null;
  readonly tasks: readonly number[];
  readonly reason: string | null;
}

/** For people. */
export function elapsed(ms: number | null): string | null {
  if (ms === null) return null;
  return ms < 1_000 ? `${Math.round(ms)} ms` : `${(ms / 1_000).toFixed(2)} s`;
}

/**
 * Rows of `{ entry: PastSwitchover }`, the newest first, of the group $1 or all, of the last $2 milliseconds or all, $3 at
 * most. Locks nothing. Reads the index mpp_task_log_ended backwards; JSON, so that bigint arrives as a number.
 */
export const PAST_SWITCHOVERS = `
  SELECT json_build_object(
    'id', s.id, 'groupid', s.groupid, 'kind', s.kind, 'from', s.old_primary, 'to', s.new_primary,
    'reportedAt', s.reported_at, 'endedAt', s.ended_at,
    'ended', to_char(s.ended_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS'),
    'openingMs', round(extract(epoch FROM s.opening) * 1000, 1),
    'heldMs', round(extract(epoch FROM s.held) * 1000, 1),
    'committingMs', round(extract(epoch FROM s.committing) * 1000, 1),
    'longestWaitMs', round(extract(epoch FROM s.longest_wait) * 1000, 1),
    'sessionsWaiting', s.sessions_waiting, 'sessionsTerminated', s.sessions_terminated,
    'statementsCancelled', s.statements_cancelled, 'pause', s.pause, 'source', s.source,
    'reportedBy', s.reported_by, 'controller', s.controller, 'tasks', s.tasks, 'reason', s.reason) AS entry
  FROM @mpp.mpp_switchovers AS s
  WHERE ($1::integer IS NULL OR s.groupid = $1)
    AND ($2::float8 IS NULL OR s.ended_at >= statement_timestamp() - $2::float8 * interval '1 ms')
  ORDER BY s.id DESC
  LIMIT $3`;
