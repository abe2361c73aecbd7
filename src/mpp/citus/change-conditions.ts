import { setTimeout as delay } from 'node:timers/promises';
import { DatabaseStateError } from '../../errors.js';
import { openSession, type Connection } from '../../postgres/session.js';
import type { Queryable } from '../../postgres/queries.js';
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
  SELECT n.key, n.pid, n.kind, n.described, n.rolname AS usename, n.application_name AS application, n.state,
         n.xact_start AS since, n.may AS "mayEnd",
         CASE WHEN n.kind = 'session' AND n.may AND n.key = ANY ($2::text[])
           THEN pg_terminate_backend(n.pid) ELSE false END AS ended
  FROM named AS n
  UNION ALL
  SELECT DISTINCT p.gid, 0, 'prepared',
         format('prepared transaction %L (user %s), prepared since %s UTC'::text, p.gid, p.owner,
           to_char(p.prepared AT TIME ZONE 'UTC', ${WHEN})),
         p.owner, NULL, 'prepared', p.prepared, false, false
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

/** How long a daemon that has just been asked for may take to start. */
const START_MS = 1_000;
const LOOK_AGAIN_MS = 100;
const PROVOKE_MS = 2_000;

/**
 * Whether a change of pg_dist_node finds the maintenance daemon of Citus in this database. Where Citus
 * is not an extension in C it has none and needs none. What a transaction has seen of other sessions it
 * sees until its end; the call in `fresh`, on which the list of sessions depends, has it look again.
 */
export const MAINTENANCE_READY = `(
  NOT EXISTS (
    SELECT
    FROM pg_catalog.pg_proc AS p
    JOIN pg_catalog.pg_language AS l ON l.oid = p.prolang
    WHERE p.oid = pg_catalog.to_regprocedure('pg_catalog.citus_version()') AND l.lanname = 'c')
  OR EXISTS (
    SELECT
    FROM (SELECT pg_catalog.length(pg_catalog.pg_stat_clear_snapshot()::text) AS zero OFFSET 0) AS fresh
    CROSS JOIN LATERAL pg_catalog.pg_stat_get_activity(nullif(fresh.zero, 0)) AS a
    WHERE a.application_name = 'Citus Maintenance Daemon'
      -- Any session may have that name; the daemon runs as the owner of the extension.
      AND a.usesysid IN (SELECT r.oid FROM pg_catalog.pg_roles AS r WHERE r.rolsuper)
      AND a.datid = (SELECT d.oid FROM pg_catalog.pg_database AS d WHERE d.datname = pg_catalog.current_database())))`;

/**
 * Without the daemon Citus 13.2 takes the server down at the commit of citus_update_node.
 *
 * @throws DatabaseStateError `NO_MAINTENANCE_DAEMON`, retryable, when `isReady` is false
 */
export function requireMaintenance(isReady: boolean): void {
  if (isReady) return;
  throw new DatabaseStateError(
    NO_MAINTENANCE_DAEMON,
    'Citus has no maintenance daemon in this database, and a change of pg_dist_node would crash the server: ' +
      'all max_worker_processes are in use. Raise max_worker_processes (mpp-controller gucs says how far) ' +
      'and restart PostgreSQL',
    { retryable: true },
  );
}

const NO_MAINTENANCE_DAEMON = 'NO_MAINTENANCE_DAEMON';

/**
 * Runs `work`, which looks for the daemon. When it is missing it is asked for: the first use of Citus in a
 * session starts it, if there is room for it.
 *
 * @throws DatabaseStateError `NO_MAINTENANCE_DAEMON` when that did not help; whatever `work` throws
 */
export async function withMaintenance<T>(
  connection: Connection | undefined,
  work: () => Promise<T>,
): Promise<T> {
  const until = performance.now() + START_MS;
  for (;;) {
    try {
      return await work();
    } catch (error) {
      const isMissing = error instanceof DatabaseStateError && error.code === NO_MAINTENANCE_DAEMON;
      if (!isMissing || performance.now() >= until) throw error;
    }
    // Again and again: room for it may come at any time.
    if (connection !== undefined) await provoke(connection).catch(() => undefined);
    await delay(LOOK_AGAIN_MS);
  }
}

async function provoke(connection: Connection): Promise<void> {
  const bounds = { connectionTimeoutMillis: PROVOKE_MS, query_timeout: PROVOKE_MS };
  const session = await openSession({ ...connection, ...bounds }, 'maintenance');
  try {
    await session.query('SELECT pg_catalog.citus_version()');
  } finally {
    await session.end().catch(() => undefined);
  }
}
