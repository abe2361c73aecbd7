import type { ClientBase } from 'pg';
import { DatabaseStateError } from '../../errors.js';
import type { Queryable } from '../../postgres/queries.js';
import type { Task } from '../../tasks/task.js';
import type { Address } from '../../address.js';
import type { Node, Step } from '../abstract.js';
import { MAINTENANCE_READY, requireMaintenance } from './change-conditions.js';
import { callAsSuperuser } from './rights.js';

/**
 * The rows of the task's group, and any row at an address that the task names or that a row of the
 * group would be parked at.
 *
 * @throws DatabaseStateError `NO_MAINTENANCE_DAEMON`: what follows may change a row.
 */
export async function readNodes(db: Queryable, task: Task): Promise<Node[]> {
  const named = [task.address, ...(task.secondaries ?? [])];
  const { rows } = await db.query<{
    nodeid: number;
    groupid: number;
    nodename: string;
    nodeport: number;
    noderole: Node['role'];
    in_cluster: boolean;
    cloneof: number | null;
    ready: boolean;
  }>({
    name: 'mpp-read-nodes',
    text: READ_NODES,
    values: [task.groupid, named.map(({ host }) => host), named.map(({ port }) => port)],
  });
  requireMaintenance(rows.every(({ ready }) => ready));
  return rows.map((row) => ({
    nodeid: row.nodeid,
    groupid: row.groupid,
    address: { host: row.nodename, port: row.nodeport },
    role: row.noderole,
    isInCluster: row.in_cluster,
    ...(row.cloneof === null ? {} : { cloneOf: row.cloneof }),
  }));
}

/** Columns by name: a release of Citus may add some, and only those from 13.2 on know of clones. */
const NODE_COLUMNS = `
         n.nodeid, n.groupid, n.nodename, n.nodeport, n.noderole::text AS noderole,
         n.nodecluster = 'default' AS in_cluster,
         CASE WHEN n.noderole = 'unavailable' AND (to_jsonb(n)->>'nodeisclone')::boolean
           THEN (to_jsonb(n)->>'nodeprimarynodeid')::integer END AS cloneof`;

const READ_NODES = `
  SELECT ${NODE_COLUMNS}, ${MAINTENANCE_READY} AS ready
  FROM pg_catalog.pg_dist_node AS n
  WHERE n.groupid = $1
     OR (n.nodename, n.nodeport) IN (SELECT * FROM unnest($2::text[], $3::integer[]))
     OR (n.nodename, n.nodeport) IN (
       SELECT g.nodename || '-demoted', g.nodeport
       FROM pg_catalog.pg_dist_node AS g
       WHERE g.groupid = $1)
  ORDER BY n.nodeid`;

/** See AbstractMPP.nodesQuery. */
export const NODES_QUERY = `
  SELECT ${NODE_COLUMNS}
  FROM pg_catalog.pg_dist_node AS n`;

/**
 * Changes one row of pg_dist_node.
 *
 * `update` takes ExclusiveLock on pg_dist_node and the metadata locks of the node's shards, until the
 * transaction ends; with `force` Citus ends the sessions that block it after the cooldown. `add` and
 * `remove` fail with SQLSTATE 55000 while any node's metadata is not in sync.
 */
export async function applyStep(
  session: ClientBase,
  step: Step,
  cooldownMs: number,
  force = true,
): Promise<void> {
  switch (step.op) {
    case 'update':
      return updateNode(session, step.nodeid, step.to, cooldownMs, force);
    case 'add':
      return callAsSuperuser(session, 'citus_add_node', [
        step.node.host,
        step.node.port,
        step.groupid,
        step.role,
      ]);
    case 'remove':
      return callAsSuperuser(session, 'citus_remove_node', [step.node.host, step.node.port]);
    case 'removeClone':
      await session.query({
        text: 'SELECT pg_catalog.citus_remove_clone_node($1, $2)',
        values: [step.node.host, step.node.port],
      });
      return;
    case 'coordinator':
      return callAsSuperuser(session, 'citus_set_coordinator_host', [
        step.node.host,
        step.node.port,
      ]);
  }
}

/** `citus_update_node`; with `force` the sessions that block it are ended after `cooldownMs`. */
export async function updateNode(
  session: ClientBase,
  nodeid: number,
  to: Address,
  cooldownMs: number,
  force = true,
): Promise<void> {
  await session.query({
    name: 'mpp-update-node',
    text: 'SELECT pg_catalog.citus_update_node($1, $2, $3, $5, $4)',
    values: [nodeid, to.host, to.port, Math.round(cooldownMs), force],
  });
}

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
