import { afterAll, beforeAll, describe, expect, inject, it } from 'vitest';
import type pg from 'pg';
import { startCluster, type Cluster } from '../kit/servers/index.js';
import { primaryNodeId, waitUntilSynced } from '../kit/standin/observe.js';
import { prepareCluster } from '../kit/standin/prepare.js';

// What the stand-in must have in common with Citus. With MPP_PG_BIN naming a PostgreSQL that has
// Citus, the same checks run on the real one: it is right, and the stand-in is mended.

let cluster: Cluster;
let operator: pg.Client;
/** A session that only looks. */
let observer: pg.Client;

beforeAll(async () => {
  cluster = await startCluster({ template: inject('template'), standbys: false });
  await prepareCluster(cluster);
  operator = await cluster.coordinator.connect();
  observer = await cluster.coordinator.connect();
  await observer.query('INSERT INTO lookup VALUES (1, 0)');
});

afterAll(async () => {
  for (const session of [operator, observer]) await session.end();
  await cluster.stop();
});

const UPDATE_NODE = 'SELECT citus_update_node($1, $2, $3)';
const PAUSE_NODE = 'SELECT citus_pause_node_within_txn($1)';

describe('errors', () => {
  const errors: readonly [name: string, sqlstate: string, sql: string][] = [
    ['update of an unknown node', 'P0002', "SELECT citus_update_node(9999, 'nowhere', 1)"],
    ['pause of an unknown node', 'P0002', 'SELECT citus_pause_node_within_txn(9999)'],
    [
      'update to an address that is taken',
      '55000',
      `SELECT citus_update_node(one.nodeid, two.nodename, two.nodeport)
       FROM pg_dist_node AS one, pg_dist_node AS two WHERE one.groupid = 1 AND two.groupid = 2`,
    ],
    ['second primary of a group', 'XX000', "SELECT citus_add_node('127.0.0.1', 1, 1)"],
    [
      'primary in another node cluster',
      'XX000',
      "SELECT citus_add_node('127.0.0.1', 1, -1, 'primary', 'other')",
    ],
    ['worker that does not answer', '08006', "SELECT citus_add_node('127.0.0.1', 1, 7)"],
    [
      'secondary of an unknown primary',
      'XX000',
      "SELECT citus_add_secondary_node('127.0.0.1', 2, '127.0.0.1', 1)",
    ],
    ['removal of an unknown node', 'XX000', "SELECT citus_remove_node('127.0.0.1', 1)"],
    [
      'removal of a primary with shards',
      'XX000',
      'SELECT citus_remove_node(nodename, nodeport) FROM pg_dist_node WHERE groupid = 1',
    ],
    [
      'second primary by INSERT',
      'P0001',
      "INSERT INTO pg_dist_node (groupid, nodename, nodeport) VALUES (1, 'nowhere', 1)",
    ],
    ['unknown lock mode', 'XX000', 'SELECT lock_shard_metadata(8, ARRAY[102008])'],
    ['no shard to lock', 'XX000', "SELECT lock_shard_metadata(7, '{}')"],
    ['unknown shard to lock', 'XX000', 'SELECT lock_shard_metadata(7, ARRAY[5])'],
    ['duplicate key', '23505', 'INSERT INTO lookup VALUES (1, 0)'],
  ];

  it.each(errors)('%s is %s', async (_name, code, sql) => {
    await expect(operator.query(sql)).rejects.toMatchObject({ code });
  });
});

describe('privileges', () => {
  beforeAll(async () => {
    await operator.query('CREATE ROLE standin_plain');
    await waitUntilSynced(observer);
  });

  afterAll(async () => {
    await operator.query('DROP OWNED BY standin_plain');
    await operator.query('DROP ROLE standin_plain');
  });

  async function asPlainRole(sql: string, values: readonly unknown[]): Promise<void> {
    await operator.query('BEGIN');
    try {
      await operator.query('SET LOCAL ROLE standin_plain');
      await operator.query(sql, [...values]);
    } finally {
      await operator.query('ROLLBACK');
    }
  }

  it('the node functions are not for everyone', async () => {
    const id = await primaryNodeId(observer, 1);
    await expect(asPlainRole(PAUSE_NODE, [id])).rejects.toMatchObject({ code: '42501' });
    await expect(asPlainRole(UPDATE_NODE, [id, 'nowhere', 1])).rejects.toMatchObject({
      code: '42501',
    });
  });

  it('EXECUTE is enough to pause and to update', async () => {
    await operator.query(
      'GRANT EXECUTE ON FUNCTION citus_update_node, citus_pause_node_within_txn TO standin_plain',
    );
    const id = await primaryNodeId(observer, 1);
    await asPlainRole(PAUSE_NODE, [id]);
    await asPlainRole(UPDATE_NODE, [id, 'nowhere', 1]);
  });

  it('shard locks are for the owner of the table', async () => {
    const { rows } = await observer.query<{ shardid: string }>(
      "SELECT shardid FROM pg_dist_shard WHERE logicalrelid = 'items'::regclass LIMIT 1",
    );
    const lock = asPlainRole('SELECT lock_shard_metadata(7, ARRAY[$1::bigint])', [
      rows[0]?.shardid,
    ]);
    await expect(lock).rejects.toMatchObject({ code: '42501' });
  });
});

describe('an update of a node', () => {
  const LOCKED = `
    SELECT FROM pg_locks
    WHERE pid = pg_backend_pid()
      AND (locktype = 'advisory' OR relation = 'pg_dist_node'::regclass AND mode = 'ExclusiveLock')`;

  it('takes no lock when nothing changes', async () => {
    const { host, port } = cluster.group(1).primary;
    await operator.query('BEGIN');
    await operator.query(UPDATE_NODE, [await primaryNodeId(observer, 1), host, port]);
    expect((await operator.query(LOCKED)).rowCount).toBe(0);
    await operator.query('ROLLBACK');
  });

  it('locks the shards and pg_dist_node, and needs a sync before nodes come or go', async () => {
    const { port } = cluster.group(1).primary;
    await operator.query('BEGIN');
    await operator.query(UPDATE_NODE, [await primaryNodeId(observer, 1), 'localhost', port]);
    // Four colocated pairs of shards, the reference table's, and pg_dist_node.
    expect((await operator.query(LOCKED)).rowCount).toBe(6);
    await operator.query('SAVEPOINT before_add');
    const add = operator.query("SELECT citus_add_node('127.0.0.1', 2, 1, 'secondary')");
    await expect(add).rejects.toMatchObject({ code: '55000' });
    await operator.query('ROLLBACK TO before_add');
    const { rows } = await operator.query<{ unsynced: number[] }>(
      'SELECT array_agg(groupid ORDER BY groupid) AS unsynced FROM pg_dist_node WHERE NOT metadatasynced',
    );
    expect(rows[0]?.unsynced).toEqual([1, 2]);
    await operator.query('COMMIT');
    await waitUntilSynced(observer);
    await operator.query("SELECT citus_add_node('127.0.0.1', 2, 1, 'secondary')");
    await operator.query("SELECT citus_remove_node('127.0.0.1', 2)");
    await operator.query(UPDATE_NODE, [await primaryNodeId(observer, 1), '127.0.0.1', port]);
    await waitUntilSynced(observer);
  });

  it('reaches the other nodes', async () => {
    const nodes =
      'SELECT nodeid, groupid, nodename, nodeport, noderole FROM pg_dist_node ORDER BY 1';
    const expected = (await observer.query(nodes)).rows;
    for (const { primary } of cluster.workers) {
      const seen = await primary.withSession((session) => session.query(nodes));
      expect(seen.rows).toEqual(expected);
    }
  });

  it('needs every node with metadata to answer, and is made up for when it does', async () => {
    const { primary } = cluster.group(2);
    const { port } = cluster.group(1).primary;
    await primary.stop();
    await operator.query(UPDATE_NODE, [await primaryNodeId(observer, 1), 'localhost', port]);
    const add = "SELECT citus_add_node('127.0.0.1', 2, 1, 'secondary')";
    await expect(operator.query(add)).rejects.toMatchObject({ code: '55000' });
    await primary.start();
    await waitUntilSynced(observer);
    await operator.query(UPDATE_NODE, [await primaryNodeId(observer, 1), '127.0.0.1', port]);
    await waitUntilSynced(observer);
  });
});
