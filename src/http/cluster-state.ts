import type { Queryable } from '../postgres/queries.js';
import type { TaskEvent } from '../tasks/task.js';

/** The state of the cluster, as one statement has read it. Times are in seconds since 1970, ages in seconds. */
export interface ClusterState {
  /** By event; an event without pending tasks is missing. */
  readonly pending: Partial<Readonly<Record<TaskEvent, number>>>;
  readonly oldestPending: number | null;
  readonly ended: readonly EndedTasks[];
  /** Tasks that ended until then are in `ended`, by the server's clock. */
  readonly endedUntil: string;
  readonly holds: readonly HeldGroup[];
  readonly groups: readonly GroupState[];
  readonly members: readonly MemberCount[];
  readonly sources: readonly SourceState[];
  readonly isInMaintenance: boolean;
  readonly connections: readonly { readonly application: string; readonly count: number }[];
}

export interface EndedTasks {
  readonly event: string;
  readonly status: string;
  readonly source: string;
  readonly count: number;
}

interface HeldGroup {
  readonly groupid: number;
  readonly deadline: number;
  readonly waiting: number;
  readonly longest: number;
}

interface GroupState {
  readonly groupid: number;
  readonly isSynced: boolean;
  readonly isOutOfSync: boolean;
  readonly switchedAt: number | null;
}

interface MemberCount {
  readonly groupid: number;
  readonly role: string;
  readonly state: string;
  readonly count: number;
}

interface SourceState {
  readonly source: string;
  readonly isFresh: boolean;
  readonly reportedAt: number;
}

interface ReadOptions {
  /** `endedUntil` of the reading before; null for all since this leadership began. */
  readonly since: string | null;
  readonly ttlMs: number;
  /** Whose reports count. */
  readonly sources: readonly string[];
  /** See AbstractMPP.nodesQuery. */
  readonly nodesQuery: string;
}

/** @param db a session that names the schema as `@mpp.` */
export async function readClusterState(db: Queryable, options: ReadOptions): Promise<ClusterState> {
  const { since, ttlMs, sources, nodesQuery } = options;
  const { rows } = await db.query<{ state: ClusterState }>({
    name: 'mpp-cluster-state',
    text: clusterStateStatement(nodesQuery),
    values: [since, ttlMs, sources, ENDED_AFTER_MS, ENDED_MOST_MS],
  });
  const [row] = rows;
  if (row === undefined)
    throw new Error('the statement for the state of the cluster returns one row');
  return row.state;
}

/** A task that ended is counted so much later: its transaction has committed by then. */
const ENDED_AFTER_MS = 2_000;
/** After a longer time without a scrape, those that ended before are not counted. */
const ENDED_MOST_MS = 3_600_000;

/**
 * Takes no lock beyond those of a SELECT, and waits for none but a lock of a whole table. Beside millions of ended
 * tasks it reads, by index: what is open; what ended since the last reading (mpp_tasks_finished); and of each group
 * and source the newest 20 reports of a promotion (mpp_tasks_facts).
 *
 * - `member`: each node once, by the newest report of it.
 * - `switched`: the newest change of each group's primary, by the rows of the log. Rows are compared, not columns:
 *   with `groupid = …` the planner may go through the primary key, and reads the whole table for a group that has no
 *   such report.
 */
// eslint-disable-next-line max-lines-per-function -- one statement
export function clusterStateStatement(nodesQuery: string): string {
  return `
  WITH node AS MATERIALIZED (
    SELECT n.groupid, n.nodename, n.nodeport, n.noderole, d.hasmetadata, d.metadatasynced
    FROM (${nodesQuery}) AS n
    JOIN pg_catalog.pg_dist_node AS d ON d.nodeid = n.nodeid
    WHERE n.in_cluster
  ), member AS MATERIALIZED (
    SELECT DISTINCT ON (m.nodename, m.nodeport)
           m.nodename, m.nodeport, m.groupid, m.role, m.state, m.reason,
           m.reported_at > statement_timestamp() - $2::float8 * interval '1 millisecond' AS fresh
    FROM @mpp.mpp_members AS m
    WHERE m.source = ANY ($3::text[])
    ORDER BY m.nodename, m.nodeport, m.reported_at DESC
  ), pending AS MATERIALIZED (
    SELECT t.event, count(*) AS count, min(t.created_at) AS oldest
    FROM @mpp.mpp_tasks AS t
    WHERE t.status = 'pending'
    GROUP BY t.event
  ), ended AS MATERIALIZED (
    SELECT t.event, t.status, t.source, count(*) AS count
    FROM @mpp.mpp_tasks AS t
    WHERE t.finished_at IS NOT NULL
      AND t.finished_at > greatest(
        coalesce($1::timestamptz, (SELECT l.since FROM @mpp.mpp_leadership AS l)),
        statement_timestamp() - $5::float8 * interval '1 millisecond')
      AND t.finished_at <= statement_timestamp() - $4::float8 * interval '1 millisecond'
    GROUP BY t.event, t.status, t.source
  ), held AS MATERIALIZED (
    SELECT t.groupid, max(t.deadline) AS deadline
    FROM @mpp.mpp_tasks AS t
    WHERE t.finished_at IS NULL AND t.status = 'holding'
    GROUP BY t.groupid
  ), ${HOLDS_AND_GROUPS}
  SELECT json_build_object(
    'pending', (SELECT coalesce(json_object_agg(p.event, p.count), '{}') FROM pending AS p),
    'oldestPending', (SELECT extract(epoch FROM clock_timestamp() - min(p.oldest)) FROM pending AS p),
    'ended', (SELECT coalesce(json_agg(e), '[]') FROM ended AS e),
    'endedUntil', greatest($1::timestamptz, statement_timestamp() - $4::float8 * interval '1 millisecond'),
    'holds', (SELECT coalesce(json_agg(h), '[]') FROM hold AS h),
    'groups', (SELECT coalesce(json_agg(g), '[]') FROM grp AS g),
    'members', (
      SELECT coalesce(json_agg(m), '[]')
      FROM (
        SELECT m.groupid, m.role,
               CASE WHEN NOT m.fresh THEN 'stale' WHEN @mpp.mpp_is_up(m.state) THEN 'up' ELSE 'down' END AS state,
               count(*) AS count
        FROM member AS m
        WHERE m.state <> 'removed'
        GROUP BY 1, 2, 3
      ) AS m),
    'sources', (
      SELECT coalesce(json_agg(s), '[]')
      FROM (
        SELECT m.source, extract(epoch FROM max(m.reported_at)) AS "reportedAt",
               max(m.reported_at) > statement_timestamp() - $2::float8 * interval '1 millisecond' AS "isFresh"
        FROM @mpp.mpp_members AS m
        WHERE m.source = ANY ($3::text[])
        GROUP BY m.source
      ) AS s),
    'isInMaintenance', EXISTS (
      SELECT FROM @mpp.mpp_maintenance AS m WHERE m.until > statement_timestamp()),
    'connections', (
      SELECT coalesce(json_agg(c), '[]')
      FROM (
        SELECT a.application_name AS application, count(*) AS count
        FROM pg_stat_get_activity(NULL) AS a
        WHERE a.datid = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
          AND a.application_name LIKE 'mpp-controller %'
        GROUP BY a.application_name
      ) AS c)
  ) AS state`;
}

const HOLDS_AND_GROUPS = `
  hold AS MATERIALIZED (
    SELECT h.groupid, extract(epoch FROM h.deadline) AS deadline, w.waiting, w.longest
    FROM held AS h
    CROSS JOIN LATERAL (
      SELECT count(DISTINCT l.pid) AS waiting,
             greatest(coalesce(max(extract(epoch FROM clock_timestamp() - l.waitstart)), 0), 0) AS longest
      FROM (
        SELECT array_agg(s.pid) AS pids
        FROM (
          SELECT g.pid FROM @mpp.mpp_group_sessions AS g WHERE g.groupid = h.groupid
          UNION ALL
          SELECT a.pid
          FROM pg_stat_get_activity(NULL) AS a
          WHERE a.application_name = 'mpp-controller shared locks'
            AND a.datid = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
        ) AS s
      ) AS own
      JOIN pg_locks AS l ON NOT l.granted AND pg_blocking_pids(l.pid) && own.pids
    ) AS w
  ), switched AS MATERIALIZED (
    SELECT g.groupid, max(s.finished_at) AS at
    FROM (SELECT DISTINCT n.groupid FROM node AS n) AS g
    CROSS JOIN unnest(ARRAY['client', 'sync', 'probe']) AS src (source)
    CROSS JOIN LATERAL (
      SELECT t.finished_at
      FROM (
        SELECT f.id, f.groupid, f.source, f.status, f.finished_at
        FROM @mpp.mpp_tasks AS f
        WHERE f.event = 'after_promote'
          AND (f.groupid, f.source, f.id) <= (g.groupid, src.source, 9223372036854775807)
        ORDER BY f.groupid DESC, f.source DESC, f.id DESC
        LIMIT 20
      ) AS t
      WHERE t.groupid = g.groupid AND t.source = src.source AND t.status = 'done' AND EXISTS (
        SELECT
        FROM @mpp.mpp_task_log AS l
        WHERE l.task_id = t.id AND l.status = 'done'
          AND jsonb_path_query_first(l.node_before, '$[*] ? (@.noderole == "primary")') - 'nodeid'
              <> jsonb_path_query_first(l.node_after, '$[*] ? (@.noderole == "primary")') - 'nodeid')
      ORDER BY t.id DESC
      LIMIT 1
    ) AS s
    GROUP BY g.groupid
  ), grp AS MATERIALIZED (
    SELECT n.groupid,
           bool_and(n.metadatasynced OR NOT n.hasmetadata) AS "isSynced",
           EXISTS (
             SELECT
             FROM member AS m
             WHERE m.groupid = n.groupid AND m.fresh AND m.role = 'primary' AND @mpp.mpp_is_up(m.state)
               AND m.reason IS NULL
               AND NOT EXISTS (
                 SELECT
                 FROM node AS r
                 WHERE r.groupid = n.groupid AND r.noderole = 'primary'
                   AND r.nodename = m.nodename AND r.nodeport = m.nodeport)) AS "isOutOfSync",
           (SELECT extract(epoch FROM s.at) FROM switched AS s WHERE s.groupid = n.groupid) AS "switchedAt"
    FROM node AS n
    GROUP BY n.groupid
  )`;
