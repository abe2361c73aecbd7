import type pg from 'pg';
import { readStatus, type Status } from './status.js';
import { DEFAULT_LIMITS, type Failures, readFailures } from './trouble.js';

/** A row of mpp_switchovers. Durations are in milliseconds. */
export interface PastSwitchover {
  readonly groupid: number;
  readonly kind: string;
  readonly from: string | null;
  readonly to: string | null;
  /** YYYY-MM-DD HH:MM:SS in UTC. */
  readonly endedAt: string;
  readonly openingMs: number | null;
  readonly heldMs: number | null;
  readonly committingMs: number | null;
  readonly longestWaitMs: number | null;
  readonly sessionsWaiting: number | null;
  readonly sessionsTerminated: number | null;
  readonly reason: string | null;
}

/** A row of mpp_blockers. */
export interface PresentBlocker {
  readonly groupid: number;
  readonly blocks: string;
  readonly described: string;
  /** HH:MM:SS in UTC; null where it is waited for. */
  readonly endsAt: string | null;
}

/** What a person looks at first. */
export interface Overview {
  readonly status: Status;
  readonly failures: readonly Failures[];
  readonly blockers: readonly PresentBlocker[];
  /** The newest first. */
  readonly switchovers: readonly PastSwitchover[];
}

const NEWEST = 10;

/** @param client a session that names the schema as `@mpp.` */
export async function readOverview(client: pg.ClientBase): Promise<Overview> {
  const status = await readStatus(client);
  const failures = await readFailures(client, DEFAULT_LIMITS.failedMs);
  const { rows } = await client.query<Pick<Overview, 'blockers' | 'switchovers'>>(OVERVIEW, [
    NEWEST,
  ]);
  const [{ blockers, switchovers } = { blockers: [], switchovers: [] }] = rows;
  return { status, failures, blockers, switchovers };
}

/** Locks nothing. Reads what is open, and the index mpp_task_log_ended backwards. */
const OVERVIEW = `
  SELECT (
    SELECT coalesce(json_agg(json_build_object(
      'groupid', b.groupid, 'blocks', b.blocks, 'described', b.described,
      'endsAt', to_char(b.ends_at AT TIME ZONE 'UTC', 'HH24:MI:SS')
    ) ORDER BY b.groupid, b.ends_at), '[]')
    FROM @mpp.mpp_blockers AS b) AS blockers, (
    SELECT coalesce(json_agg(json_build_object(
      'groupid', s.groupid, 'kind', s.kind, 'from', s.old_primary, 'to', s.new_primary,
      'endedAt', to_char(s.ended_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS'),
      'openingMs', round(extract(epoch FROM s.opening) * 1000),
      'heldMs', round(extract(epoch FROM s.held) * 1000),
      'committingMs', round(extract(epoch FROM s.committing) * 1000),
      'longestWaitMs', round(extract(epoch FROM s.longest_wait) * 1000),
      'sessionsWaiting', s.sessions_waiting, 'sessionsTerminated', s.sessions_terminated, 'reason', s.reason
    ) ORDER BY s.id DESC), '[]')
    FROM (SELECT w.* FROM @mpp.mpp_switchovers AS w ORDER BY w.id DESC LIMIT $1) AS s) AS switchovers`;
