import type { Address } from '../address.js';
import type { Settings } from '../config/settings.js';
import { createMPP } from '../mpp/index.js';
import { nodeConnection } from '../postgres/connection/database-url.js';
import { closeSession, openSession } from '../postgres/session.js';
import { CommandError, EXIT } from './exit.js';
import { withSession } from './flags.js';
import { asCommandError } from './submit.js';

/** @throws CommandError where the group has no primary; whatever a session can fail with. */
export async function readPrimary(settings: Settings, groupid: number): Promise<Address> {
  const statement = (nodes: string): string => `
    SELECT n.nodename AS host, n.nodeport AS port
    FROM (${nodes}) AS n
    WHERE n.in_cluster AND n.groupid = $1 AND n.noderole = 'primary'`;
  const [primary] = await readNodes<Address>(settings, statement, [groupid]);
  if (primary !== undefined) return primary;
  throw new CommandError(
    EXIT.usage,
    `group ${groupid} has no primary in pg_dist_node; see mpp-controller status for the groups there are`,
  );
}

/** A worker group, with the secondary of it that was registered first. */
export interface WorkerGroup {
  readonly groupid: number;
  readonly primary: Address;
  readonly secondary: Address | null;
}

/** Those that have a primary, in the order of their ids. */
export async function readWorkerGroups(settings: Settings): Promise<WorkerGroup[]> {
  const statement = (nodes: string): string => `
    SELECT n.groupid, json_build_object('host', n.nodename, 'port', n.nodeport) AS primary,
           (SELECT json_build_object('host', s.nodename, 'port', s.nodeport)
            FROM (${nodes}) AS s
            WHERE s.in_cluster AND s.groupid = n.groupid AND s.noderole = 'secondary'
            ORDER BY s.nodeid
            LIMIT 1) AS secondary
    FROM (${nodes}) AS n
    WHERE n.in_cluster AND n.groupid > 0 AND n.noderole = 'primary'
    ORDER BY n.groupid`;
  return readNodes<WorkerGroup>(settings, statement, []);
}

/** @param statement of the catalog's rows, see AbstractMPP.nodesQuery: a constant, never input */
async function readNodes<R extends object>(
  settings: Settings,
  statement: (nodesQuery: string) => string,
  values: readonly unknown[],
): Promise<R[]> {
  const mpp = createMPP(settings);
  return withSession(settings, 'notify', async (client) => {
    await mpp.refuseWorker(client);
    const { rows } = await client.query<R>(statement(mpp.nodesQuery), [...values]);
    return rows;
  }).catch((error: unknown) => {
    throw asCommandError(error);
  });
}

/**
 * Asks a node itself, with the credentials of nodes.
 *
 * @param withinMs how long connecting may take, and the answer
 * @throws UnreachableError when there is no session with it; whatever PostgreSQL says
 */
export async function isStandby(
  settings: Settings,
  address: Address,
  withinMs: number,
): Promise<boolean> {
  const connection = nodeConnection(settings.node, address);
  const bounds = { connectionTimeoutMillis: withinMs, query_timeout: withinMs };
  const session = await openSession({ ...connection, ...bounds }, 'check');
  try {
    const { rows } = await session.query<{ standby: boolean }>(
      'SELECT pg_catalog.pg_is_in_recovery() AS standby',
    );
    return rows[0]?.standby === true;
  } finally {
    await closeSession(session);
  }
}
