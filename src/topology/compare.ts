import type { Queryable } from '../postgres/queries.js';
import { formatAddress, type Address } from '../address.js';
import { decideSync, type ComparedGroup, type SyncTask } from './sync-decision.js';

/** A task that the comparison made. */
interface MadeTask {
  readonly id: string;
  readonly groupid: number;
  /** `host:port` of the primary, as mpp_tasks would list it. */
  readonly node: string;
  readonly secondaries: readonly string[] | null;
}

/** Why nothing is done for a group whose members differ from the catalog. */
export interface Problem {
  readonly groupid: number;
  readonly problem: string;
}

export interface Comparison {
  readonly tasks: readonly MadeTask[];
  readonly problems: readonly Problem[];
}

interface CompareOptions {
  /** SELECT of the catalog's rows, see AbstractMPP.nodesQuery: a constant, never input. */
  readonly nodesQuery: string;
  /** How long a report counts, and how long a node must be down to lose its row, in milliseconds. */
  readonly ttlMs: number;
  /** Whose reports count; those of a source that was switched off would contradict the others. */
  readonly sources: readonly string[];
}

/**
 * Compares what is reported of the cluster (mpp_members) with the catalog, and makes an after_promote
 * task of source `sync` for each group that differs. One statement says what differs; where nothing does,
 * nothing is written and no transaction id is taken. What follows from it, decideSync says.
 *
 * @param db a session that finds mpp-controller's objects first.
 */
export async function compareMembers(db: Queryable, options: CompareOptions): Promise<Comparison> {
  const { rows } = await db.query<{ differing: Differing | null; newer: Newer | null }>({
    name: 'mpp-compare',
    text: compareStatement(options.nodesQuery),
    values: [options.ttlMs, options.sources],
  });
  const tasks: WantedTask[] = [];
  const problems: Problem[] = [];
  for (const { differing, newer } of rows) {
    if (newer !== null) problems.push({ groupid: 0, problem: newerProblem(newer) });
    if (differing === null) continue;
    const { groupid, confirmedId } = differing;
    const decision = decideSync(differing, options.ttlMs);
    if (decision.kind === 'problem') problems.push({ groupid, problem: decision.problem });
    if (decision.kind === 'task') tasks.push({ ...decision.task, groupid, confirmedId });
  }
  return { tasks: tasks.length === 0 ? [] : await makeTasks(db, tasks), problems };
}

/** A group as the statement gives it. */
interface Differing extends ComparedGroup {
  readonly groupid: number;
  /** Of the newest confirmed report, see ComparedGroup.confirmedMs. */
  readonly confirmedId: string | null;
}

/** A coordinator that was promoted after this server. */
interface Newer {
  readonly host: string;
  readonly port: number;
  readonly timeline: number;
}

function newerProblem({ host, port, timeline }: Newer): string {
  const address = formatAddress({ host, port });
  return `nothing is done: ${address} is the coordinator now, on timeline ${timeline}`;
}

/** Groups that one comparison deals with. The caller compares again at once while tasks are made. */
const MOST_GROUPS = 250;
/** Members of one group that are looked at: those that any client invented must not fill this process. */
const MOST_MEMBERS = 1_000;

/**
 * A report of a node that has not become the primary that it says in several attempts, some ten seconds. It
 * goes on being tried, and does not keep a node from being followed that says so itself. The
 * migrations have the same rule, in mpp_supersede().
 */
const IS_STUCK = "t.event = 'after_promote' AND t.status = 'pending' AND t.attempt >= 5";

/** A hold that the probe has opened, or is about to: it ends as soon as the group has a primary again. */
const IS_SUSPECT = "t.event = 'suspect' AND t.source = 'probe'";

/** A task of the group `groupid` that comes before what the comparison would ask for. */
function comesFirst(groupid: string): string {
  return `EXISTS (
      SELECT
      FROM @mpp.mpp_tasks AS t
      WHERE t.finished_at IS NULL
        AND t.groupid = ${groupid}
        AND (t.source = 'client' OR t.event <> 'after_promote')
        AND NOT (${IS_STUCK})
        AND NOT (${IS_SUSPECT}))`;
}

/** The newest report of a client on the group `groupid` that came true; at most one row. */
function confirmedReport(groupid: string): string {
  return `
      SELECT t.id, t.created_at
      FROM @mpp.mpp_tasks AS t
      WHERE t.groupid = ${groupid} AND t.event = 'after_promote' AND t.source = 'client' AND t.status = 'done'
      ORDER BY t.id DESC
      LIMIT 1`;
}

/** How long ago it was, in milliseconds, by the same clock for all that one statement reads. */
function ageMs(time: string): string {
  return `extract(epoch FROM statement_timestamp() - ${time})::float8 * 1000`;
}

/**
 * Says what differs. Takes no lock beyond those of a SELECT.
 *
 * From the cheap to the dear: `differing` is one hash join of all members with all rows of the catalog,
 * and as a rule gives no group; everything after it looks at those groups alone.
 *
 * - `newer`: a coordinator that was promoted after this server. What this one says is not true any more
 *   then, and nothing is done; that this controller stops is for NewerCoordinatorWatch, which asks that server itself. A report
 *   by mpp_report alone does not count here: any client could stop the work on every group with it.
 * - `differing`: a fresh member whose row is not as it says, or a task of the controller's that may be out of date; a
 *   suspect of the probe is one.
 * - `asked`: some of them; those without the controller's tasks first, the rest in random order, so that
 *   groups for which nothing can be done do not keep others out.
 * - `candidate`: without a hold, but for one of the probe, without a task of a client, whose word comes
 *   first, and not in maintenance.
 * - `member`: the fresh reports, without the further names of a server that the catalog has under another one.
 */
// eslint-disable-next-line max-lines-per-function -- one statement
export function compareStatement(nodesQuery: string): string {
  return `
  WITH node AS MATERIALIZED (
    ${nodesQuery}
  ), newer AS MATERIALIZED (
    SELECT m.nodename, m.nodeport, m.timeline
    FROM @mpp.mpp_members AS m
    WHERE m.groupid = 0 AND m.source = ANY ($2::text[]) AND m.source <> 'table'
      AND m.role = 'primary' AND @mpp.mpp_is_up(m.state)
      AND m.reported_at > statement_timestamp() - $1::float8 * interval '1 millisecond'
      AND m.timeline > ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::integer
    LIMIT 1
  ), differing AS (
    SELECT m.groupid, false AS tasked
    FROM @mpp.mpp_members AS m
    LEFT JOIN node AS n ON n.nodename = m.nodename AND n.nodeport = m.nodeport
    WHERE NOT EXISTS (SELECT FROM newer) AND m.source = ANY ($2::text[])
      AND m.reported_at > statement_timestamp() - $1::float8 * interval '1 millisecond'
      AND CASE
        WHEN @mpp.mpp_is_up(m.state) AND m.role = 'primary'
          THEN n.groupid IS DISTINCT FROM m.groupid OR n.noderole <> 'primary'
        WHEN @mpp.mpp_is_up(m.state) AND NOT m.noloadbalance
          THEN n.groupid IS DISTINCT FROM m.groupid AND n.noderole IS DISTINCT FROM 'unavailable'
        ELSE n.groupid = m.groupid AND n.noderole = 'secondary'
          AND (m.noloadbalance OR m.state = 'removed'
               OR m.since <= statement_timestamp() - $1::float8 * interval '1 millisecond')
      END
    UNION ALL
    SELECT t.groupid, true
    FROM @mpp.mpp_tasks AS t
    WHERE NOT EXISTS (SELECT FROM newer) AND t.finished_at IS NULL AND t.event = 'after_promote' AND t.source <> 'client'
    UNION ALL
    SELECT t.groupid, false
    FROM @mpp.mpp_tasks AS t
    WHERE NOT EXISTS (SELECT FROM newer) AND t.finished_at IS NULL AND ${IS_SUSPECT}
  ), asked AS MATERIALIZED (
    SELECT d.groupid
    FROM differing AS d
    GROUP BY d.groupid
    ORDER BY bool_or(d.tasked), random()
    LIMIT ${MOST_GROUPS}
  ), candidate AS MATERIALIZED (
    SELECT a.groupid
    FROM asked AS a
    WHERE NOT ${comesFirst('a.groupid')}
      AND NOT @mpp.mpp_in_maintenance(a.groupid)
  ), member AS MATERIALIZED (
    SELECT m.groupid, m.nodename AS host, m.nodeport AS port, m.source, m.role, m.timeline,
           @mpp.mpp_is_up(m.state) AS "isUp", m.state = 'removed' AS "isRemoved",
           ${ageMs('m.since')} AS "sinceMs", ${ageMs('m.reported_at')} AS "reportedMs",
           EXISTS (
             SELECT
             FROM @mpp.mpp_members AS s
             WHERE s.nodename = m.nodename AND s.nodeport = m.nodeport AND s.noloadbalance
               AND s.source = ANY ($2::text[])
           ) AS "servesNoReads",
           row_number() OVER (
             PARTITION BY m.groupid
             ORDER BY m.role, n.nodeid IS NULL, m.nodename, m.nodeport, m.source) AS place
    FROM candidate AS c
    JOIN @mpp.mpp_members AS m ON m.groupid = c.groupid
    LEFT JOIN node AS n ON n.nodename = m.nodename AND n.nodeport = m.nodeport
    WHERE m.source = ANY ($2::text[])
      AND m.reported_at > statement_timestamp() - $1::float8 * interval '1 millisecond'
      AND NOT EXISTS (
        SELECT
        FROM @mpp.mpp_members AS a
        WHERE a.nodename = m.nodename AND a.nodeport = m.nodeport AND a.state = 'alias'
          AND a.source = ANY ($2::text[])
          AND a.reported_at > statement_timestamp() - $1::float8 * interval '1 millisecond')
  ), members AS (
    SELECT m.groupid, json_agg(m) AS list
    FROM member AS m
    WHERE m.place <= ${MOST_MEMBERS}
    GROUP BY m.groupid
  ), here AS (
    SELECT c.groupid AS of_group, n.*
    FROM candidate AS c
    JOIN node AS n ON n.groupid = c.groupid AND n.in_cluster
    UNION
    SELECT m.groupid, n.*
    FROM member AS m
    JOIN node AS n ON n.nodename = m.host AND n.nodeport = m.port
  ), nodes AS (
    SELECT h.of_group AS groupid,
           json_agg(json_build_object(
             'nodeid', h.nodeid, 'host', h.nodename, 'port', h.nodeport, 'role', h.noderole,
             'isOfGroup', h.in_cluster AND h.groupid = h.of_group, 'isInCluster', h.in_cluster,
             'cloneOf', h.cloneof)) AS list
    FROM here AS h
    GROUP BY h.of_group
  )
  SELECT json_build_object(
           'groupid', c.groupid,
           'members', coalesce(members.list, '[]'),
           'nodes', coalesce(nodes.list, '[]'),
           'confirmedId', confirmed.id::text,
           'confirmedMs', ${ageMs('confirmed.created_at')},
           'suspectedMs', ${ageMs('suspect.created_at')},
           'asked', asked.list,
           'refused', refused.task) AS differing,
         NULL::json AS newer
  FROM candidate AS c
  LEFT JOIN members ON members.groupid = c.groupid
  LEFT JOIN nodes ON nodes.groupid = c.groupid
  LEFT JOIN LATERAL (${confirmedReport('c.groupid')}
  ) AS confirmed ON true
  CROSS JOIN LATERAL (
    SELECT max(t.created_at) AS created_at
    FROM @mpp.mpp_tasks AS t
    WHERE t.finished_at IS NULL AND t.groupid = c.groupid AND ${IS_SUSPECT}
  ) AS suspect
  CROSS JOIN LATERAL (
    SELECT coalesce(json_agg(json_build_object('host', t.nodename, 'port', t.nodeport)), '[]') AS list
    FROM @mpp.mpp_tasks AS t
    WHERE t.finished_at IS NULL AND t.groupid = c.groupid AND NOT (${IS_SUSPECT})
  ) AS asked
  LEFT JOIN LATERAL (
    SELECT json_build_object('primary', json_build_object('host', last.nodename, 'port', last.nodeport),
                             'secondaries', last.secondaries) AS task
    FROM (
      SELECT t.*
      FROM @mpp.mpp_tasks AS t
      WHERE t.groupid = c.groupid AND t.event = 'after_promote' AND t.source = 'sync'
      ORDER BY t.id DESC
      LIMIT 1
    ) AS last
    WHERE last.status IN ('failed', 'discarded', 'cancelled')
      AND last.finished_at > statement_timestamp() - interval '5 minutes'
  ) AS refused ON true
  UNION ALL
  SELECT NULL, json_build_object('host', s.nodename, 'port', s.nodeport, 'timeline', s.timeline)
  FROM newer AS s`;
}

interface WantedTask extends SyncTask {
  readonly groupid: number;
  readonly confirmedId: string | null;
}

/** Makes the tasks, but for groups of which a client has said something since they were compared. */
async function makeTasks(db: Queryable, wanted: readonly WantedTask[]): Promise<MadeTask[]> {
  const { rows } = await db.query<{ groupid: number; id: string }>({
    name: 'mpp-make-tasks',
    text: MAKE_TASKS,
    values: [
      wanted.map(({ groupid }) => groupid),
      wanted.map(({ primary }) => primary.host),
      wanted.map(({ primary }) => primary.port),
      wanted.map(({ secondaries }) => secondaries && JSON.stringify(list(secondaries))),
      wanted.map(({ confirmedId }) => confirmedId),
    ],
  });
  return rows.flatMap(({ groupid, id }) => {
    const task = wanted.find((one) => one.groupid === groupid);
    if (task === undefined) return [];
    const { primary, secondaries } = task;
    return [
      { id, groupid, node: formatAddress(primary), secondaries: secondaries && list(secondaries) },
    ];
  });
}

function list(addresses: readonly Address[]): string[] {
  return addresses.map(formatAddress);
}

/** By mpp_submit, because INSERT fires its statement triggers even for no row, and a notification is a write. */
const MAKE_TASKS = `
  SELECT w.groupid,
         @mpp.mpp_submit('after_promote'::text, w.groupid, w.nodename, w.nodeport, named.secondaries,
           NULL::interval, NULL::interval, NULL::text, 'sync'::text)::text AS id
  FROM unnest($1::integer[], $2::text[], $3::integer[], $4::text[], $5::bigint[])
    AS w (groupid, nodename, nodeport, secondaries, confirmed_id)
  CROSS JOIN LATERAL (
    SELECT CASE WHEN w.secondaries IS NOT NULL
             THEN ARRAY(SELECT json_array_elements_text(w.secondaries::json)) END AS secondaries
  ) AS named
  LEFT JOIN LATERAL (${confirmedReport('w.groupid')}
  ) AS confirmed ON true
  WHERE confirmed.id IS NOT DISTINCT FROM w.confirmed_id
    AND NOT ${comesFirst('w.groupid')}
    AND NOT @mpp.mpp_in_maintenance(w.groupid)`;
