import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, inject, it } from 'vitest';
import type pg from 'pg';
import { startCluster, waitFor, type Cluster } from '../kit/servers/index.js';
import {
  backendPid,
  primaryNodeId,
  waitUntilBlocked,
  waitUntilSynced,
} from '../kit/standin/observe.js';
import { prepareCluster } from '../kit/standin/prepare.js';
import { keysOfGroup } from '../kit/standin/schema.js';
import { startTraffic } from '../kit/traffic/traffic.js';

// The locks and the router of the stand-in, under the same checks as Citus: see standin.test.ts.

let cluster: Cluster;
/** A session that only looks; it lasts for the file, the others for one test. */
let observer: pg.Client;
let operator: pg.Client;
let client: pg.Client;
/** Two keys of items in group 1, and one in group 2. */
let key: number;
let secondKey: number;
let otherKey: number;

beforeAll(async () => {
  cluster = await startCluster({ template: inject('template') });
  await prepareCluster(cluster);
  observer = await cluster.coordinator.connect();
  [key = 0, secondKey = 0] = await keysOfGroup(observer, 1, 2);
  [otherKey = 0] = await keysOfGroup(observer, 2, 1);
  for (const id of [key, secondKey, otherKey]) {
    await observer.query('INSERT INTO items VALUES ($1, 0)', [id]);
  }
  await observer.query('INSERT INTO notes VALUES ($1, 0)', [key]);
  await observer.query('INSERT INTO lookup VALUES (1, 0)');
});

afterAll(async () => {
  await observer.end();
  await cluster.stop();
});

beforeEach(async () => {
  operator = await cluster.coordinator.connect();
  client = await cluster.coordinator.connect();
});

afterEach(async () => {
  // Whatever a failed test left running would hold up the next one.
  await observer.query(END_SESSIONS);
});

const END_SESSIONS = `
  SELECT pg_terminate_backend(pid) FROM pg_stat_activity
  WHERE application_name = 'mpp-controller test' AND pid <> pg_backend_pid()`;
const UPDATE_NODE = 'SELECT citus_update_node($1, $2, $3)';
const PAUSE_NODE = 'SELECT citus_pause_node_within_txn($1)';
const INCREMENT = 'UPDATE items SET v = v + 1 WHERE id = $1';

describe('a hold', () => {
  const holds: readonly [name: string, take: () => Promise<unknown>][] = [
    [
      'by citus_update_node',
      async () =>
        operator.query(UPDATE_NODE, [await primaryNodeId(observer, 1), '127.0.0.1-demoted', 1]),
    ],
    [
      'by citus_pause_node_within_txn',
      async () => operator.query(PAUSE_NODE, [await primaryNodeId(observer, 1)]),
    ],
  ];

  it.each(holds)('%s makes writers of the group wait, and no others', async (_name, take) => {
    await operator.query('BEGIN');
    await take();
    const holding = await backendPid(operator);
    for (const [sql, values] of [
      [INCREMENT, [key]],
      ['DELETE FROM notes WHERE id = $1', [key]],
      ['UPDATE lookup SET v = v + 1 WHERE id = $1', [1]],
    ] as const) {
      const waiting = await backendPid(client);
      const write = client.query(sql, [...values]);
      await waitUntilBlocked(observer, waiting, holding);
      const cancelled = expect(write).rejects.toMatchObject({ code: '57014' });
      await observer.query('SELECT pg_cancel_backend($1::integer)', [waiting]);
      await cancelled;
    }
    for (const [sql, values] of [
      ['SELECT * FROM items WHERE id = $1', [key]],
      ['SELECT count(*) FROM items', []],
      ['SELECT * FROM lookup', []],
      [INCREMENT, [otherKey]],
    ] as const) {
      await client.query(sql, [...values]);
    }
    const waiting = await backendPid(client);
    const write = client.query(INCREMENT, [key]);
    await waitUntilBlocked(observer, waiting, holding);
    await operator.query('ROLLBACK');
    expect((await write).rowCount).toBe(1);
  });

  it('waits for a writer in a transaction until lock_timeout, and harms no client', async () => {
    await client.query('BEGIN');
    await client.query(INCREMENT, [key]);
    await operator.query("SET lock_timeout = '50ms'");
    const pause = operator.query(PAUSE_NODE, [await primaryNodeId(observer, 1)]);
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
    await operator.query('SELECT citus_pause_node_within_txn($1, true, 300)', [
      await primaryNodeId(observer, 1),
    ]);
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
    await operator.query(PAUSE_NODE, [await primaryNodeId(observer, 1)]);
    const waiting = await backendPid(client);
    const second = client.query(PAUSE_NODE, [await primaryNodeId(observer, 2)]);
    await waitUntilBlocked(observer, waiting, await backendPid(operator));
    await operator.query('ROLLBACK');
    await second;
  });

  it('by citus_update_node is ended by a forced update of another group', async () => {
    await operator.query('BEGIN');
    await operator.query(UPDATE_NODE, [await primaryNodeId(observer, 1), '127.0.0.1-demoted', 1]);
    await client.query('BEGIN');
    await client.query("SELECT citus_update_node($1, '127.0.0.1-demoted', 1, true, 100)", [
      await primaryNodeId(observer, 2),
    ]);
    await client.query('ROLLBACK');
    await expect(operator.query('COMMIT')).rejects.toThrow();
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
    (
      await observer.query<{ id: string; v: number }>(
        'SELECT id, v FROM items WHERE v IS NOT NULL ORDER BY id',
      )
    ).rows;

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
    await operator.query(PAUSE_NODE, [await primaryNodeId(observer, 1)]);
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
    const id = await primaryNodeId(observer, 1);
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
    await waitUntilSynced(observer);
    const id = await primaryNodeId(observer, 2);
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
