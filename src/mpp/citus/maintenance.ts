import { setTimeout as delay } from 'node:timers/promises';
import { DatabaseStateError } from '../../errors.js';
import { openSession, type Connection } from '../../postgres/session.js';

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
