import { afterAll, beforeAll, describe, expect, inject, it } from 'vitest';
import type pg from 'pg';
import { startCluster, waitFor, type Cluster } from '../support/servers/index.js';
import { prepareCluster } from '../support/standin/prepare.js';
import { keysOfGroup } from '../support/standin/schema.js';
import { startTraffic } from '../support/traffic/traffic.js';

// What the stand-in must have in common with Citus. With MPP_PG_BIN naming a PostgreSQL that has
// Citus, the same checks run on the real one: it is right, and the stand-in is mended.

let cluster: Cluster;
/** The session of an operator, of a client, and one that only looks. */
let operator: pg.Client;
let client: pg.Client;
let observer: pg.Client;
/** Two keys of items in group 1, and one in group 2. */
let key: number;
let secondKey: number;
let otherKey: number;

beforeAll(async () => {
  cluster = await startCluster({ template: inject('template') });
  await prepareCluster(cluster);
  operator = await cluster.coordinator.connect();
  client = await cluster.coordinator.connect();
  observer = await cluster.coordinator.connect();
  [key = 0, secondKey = 0] = await keysOfGroup(observer, 1, 2);
  [otherKey = 0] = await keysOfGroup(observer, 2, 1);
  await observer.query('INSERT INTO items VALUES ($1, 0), ($2, 0), ($3, 0)', [
    key,
    secondKey,
    otherKey,
  ]);
  await observer.query('INSERT INTO lookup VALUES (1, 0)');
});

afterAll(async () => {
  for (const session of [operator, client, observer]) await session.end();
  await cluster.stop();
});

const NODE_ID = "SELECT nodeid FROM pg_dist_node WHERE groupid = $1 AND noderole = 'primary'";
const UPDATE_NODE = 'SELECT citus_update_node($1, $2, $3)';
const PAUSE_NODE = 'SELECT citus_pause_node_within_txn($1)';
const INCREMENT = 'UPDATE items SET v = v + 1 WHERE id = $1';

async function nodeId(groupid: number): Promise<number> {
  const { rows } = await observer.query<{ nodeid: number }>(NODE_ID, [groupid]);
  return rows[0]?.nodeid ?? -1;
}

async function pid(session: pg.Client): Promise<number> {
  const { rows } = await session.query<{ pid: number }>('SELECT pg_backend_pid() AS pid');
  return rows[0]?.pid ?? -1;
}

/** Resolves once one session waits for a lock that the other holds. */
async function waitUntilBlocked(waiting: number, holding: number): Promise<void> {
  await waitFor(`session ${waiting} to wait for ${holding}`, async () => {
    const { rows } = await observer.query<{ blocked: boolean }>(
      'SELECT $2 = ANY (pg_blocking_pids($1)) AS blocked',
      [waiting, holding],
    );
    return rows[0]?.blocked;
  });
}

async function waitUntilSynced(): Promise<void> {
  await waitFor('metadata to be in sync', async () => {
    const { rowCount } = await observer.query(
      'SELECT FROM pg_dist_node WHERE hasmetadata AND NOT metadatasynced',
    );
    return rowCount === 0;
  });
}

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
    await waitUntilSynced();
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
    const id = await nodeId(1);
    await expect(asPlainRole(PAUSE_NODE, [id])).rejects.toMatchObject({ code: '42501' });
    await expect(asPlainRole(UPDATE_NODE, [id, 'nowhere', 1])).rejects.toMatchObject({
      code: '42501',
    });
  });

  it('EXECUTE is enough to pause and to update', async () => {
    await operator.query(
      'GRANT EXECUTE ON FUNCTION citus_update_node, citus_pause_node_within_txn TO standin_plain',
    );
    const id = await nodeId(1);
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
    await operator.query(UPDATE_NODE, [await nodeId(1), host, port]);
    expect((await operator.query(LOCKED)).rowCount).toBe(0);
    await operator.query('ROLLBACK');
  });

  it('locks the shards and pg_dist_node, and needs a sync before nodes come or go', async () => {
    const { port } = cluster.group(1).primary;
    await operator.query('BEGIN');
    await operator.query(UPDATE_NODE, [await nodeId(1), 'localhost', port]);
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
    await waitUntilSynced();
    await operator.query("SELECT citus_add_node('127.0.0.1', 2, 1, 'secondary')");
    await operator.query("SELECT citus_remove_node('127.0.0.1', 2)");
    await operator.query(UPDATE_NODE, [await nodeId(1), '127.0.0.1', port]);
    await waitUntilSynced();
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
    await operator.query(UPDATE_NODE, [await nodeId(1), 'localhost', port]);
    const add = "SELECT citus_add_node('127.0.0.1', 2, 1, 'secondary')";
    await expect(operator.query(add)).rejects.toMatchObject({ code: '55000' });
    await primary.start();
    await waitUntilSynced();
    await operator.query(UPDATE_NODE, [await nodeId(1), '127.0.0.1', port]);
    await waitUntilSynced();
  });
});

describe('a hold', () => {
  const holds: readonly [name: string, take: () => Promise<unknown>][] = [
    [
      'by citus_update_node',
      async () => operator.query(UPDATE_NODE, [await nodeId(1), '127.0.0.1-demoted', 1]),
    ],
    ['by citus_pause_node_within_txn', async () => operator.query(PAUSE_NODE, [await nodeId(1)])],
  ];

  it.each(holds)('%s makes writers of the group wait, and nobody else', async (_name, take) => {
    await operator.query('BEGIN');
    await take();
    const holding = await pid(operator);
    for (const [sql, values] of [
      [INCREMENT, [key]],
      ['DELETE FROM notes WHERE id = $1', [key]],
      ['UPDATE lookup SET v = v + 1 WHERE id = $1', [1]],
    ] as const) {
      const waiting = await pid(client);
      const write = client.query(sql, [...values]);
      await waitUntilBlocked(waiting, holding);
      await observer.query('SELECT pg_cancel_backend($1)', [waiting]);
      await expect(write).rejects.toMatchObject({ code: '57014' });
    }
    for (const [sql, values] of [
      ['SELECT * FROM items WHERE id = $1', [key]],
      ['SELECT count(*) FROM items', []],
      ['SELECT * FROM lookup', []],
      [INCREMENT, [otherKey]],
    ] as const) {
      await client.query(sql, [...values]);
    }
    const waiting = await pid(client);
    const write = client.query(INCREMENT, [key]);
    await waitUntilBlocked(waiting, holding);
    await operator.query('ROLLBACK');
    expect((await write).rowCount).toBe(1);
  });

  it('waits for a writer in a transaction until lock_timeout, and harms nobody', async () => {
    await client.query('BEGIN');
    await client.query(INCREMENT, [key]);
    await operator.query("SET lock_timeout = '50ms'");
    const pause = operator.query(PAUSE_NODE, [await nodeId(1)]);
    await expect(pause).rejects.toMatchObject({ code: '55P03' });
    await operator.query('RESET lock_timeout');
    await client.query('COMMIT');
  });

  it('with force ends that writer once the cooldown is over, but no reader', async () => {
    const writer = await cluster.coordinator.connect();
    await client.query('BEGIN');
    await client.query('SELECT * FROM items WHERE id = $1', [key]);
    await writer.query('BEGIN');
    await writer.query(INCREMENT, [key]);
    const startedAt = performance.now();
    await operator.query('BEGIN');
    await operator.query('SELECT citus_pause_node_within_txn($1, true, 300)', [await nodeId(1)]);
    expect(performance.now() - startedAt).toBeGreaterThanOrEqual(300);
    await operator.query('ROLLBACK');
    await expect(writer.query('COMMIT')).rejects.toThrow();
    await client.query('COMMIT');
    await waitFor('the helper to be gone', async () => {
      const { rowCount } = await observer.query(
        "SELECT FROM pg_stat_activity WHERE application_name ILIKE '%lock%helper%'",
      );
      return rowCount === 0;
    });
  });

  it('of two groups: the second waits for the first because of the reference table', async () => {
    await operator.query('BEGIN');
    await operator.query(PAUSE_NODE, [await nodeId(1)]);
    const waiting = await pid(client);
    const second = client.query(PAUSE_NODE, [await nodeId(2)]);
    await waitUntilBlocked(waiting, await pid(operator));
    await operator.query('ROLLBACK');
    await second;
  });

  it('by shard locks of two groups: side by side', async () => {
    const lockOwnShards = `
      SELECT lock_shard_metadata(7, array_agg(shardid))
      FROM pg_dist_placement JOIN pg_dist_shard USING (shardid)
      WHERE groupid = $1 AND logicalrelid <> 'lookup'::regclass`;
    await operator.query('BEGIN');
    await client.query('BEGIN');
    await operator.query(lockOwnShards, [1]);
    await client.query(lockOwnShards, [2]);
    await operator.query('ROLLBACK');
    await client.query('ROLLBACK');
  });
});

describe('a transaction of several statements', () => {
  const values = async () =>
    (await observer.query('SELECT id, v FROM items WHERE v IS NOT NULL ORDER BY id')).rows;

  it('commits on all workers, or on none', async () => {
    const before = await values();
    await client.query('BEGIN');
    await client.query(INCREMENT, [key]);
    await client.query(INCREMENT, [otherKey]);
    expect(await values()).toEqual(before);
    await client.query('ROLLBACK');
    expect(await values()).toEqual(before);
    await client.query('BEGIN');
    await client.query(INCREMENT, [key]);
    await client.query(INCREMENT, [otherKey]);
    await client.query('COMMIT');
    expect(await values()).not.toEqual(before);
  });

  it('sees its own writes', async () => {
    await client.query('BEGIN');
    await client.query('UPDATE items SET v = -1 WHERE id = $1', [secondKey]);
    const { rows } = await client.query('SELECT v FROM items WHERE id = $1', [secondKey]);
    expect(rows).toEqual([{ v: -1 }]);
    await client.query('ROLLBACK');
  });

  it('loses no update of another', async () => {
    const read = 'SELECT v FROM items WHERE id = $1';
    const before = (await observer.query<{ v: number }>(read, [key])).rows[0]?.v ?? 0;
    await client.query('BEGIN');
    await client.query(INCREMENT, [key]);
    const other = operator.query(INCREMENT, [key]);
    await client.query(INCREMENT, [key]);
    await client.query('COMMIT');
    await other;
    expect((await observer.query<{ v: number }>(read, [key])).rows[0]?.v).toBe(before + 3);
  });
});

describe('traffic', () => {
  const count = async () => {
    const { rows } = await observer.query<{ n: number }>('SELECT count(*)::int AS n FROM items');
    return rows[0]?.n ?? -1;
  };
  const options = { clients: { writers: 4, readers: 2 }, thinkMs: 5 };

  it('survives a clean restart under a hold', async () => {
    const before = await count();
    const traffic = startTraffic({
      ...options,
      connection: cluster.coordinator.connection,
      firstId: 1_000,
    });
    await traffic.waitForProgress(100);
    await operator.query('BEGIN');
    await operator.query(PAUSE_NODE, [await nodeId(1)]);
    await cluster.group(1).primary.restart();
    await operator.query('COMMIT');
    await traffic.waitForProgress(100, { kind: 'write' });
    const report = await traffic.stop();
    expect(report.failures.filter(({ kind }) => kind === 'write')).toEqual([]);
    expect((await count()) - before).toBe(report.inserted);
  });

  it('goes to the new primary after a switchover under a hold, and no write fails', async () => {
    const before = await count();
    const traffic = startTraffic({
      ...options,
      connection: cluster.coordinator.connection,
      firstId: 5_000,
    });
    await traffic.waitForProgress(100);
    const id = await nodeId(1);
    const { primary, standby } = cluster.group(1);
    await operator.query('BEGIN');
    await operator.query(UPDATE_NODE, [id, `${primary.host}-demoted`, primary.port]);
    await cluster.group(1).switchover();
    await operator.query(UPDATE_NODE, [id, standby.host, standby.port]);
    await operator.query('COMMIT');
    await traffic.waitForProgress(100, { kind: 'write' });
    const report = await traffic.stop();
    expect(report.failures.filter(({ kind }) => kind === 'write')).toEqual([]);
    expect((await count()) - before).toBe(report.inserted);
  });

  it('fails with class 08 while a primary is down, and not any more once it has moved', async () => {
    await waitUntilSynced();
    const id = await nodeId(2);
    const { standby } = cluster.group(2);
    await cluster.group(2).primary.kill();
    const read = client.query('SELECT * FROM items WHERE id = $1', [otherKey]);
    await expect(read).rejects.toMatchObject({ code: '08006' });
    await expect(client.query(INCREMENT, [otherKey])).rejects.toMatchObject({ code: '08006' });
    await cluster.group(2).promoteStandby();
    await operator.query(UPDATE_NODE, [id, standby.host, standby.port]);
    expect((await client.query(INCREMENT, [otherKey])).rowCount).toBe(1);
    expect((await client.query('SELECT * FROM items WHERE id = $1', [otherKey])).rowCount).toBe(1);
  });
});
