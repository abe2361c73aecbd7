import type pg from 'pg';
import { formatAddress } from '../address.js';

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

/** What a topology source says of a node. */
export interface SeenAs {
  readonly source: string;
  readonly role: string;
  readonly state: string;
  /** In seconds. */
  readonly age: number;
  /** True once it is older than MPP_MEMBER_TTL. */
  readonly isStale: boolean;
  readonly isUp: boolean;
  /** Why it is not acted on, else null. */
  readonly problem: string | null;
}

/** A row of pg_dist_node, or a node that was reported and has none: then role to metadataSynced are null. */
export interface NodeStatus {
  readonly groupid: number;
  readonly nodeid: number | null;
  readonly role: string | null;
  readonly nodename: string;
  readonly nodeport: number;
  readonly cluster: string | null;
  readonly active: boolean | null;
  readonly metadataSynced: boolean | null;
  readonly seen: readonly SeenAs[];
}

/** `host:port`, as people write it. */
export function nodeName({ nodename, nodeport }: { nodename: string; nodeport: number }): string {
  return formatAddress({ host: nodename, port: nodeport });
}

/** How a node differs from its row. */
export interface NodeDifference {
  readonly text: string;
  /** Whether the primary of its group is not what the row says. */
  readonly isOfPrimary: boolean;
}

/** What the sources say that differs from the row of a node; undefined where nothing does. Pure. */
export function nodeDifference({ role, seen }: NodeStatus): NodeDifference | undefined {
  const fresh = seen.filter(({ isStale }) => !isStale);
  const find = (test: (one: SeenAs) => boolean): string | undefined =>
    fresh
      .filter(test)
      .map(({ source }) => source)
      .join(', ') || undefined;
  const primaryBy = find((one) => one.isUp && one.role === 'primary');
  const standbyBy = find((one) => one.isUp && one.role === 'secondary');
  const downBy = find((one) => !one.isUp);
  if (role !== 'primary' && primaryBy !== undefined)
    return { text: `is a primary, says ${primaryBy}`, isOfPrimary: true };
  if (role === 'primary' && primaryBy === undefined && standbyBy !== undefined)
    return { text: `is a standby, says ${standbyBy}`, isOfPrimary: true };
  if (role === 'primary' && primaryBy === undefined && downBy !== undefined)
    return { text: `is down, says ${downBy}`, isOfPrimary: true };
  if (downBy !== undefined) return { text: `is down, says ${downBy}`, isOfPrimary: false };
  const problem = fresh.find((one) => one.problem !== null)?.problem;
  if (typeof problem === 'string') return { text: problem, isOfPrimary: false };
  return role === null ? { text: 'has no row', isOfPrimary: false } : undefined;
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
  readonly maintenance: readonly {
    /** Null stands for all groups. */
    readonly groupid: number | null;
    readonly until: string;
    readonly startedBy: string;
    readonly reason: string | null;
  }[];
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
      FROM @mpp.mpp_queue),
    'maintenance', (
      SELECT coalesce(json_agg(json_build_object(
        'groupid', groupid, 'until', to_char(until, 'YYYY-MM-DD HH24:MI:SS OF'), 'startedBy', started_by, 'reason', reason
      ) ORDER BY groupid NULLS FIRST), '[]')
      FROM @mpp.mpp_maintenance
      WHERE until > clock_timestamp())
  ) AS status,
  to_regclass('pg_catalog.pg_dist_node') IS NOT NULL AS "hasNodes"`;

/** What only a further name of a registered server is, or has left its group, is no node. */
const NODES = `
  SELECT coalesce(json_agg(json_build_object(
    'groupid', coalesce(n.groupid, m.groupid), 'nodeid', n.nodeid, 'role', n.noderole::text,
    'nodename', coalesce(n.nodename, m.nodename), 'nodeport', coalesce(n.nodeport, m.nodeport),
    'cluster', n.nodecluster, 'active', n.isactive, 'metadataSynced', n.metadatasynced,
    'seen', coalesce(m.seen, '[]')
  ) ORDER BY coalesce(n.groupid, m.groupid), n.noderole, n.nodeid, m.nodename, m.nodeport), '[]') AS nodes
  FROM pg_catalog.pg_dist_node AS n
  FULL JOIN (
    SELECT t.groupid, t.nodename, t.nodeport,
           json_agg(json_build_object(
             'source', t.source, 'role', t.role, 'state', t.state, 'age', round(extract(epoch FROM t.age), 1),
             'isStale', t.stale, 'isUp', @mpp.mpp_is_up(t.state), 'problem', t.problem
           ) ORDER BY t.source) AS seen
    FROM @mpp.mpp_topology AS t
    WHERE t.state NOT IN ('alias', 'removed')
    GROUP BY t.groupid, t.nodename, t.nodeport
  ) AS m ON m.nodename = n.nodename AND m.nodeport = n.nodeport`;
