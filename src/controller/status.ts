import type pg from 'pg';

/** One controller that has registered here. Durations are in seconds. */
export interface ControllerStatus {
  readonly controller: string;
  readonly state: 'active' | 'standby' | 'gone';
  readonly host: string;
  readonly pid: number;
  readonly version: string;
  readonly strategy: string | null;
  /** Null is no limit. */
  readonly maxHolds: number | null;
  readonly startedAt: string;
  readonly heartbeatAge: number;
}

export interface HoldStatus {
  readonly groupid: number;
  readonly age: number;
  /** Seconds until its deadline; less than 0 when that has passed. */
  readonly remaining: number;
  readonly controller: string | null;
  readonly tasks: readonly number[];
  /** The server process of the hold; null while its session is gone. */
  readonly pid: number | null;
  readonly sessionsWaiting: number;
  readonly reason: string | null;
}

interface QueuedTask {
  readonly position: number;
  readonly id: number;
  readonly groupid: number;
  readonly event: string;
  readonly nodename: string;
  readonly nodeport: number;
  readonly status: string;
  readonly source: string;
  readonly attempt: number;
  readonly age: number;
  readonly why: string;
}

export interface NodeStatus {
  readonly groupid: number;
  readonly nodeid: number;
  readonly role: string;
  readonly nodename: string;
  readonly nodeport: number;
  readonly cluster: string;
  readonly active: boolean;
  readonly metadataSynced: boolean;
}

/** All that `status` shows, and what `status --json` prints. */
export interface Status {
  readonly backlog: number;
  readonly oldestPending: number | null;
  readonly controllers: readonly ControllerStatus[];
  readonly holds: readonly HoldStatus[];
  readonly queue: readonly QueuedTask[];
  /** Null where there is no pg_dist_node. */
  readonly nodes: readonly NodeStatus[] | null;
}

/**
 * Reads it all.
 *
 * @param client a session that finds the views by their bare names
 */
export async function readStatus(client: pg.ClientBase): Promise<Status> {
  const { rows } = await client.query<{ status: Omit<Status, 'nodes'>; hasNodes: boolean }>(STATUS);
  const [row] = rows;
  if (row === undefined) throw new Error('the statement STATUS returns one row');
  if (!row.hasNodes) return { ...row.status, nodes: null };
  const nodes = await client.query<{ nodes: NodeStatus[] }>(NODES);
  return { ...row.status, nodes: nodes.rows[0]?.nodes ?? [] };
}

/** JSON is built by the server, so that bigint and interval arrive as numbers. */
const STATUS = `
  SELECT json_build_object(
    'backlog', (SELECT max(backlog) FROM @mpp.mpp_status),
    'oldestPending', (SELECT round(extract(epoch FROM max(oldest_pending)), 1) FROM @mpp.mpp_status),
    'controllers', (
      SELECT coalesce(json_agg(json_build_object(
        'controller', controller, 'state', state, 'host', host, 'pid', pid, 'version', version,
        'strategy', strategy, 'maxHolds', max_holds, 'startedAt', started_at,
        'heartbeatAge', round(extract(epoch FROM clock_timestamp() - heartbeat_at), 1)
      ) ORDER BY state, started_at), '[]')
      FROM @mpp.mpp_status
      WHERE controller IS NOT NULL),
    'holds', (
      SELECT coalesce(json_agg(json_build_object(
        'groupid', groupid, 'age', round(extract(epoch FROM clock_timestamp() - held_since), 1),
        'remaining', round(extract(epoch FROM deadline - clock_timestamp()), 1),
        'controller', controller, 'tasks', tasks, 'pid', pid,
        'sessionsWaiting', sessions_waiting, 'reason', reason
      ) ORDER BY groupid), '[]')
      FROM @mpp.mpp_holds),
    'queue', (
      SELECT coalesce(json_agg(json_build_object(
        'position', position, 'id', id, 'groupid', groupid, 'event', event,
        'nodename', nodename, 'nodeport', nodeport, 'status', status, 'source', source,
        'attempt', attempt, 'age', round(extract(epoch FROM age), 1), 'why', why
      ) ORDER BY position), '[]')
      FROM @mpp.mpp_queue)
  ) AS status,
  to_regclass('pg_catalog.pg_dist_node') IS NOT NULL AS "hasNodes"`;

const NODES = `
  SELECT coalesce(json_agg(json_build_object(
    'groupid', groupid, 'nodeid', nodeid, 'role', noderole::text,
    'nodename', nodename, 'nodeport', nodeport, 'cluster', nodecluster,
    'active', isactive, 'metadataSynced', metadatasynced
  ) ORDER BY groupid, noderole, nodeid), '[]') AS nodes
  FROM pg_catalog.pg_dist_node`;
