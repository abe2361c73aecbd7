import type { ClientBase } from 'pg';
import { DatabaseStateError } from '../../errors.js';

/**
 * Refuses a server that is a worker: what is written there changes that worker's copy of pg_dist_node
 * alone. A database without Citus passes.
 *
 * @throws DatabaseStateError `NOT_COORDINATOR`
 */
export async function refuseWorker(session: ClientBase): Promise<void> {
  const { rows } = await session.query<{ readable: boolean }>(IS_READABLE);
  if (rows[0]?.readable !== true) return;
  const found = await session.query<{ groupid: number }>(LOCAL_GROUP);
  const groupid = found.rows[0]?.groupid ?? 0;
  if (groupid === 0) return;
  const known = await session.query<{ coordinator: string | null }>(COORDINATOR);
  throw notCoordinator(groupid, known.rows[0]?.coordinator ?? null);
}

export function notCoordinator(groupid: number, coordinator: string | null): DatabaseStateError {
  const where = coordinator ?? 'not known here';
  return new DatabaseStateError(
    'NOT_COORDINATOR',
    `this is a worker of group ${groupid}; the coordinator is ${where}. Connect to the coordinator: ` +
      'set DATABASE_URL or PGHOST and PGPORT',
  );
}

/** @throws DatabaseStateError `NO_CITUS` in a database without pg_dist_node. */
export async function requireCatalog(session: ClientBase): Promise<void> {
  const { rows } = await session.query<{ installed: boolean }>(IS_INSTALLED);
  if (rows[0]?.installed !== true) throw noCitus();
}

export function noCitus(): DatabaseStateError {
  return new DatabaseStateError(
    'NO_CITUS',
    'this database has no pg_dist_node: run mpp-controller bootstrap, or name the Citus database',
  );
}

const IS_INSTALLED = `SELECT pg_catalog.to_regclass('pg_catalog.pg_dist_node') IS NOT NULL AS installed`;

/** A role that may not read them is refused by what it calls next. */
const IS_READABLE = `
  SELECT coalesce(
    pg_catalog.has_table_privilege(pg_catalog.to_regclass('pg_catalog.pg_dist_local_group'), 'SELECT'), false) AS readable`;

/** The one primary of group 0 as this node knows it. */
export const COORDINATOR_ADDRESS = `
  (SELECT CASE WHEN n.nodename LIKE '%:%' THEN format('[%s]:%s', n.nodename, n.nodeport)
               ELSE format('%s:%s', n.nodename, n.nodeport) END
   FROM pg_catalog.pg_dist_node AS n
   WHERE n.groupid = 0 AND n.noderole = 'primary' AND n.nodecluster = 'default'
   LIMIT 1)`;

const LOCAL_GROUP = 'SELECT l.groupid FROM pg_catalog.pg_dist_local_group AS l';

const COORDINATOR = `SELECT ${COORDINATOR_ADDRESS} AS coordinator`;
