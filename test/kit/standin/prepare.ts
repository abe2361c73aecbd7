import type { Cluster } from '../servers/cluster.js';
import { installStandin } from './install.js';
import { createTestTables } from './schema.js';

export interface PrepareOptions {
  /** Whether the standbys are registered, too. */
  readonly secondaries?: boolean;
  /** Whether items, notes and lookup are made. */
  readonly tables?: boolean;
  /** The database that is a Citus database; every server must have it. */
  readonly database?: string;
}

/** Installs the stand-in on all primaries of a cluster that has no Citus; nothing with Citus. */
export async function installWhereNeeded(cluster: Cluster, database?: string): Promise<void> {
  if (cluster.hasCitus) return;
  await Promise.all(
    cluster.groups.map(({ primary }) =>
      primary.withSession((session) => installStandin(session), database),
    ),
  );
}

/** Makes a further database on all primaries, as empty as the first one was. */
export async function addDatabase(cluster: Cluster, database: string): Promise<void> {
  for (const { primary } of cluster.groups) {
    await primary.withSession((session) =>
      session.query(`CREATE DATABASE ${session.escapeIdentifier(database)}`),
    );
    if (!cluster.hasCitus) continue;
    await primary.withSession((session) => session.query('CREATE EXTENSION citus'), database);
  }
}

/**
 * Makes a Citus cluster of started servers: the stand-in where there is no Citus, every group's
 * primary in `pg_dist_node` under its groupid, then by default the tables of schema.ts.
 */
export async function prepareCluster(
  cluster: Cluster,
  { secondaries = false, tables = true, database }: PrepareOptions = {},
): Promise<void> {
  await installWhereNeeded(cluster, database);
  await cluster.coordinator.withSession(async (session) => {
    const { host, port } = cluster.coordinator;
    await session.query('SELECT citus_set_coordinator_host($1, $2)', [host, port]);
    for (const { groupid, primary } of cluster.workers) {
      await session.query(ADD_NODE, [primary.host, primary.port, groupid, 'primary']);
    }
    if (secondaries) {
      for (const group of cluster.workers.filter(({ hasStandby }) => hasStandby)) {
        const { host, port } = group.standby;
        await session.query(ADD_NODE, [host, port, group.groupid, 'secondary']);
      }
    }
    if (tables) await createTestTables({ coordinator: session, citus: cluster.hasCitus });
  }, database);
}

const ADD_NODE = 'SELECT citus_add_node($1, $2, $3, $4)';
