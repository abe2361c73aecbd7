import type { Queryable } from '../postgres/queries.js';

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
 * task of source `sync` for each group that differs. One statement; nothing is written, and no
 * transaction id taken, when there is nothing to do.
 *
 * @param db a session that finds mpp-controller's objects first.
 */
export async function compareMembers(db: Queryable, options: CompareOptions): Promise<Comparison> {
  const { rows } = await db.query<{
    groupid: number;
    id: string | null;
    node: string | null;
    secondaries: string[] | null;
    problem: string | null;
  }>({
    name: 'mpp-compare',
    text: compareStatement(options.nodesQuery),
    values: [options.ttlMs, options.sources],
  });
  return {
    tasks: rows.flatMap(({ groupid, id, node, secondaries }) =>
      id === null || node === null ? [] : [{ id, groupid, node, secondaries }],
    ),
    problems: rows.flatMap(({ groupid, problem }) =>
      problem === null ? [] : [{ groupid, problem }],
    ),
  };
}

/** Groups that one comparison deals with. The caller compares again at once while tasks are made. */
const MOST_GROUPS = 250;
/** Secondaries that a task may name. Members that were invented must not make the statement fail. */
const MOST_SECONDARIES = 64;

/**
 * A report of a node that has not become the primary that it says in several attempts, some ten seconds. It
 * goes on being tried, and does not keep a node from being followed that says so itself. The
 * migrations have the same rule, in mpp_supersede().
 */
const IS_STUCK = "t.event = 'after_promote' AND t.status = 'pending' AND t.attempt >= 5";

/** A hold that the probe has opened, or is about to: it ends as soon as the group has a primary again. */
const IS_SUSPECT = "t.event = 'suspect' AND t.source = 'probe'";

/**
 * From the cheap to the dear: `differing` is one hash join of all members with all rows of the catalog,
 * and as a rule gives no group; everything after it looks at those groups alone.
 *
 * - `newer`: a coordinator that was promoted after this server. What this one says is not true any more
 *   then, and nothing is done; that this controller stops is for NewerCoordinatorWatch, which asks that server itself. A report
 *   by mpp_report alone does not count here: any client could stop the work on every group with it.
 * - `differing`: a fresh member whose row is not as it says, or a task of the controller's that may be out of date; a
 *   suspect of the probe is one.
 * - `asked`: some of them, because what follows grows with the square of their number; those without
 *   the controller's tasks first, the rest in random order, so that groups for which nothing can be done do not keep others out.
 * - `candidate`: without a hold, but for one of the probe, and without a task of a client, whose word comes
 *   first. `fact` is the newest thing a client said of the group that came true: what was seen before it
 *   counts no more. `suspected`: since when the probe has suspected the primary; who claimed to be it before
 *   that has to be seen again.
 * - `fresh`: without the further names of a server that the catalog has under another one.
 * - `counting`: a report is old news when another source saw the same node change after it. So is what a
 *   hook said of a primary when another node has become it since: hooks report changes, and the old
 *   primary's may have died with it. A source that looks time and again is believed until it looks again.
 * - `leader`: the node that all say is the primary, if no other claims to be, or if the timelines of all
 *   that do are known and its own is higher. Otherwise no node is, and the group is left alone.
 * - `base`: the secondaries as they are after the move; a swap makes one of the old primary.
 * - `lost` and `found`: only what a fresh report says. A node about which nothing is known stays as it
 *   is; one that is down goes when it has been down for as long as a report counts, so that a restart
 *   does not cost it its row. Without either, the task leaves the secondaries alone (null).
 *
 * The task is made by mpp_submit, because INSERT fires its statement triggers even for no row, and the
 * notification from the controller would be a write.
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
      AND m.timeline > ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::integer LIMIT 1
  ), differing AS (
    SELECT m.groupid, false AS tasked
    FROM @mpp.mpp_members AS m
    LEFT JOIN node AS n ON n.nodename = m.nodename AND n.nodeport = m.nodeport
    WHERE NOT EXISTS (SELECT FROM newer) AND m.source = ANY ($2::text[])
      AND m.reported_at > statement_timestamp() - $1::float8 * interval '1 millisecond'
      AND CASE
        WHEN m.state IN ('running', 'streaming') AND m.role = 'primary'
          THEN n.groupid IS DISTINCT FROM m.groupid OR n.noderole <> 'primary'
        WHEN m.state IN ('running', 'streaming') AND NOT m.noloadbalance
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
    SELECT a.groupid, fact.created_at AS fact, suspect.created_at AS suspected
    FROM asked AS a
    LEFT JOIN LATERAL (
      SELECT max(t.created_at) AS created_at
      FROM @mpp.mpp_tasks AS t
      WHERE t.finished_at IS NULL AND t.groupid = a.groupid AND ${IS_SUSPECT}
    ) AS suspect ON true
    LEFT JOIN LATERAL (
      SELECT t.created_at
      FROM @mpp.mpp_tasks AS t
      WHERE t.groupid = a.groupid AND t.event = 'after_promote' AND t.source = 'client'
        AND t.status = 'done'
      ORDER BY t.id DESC
      LIMIT 1
    ) AS fact ON true
    WHERE NOT EXISTS (
      SELECT
      FROM @mpp.mpp_tasks AS t
      WHERE t.finished_at IS NULL
        AND t.groupid = a.groupid
        AND (t.source = 'client' OR t.event <> 'after_promote')
        AND NOT (${IS_STUCK})
        AND NOT (${IS_SUSPECT}))
  ), here AS MATERIALIZED (
    SELECT n.*
    FROM node AS n
    WHERE n.in_cluster AND n.groupid IN (SELECT c.groupid FROM candidate AS c)
  ), fresh AS MATERIALIZED (
    SELECT m.groupid, m.nodename, m.nodeport, m.source, m.role, m.state, m.timeline, m.since, m.reported_at,
           m.state IN ('running', 'streaming') AS up,
           m.state IN ('running', 'streaming') AND m.role = 'primary' AS claims
    FROM candidate AS c
    JOIN @mpp.mpp_members AS m ON m.groupid = c.groupid
    WHERE m.source = ANY ($2::text[])
      AND m.reported_at > greatest(c.fact, statement_timestamp() - $1::float8 * interval '1 millisecond')
      AND (c.suspected IS NULL OR m.reported_at > c.suspected
           OR NOT (m.state IN ('running', 'streaming') AND m.role = 'primary'))
      AND NOT EXISTS (
        SELECT
        FROM @mpp.mpp_members AS a
        WHERE a.nodename = m.nodename AND a.nodeport = m.nodeport AND a.state = 'alias'
          AND a.source = ANY ($2::text[])
          AND a.reported_at > statement_timestamp() - $1::float8 * interval '1 millisecond')
  ), counting AS (
    SELECT f.*
    FROM fresh AS f
    WHERE NOT EXISTS (
      SELECT
      FROM fresh AS o
      WHERE o.groupid = f.groupid
        AND o.since > f.reported_at
        AND CASE
          WHEN o.nodename = f.nodename AND o.nodeport = f.nodeport THEN o.source <> f.source
          ELSE f.source = 'table' AND f.claims AND o.claims
        END)
  ), member AS MATERIALIZED (
    SELECT f.groupid, f.nodename, f.nodeport,
           bool_or(f.claims) AS claimed,
           bool_and(f.claims) AS claims,
           max(f.timeline) FILTER (WHERE f.claims) AS timeline,
           bool_and(f.up AND f.role = 'secondary') AND NOT spared.always AS follows,
           spared.always OR bool_and(f.state = 'removed' OR (NOT f.up
             AND f.since <= statement_timestamp() - $1::float8 * interval '1 millisecond')) AS gone
    FROM counting AS f
    CROSS JOIN LATERAL (
      SELECT EXISTS (
        SELECT
        FROM @mpp.mpp_members AS m
        WHERE m.nodename = f.nodename AND m.nodeport = f.nodeport AND m.noloadbalance
          AND m.source = ANY ($2::text[])
      ) AS always
    ) AS spared
    GROUP BY f.groupid, f.nodename, f.nodeport, spared.always
  ), leader AS MATERIALIZED (
    SELECT m.groupid, m.nodename, m.nodeport, old.nodename AS old_name, old.nodeport AS old_port,
           (old.nodename, old.nodeport) IS DISTINCT FROM (m.nodename, m.nodeport) AS moves,
           EXISTS (
             SELECT
             FROM here AS h
             WHERE h.groupid = m.groupid AND h.noderole = 'secondary'
               AND h.nodename = m.nodename AND h.nodeport = m.nodeport
           ) AS swaps
    FROM member AS m
    LEFT JOIN here AS old ON old.groupid = m.groupid AND old.noderole = 'primary'
    WHERE m.claims
      AND NOT EXISTS (
        SELECT
        FROM member AS o
        WHERE o.groupid = m.groupid
          AND (o.nodename, o.nodeport) <> (m.nodename, m.nodeport)
          AND o.claimed
          AND NOT coalesce(o.claims AND o.timeline < m.timeline, false))
  ), base AS (
    SELECT h.groupid, h.nodename, h.nodeport
    FROM here AS h
    JOIN leader AS l ON l.groupid = h.groupid
    WHERE (h.nodename, h.nodeport) <> (l.nodename, l.nodeport)
      AND (h.noderole = 'secondary' OR (h.noderole = 'primary' AND l.swaps))
  ), lost AS (
    SELECT b.groupid, b.nodename, b.nodeport
    FROM base AS b
    JOIN member AS m ON m.groupid = b.groupid AND m.nodename = b.nodename AND m.nodeport = b.nodeport
    WHERE m.gone
  ), found AS (
    SELECT m.groupid, m.nodename, m.nodeport
    FROM member AS m
    JOIN leader AS l ON l.groupid = m.groupid
    WHERE m.follows
      AND (m.groupid, m.nodename, m.nodeport) NOT IN (SELECT b.groupid, b.nodename, b.nodeport FROM base AS b)
      AND NOT EXISTS (
        SELECT
        FROM node AS n
        WHERE n.nodename = m.nodename AND n.nodeport = m.nodeport
          AND NOT (n.in_cluster AND n.groupid = m.groupid AND n.noderole <> 'unavailable'))
  ), wish AS MATERIALIZED (
    SELECT l.groupid, l.nodename, l.nodeport, l.moves, stranger.nodeid AS stranger, wanted.secondaries
    FROM leader AS l
    LEFT JOIN LATERAL (
      SELECT n.nodeid
      FROM node AS n
      WHERE n.nodename = l.nodename AND n.nodeport = l.nodeport
        AND NOT (n.in_cluster AND n.groupid = l.groupid AND n.noderole <> 'unavailable')
        AND NOT (n.in_cluster AND n.cloneof IS NOT NULL AND n.cloneof IN (SELECT h.nodeid FROM here AS h WHERE h.groupid = l.groupid AND h.noderole = 'primary'))
    ) AS stranger ON true
    LEFT JOIN LATERAL (
      SELECT coalesce(
        array_agg(format(CASE WHEN s.nodename LIKE '%:%' THEN '[%s]:%s' ELSE '%s:%s' END, s.nodename, s.nodeport)
                  ORDER BY s.nodename, s.nodeport),
        '{}') AS secondaries
      FROM (
        SELECT b.nodename, b.nodeport
        FROM (
          SELECT s.nodename, s.nodeport, false AS is_new, s.groupid FROM base AS s
          WHERE (s.groupid, s.nodename, s.nodeport) NOT IN (SELECT x.groupid, x.nodename, x.nodeport FROM lost AS x)
          UNION ALL
          SELECT x.nodename, x.nodeport, true, x.groupid FROM found AS x
        ) AS b
        WHERE b.groupid = l.groupid
        ORDER BY b.is_new, b.nodename, b.nodeport
        LIMIT ${MOST_SECONDARIES}
      ) AS s
    ) AS wanted ON l.groupid IN (SELECT x.groupid FROM lost AS x UNION SELECT x.groupid FROM found AS x)
  ), due AS MATERIALIZED (
    SELECT w.*
    FROM wish AS w
    LEFT JOIN LATERAL (
      SELECT bool_or((t.nodename, t.nodeport) = (w.nodename, w.nodeport)) AS same
      FROM @mpp.mpp_tasks AS t
      WHERE t.finished_at IS NULL AND t.groupid = w.groupid AND NOT (${IS_SUSPECT})
    ) AS own ON true
    WHERE w.stranger IS NULL
      AND own.same IS NOT TRUE
      AND (w.moves OR w.secondaries IS NOT NULL OR NOT own.same
           OR w.groupid IN (SELECT c.groupid FROM candidate AS c WHERE c.suspected IS NOT NULL))
      AND NOT EXISTS (
        SELECT
        FROM (
          SELECT t.*
          FROM @mpp.mpp_tasks AS t
          WHERE t.groupid = w.groupid AND t.event = 'after_promote' AND t.source = 'sync'
          ORDER BY t.id DESC
          LIMIT 1
        ) AS last
        WHERE last.status IN ('failed', 'discarded', 'cancelled')
          AND last.finished_at > statement_timestamp() - interval '5 minutes'
          AND (last.nodename, last.nodeport) = (w.nodename, w.nodeport)
          AND last.secondaries IS NOT DISTINCT FROM w.secondaries)
  )
  SELECT t.groupid,
         @mpp.mpp_submit('after_promote'::text, t.groupid, t.nodename, t.nodeport, t.secondaries,
           NULL::interval, NULL::interval, NULL::text, 'sync'::text)::text AS id,
         format(CASE WHEN t.nodename LIKE '%:%' THEN '[%s]:%s' ELSE '%s:%s' END, t.nodename, t.nodeport) AS node,
         t.secondaries,
         NULL AS problem
  FROM due AS t
  UNION ALL
  SELECT m.groupid, NULL, NULL, NULL,
         CASE
           WHEN count(*) > 1
             THEN 'claim to be the primary: ' || string_agg(
               format('%s:%s (timeline %s)', m.nodename, m.nodeport, coalesce(m.timeline::text, 'unknown')),
               ', ' ORDER BY m.nodename, m.nodeport)
           ELSE format('the sources differ whether %s:%s is the primary', min(m.nodename), min(m.nodeport))
         END
  FROM member AS m
  WHERE m.claimed AND m.groupid NOT IN (SELECT l.groupid FROM leader AS l)
  GROUP BY m.groupid
  UNION ALL
  SELECT w.groupid, NULL, NULL, NULL,
         format('%s:%s is reported as its primary, and is another group''s or cluster''s node %s in the catalog',
                w.nodename, w.nodeport, w.stranger)
  FROM wish AS w
  WHERE w.stranger IS NOT NULL
  UNION ALL
  SELECT 0, NULL, NULL, NULL, format('nothing is done: %s:%s is the coordinator now, on timeline %s', s.nodename, s.nodeport, s.timeline)
  FROM newer AS s`;
}
