import type { Queryable } from '../../postgres/queryable.js';
import type { ChangeBlocker } from '../abstract.js';

/**
 * What keeps a session from changing pg_dist_node, and ends the sessions that have done so for too long.
 *
 * @param pid server process of the session that waits
 * @param overdue keys of transactions that are terminated if they block it still
 */
export async function changeBlockers(
  db: Queryable,
  pid: number,
  overdue: readonly string[],
): Promise<ChangeBlocker[]> {
  const { rows } = await db.query<ChangeBlocker>({
    name: 'mpp-change-blockers',
    text: CHANGE_BLOCKERS,
    values: [pid, overdue],
  });
  return rows;
}

/** Ends the statement of a session, not the session. Citus has a function of this name with one parameter more. */
export async function cancelStatement(db: Queryable, pid: number): Promise<void> {
  await db.query({ name: 'mpp-cancel-statement', text: CANCEL, values: [pid] });
}

const CANCEL = 'SELECT pg_catalog.pg_cancel_backend($1::integer)';

const WHEN = "'YYYY-MM-DD HH24:MI:SS'";

/**
 * Takes no lock. The roots of what the session waits for: who waits for another session is passed over, unless
 * that is a session of a controller, such as a hold, which does not end before the change.
 *
 * Who has a table lock on pg_dist_node that keeps it from being changed, and has changed nothing, blocks all
 * changes on purpose, as a backup does and citus_cluster_changes_block(). A prepared transaction has no pid:
 * pg_blocking_pids gives 0; the lock on its own id, which it has as well, tells which it is. The start of a transaction is shown to a role
 * with pg_read_all_stats alone.
 */
const CHANGE_BLOCKERS = `
  WITH RECURSIVE chain (waiter, blocker) AS (
    SELECT $1::integer, b.pid
    FROM unnest(pg_blocking_pids($1::integer)) AS b (pid)
    UNION
    SELECT c.blocker, b.pid
    FROM chain AS c, unnest(pg_blocking_pids(c.blocker)) AS b (pid)
    WHERE c.blocker NOT IN (0, $1::integer)
  ), me AS MATERIALIZED (
    SELECT r.oid, r.rolsuper, d.oid AS datid
    FROM pg_roles AS r
    CROSS JOIN pg_database AS d
    WHERE r.rolname = current_user AND d.datname = current_database()
  ), held AS MATERIALIZED (
    SELECT l.*
    FROM pg_locks AS l
    WHERE EXISTS (SELECT FROM chain)
  ), session AS MATERIALIZED (
    SELECT s.pid, s.usesysid, s.application_name, s.state, s.xact_start,
           coalesce(s.application_name LIKE 'mpp-controller %' AND s.usesysid = me.oid, false) AS own
    FROM (SELECT DISTINCT c.blocker AS pid FROM chain AS c WHERE c.blocker NOT IN (0, $1::integer)) AS b
    CROSS JOIN me
    JOIN pg_stat_get_activity(b.pid) AS s ON true
  ), root AS (
    SELECT s.*, r.rolname,
           CASE
             WHEN s.own THEN 'own'
             WHEN EXISTS (
               SELECT
               FROM held AS l
               WHERE l.pid = s.pid AND l.granted AND l.locktype = 'relation' AND l.database = me.datid
                 AND l.relation = to_regclass('pg_catalog.pg_dist_node')
               HAVING bool_or(l.mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock'))
                  AND NOT bool_or(l.mode = 'RowExclusiveLock'))
               THEN 'block'
             ELSE 'session'
           END AS kind,
           me.rolsuper OR coalesce(pg_has_role(r.oid, 'USAGE'), false)
             OR (r.rolsuper IS FALSE AND pg_has_role('pg_signal_backend', 'USAGE')) AS may,
           (SELECT v.virtualxid
            FROM held AS v
            WHERE v.pid = s.pid AND v.locktype = 'virtualxid' AND v.virtualtransaction = v.virtualxid) AS virtualxid
    FROM session AS s
    CROSS JOIN me
    LEFT JOIN pg_roles AS r ON r.oid = s.usesysid
    WHERE NOT EXISTS (
        SELECT
        FROM chain AS c
        LEFT JOIN session AS o ON o.pid = c.blocker
        WHERE c.waiter = s.pid AND c.blocker <> $1::integer AND (s.own OR o.own IS NOT TRUE))
      AND (NOT s.own OR EXISTS (SELECT FROM chain AS c WHERE c.waiter = $1::integer AND c.blocker = s.pid))
  ), named AS (
    SELECT r.*, format('%s %s'::text, r.pid, r.virtualxid) AS key,
           format('pid %s (user %s, application %s)'::text, r.pid, coalesce(r.rolname, 'none'),
             coalesce(nullif(r.application_name, ''), 'unnamed'))
             || coalesce(format(', %s since %s UTC'::text, r.state, to_char(r.xact_start AT TIME ZONE 'UTC', ${WHEN})), '')
             AS described
    FROM root AS r
  )
  SELECT n.key, n.pid, n.kind, n.described, n.may AS "mayEnd",
         CASE WHEN n.kind = 'session' AND n.may AND n.key = ANY ($2::text[])
           THEN pg_terminate_backend(n.pid) ELSE false END AS ended
  FROM named AS n
  UNION ALL
  SELECT DISTINCT p.gid, 0, 'prepared',
         format('prepared transaction %L (user %s), prepared since %s UTC'::text, p.gid, p.owner,
           to_char(p.prepared AT TIME ZONE 'UTC', ${WHEN})),
         false, false
  FROM chain AS c
  JOIN held AS w ON w.pid = c.waiter AND NOT w.granted
  JOIN held AS l ON l.pid IS NULL AND l.granted AND l.locktype = w.locktype
    AND (l.database, l.relation, l.page, l.tuple, l.virtualxid, l.transactionid::text, l.classid, l.objid, l.objsubid)
        IS NOT DISTINCT FROM
        (w.database, w.relation, w.page, w.tuple, w.virtualxid, w.transactionid::text, w.classid, w.objid, w.objsubid)
    AND (l.mode <> 'AccessShareLock' OR w.mode = 'AccessExclusiveLock')
  JOIN held AS x ON x.pid IS NULL AND x.locktype = 'transactionid' AND x.virtualtransaction = l.virtualtransaction
  JOIN pg_prepared_xacts AS p ON p.transaction = x.transactionid
  WHERE c.blocker = 0
  ORDER BY described`;
