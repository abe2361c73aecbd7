import { afterAll, beforeAll, describe, expect, inject, it } from 'vitest';
import type pg from 'pg';
import { startCluster, waitFor, type Cluster } from '../kit/servers/index.js';
import { backendPid, waitUntilBlocked } from '../kit/standin/observe.js';
import { prepareCluster } from '../kit/standin/prepare.js';
import { keysOfGroup } from '../kit/standin/schema.js';

// Shards that move, on the stand-in and on Citus (see standin.test.ts), and many of them.

let cluster: Cluster;
let observer: pg.Client;
let operator: pg.Client;
let client: pg.Client;
let entryObserver: pg.Client;
let entryClient: pg.Client;

beforeAll(async () => {
  cluster = await startCluster({ template: inject('template'), standbys: false });
  await prepareCluster(cluster);
  const { coordinator } = cluster;
  const entry = cluster.group(1).primary;
  [observer, operator] = [await coordinator.connect(), await coordinator.connect()];
  client = await coordinator.connect();
  [entryObserver, entryClient] = [await entry.connect(), await entry.connect()];
});

afterAll(async () => {
  const sessions = [observer, operator, client, entryObserver, entryClient];
  for (const session of sessions) await session.end();
  await cluster.stop();
});

const INCREMENT = 'UPDATE items SET v = v + 1 WHERE id = $1';
const MOVE = `
  SELECT citus_move_shard_placement(
    get_shard_id_for_distribution_column('items', $1::bigint), $2, $3, $4, $5, 'block_writes')`;
const GROUPS_OF = `
  SELECT DISTINCT groupid FROM pg_dist_placement
  WHERE shardid IN (
    get_shard_id_for_distribution_column('items', $1::bigint),
    get_shard_id_for_distribution_column('notes', $1::bigint))`;
const WAITS_FOR_LOCK = `
  SELECT FROM pg_stat_activity WHERE pid = $1::integer AND wait_event_type = 'Lock'`;

describe('a shard that moves', () => {
  it('makes its writers wait on every node until the end, and takes its rows along', async () => {
    const [key = 0] = await keysOfGroup(observer, 2, 1);
    const [otherKey] = await keysOfGroup(observer, 1, 1);
    for (const id of [key, otherKey]) await client.query('INSERT INTO items VALUES ($1, 0)', [id]);
    await client.query('INSERT INTO notes VALUES ($1, 7)', [key]);
    const [pid, entryPid] = [await backendPid(client), await backendPid(entryClient)];
    const [source, target] = [cluster.group(2).primary, cluster.group(1).primary];

    await operator.query('BEGIN');
    await operator.query(MOVE, [key, source.host, source.port, target.host, target.port]);
    await client.query(INCREMENT, [otherKey]);
    await entryClient.query(INCREMENT, [otherKey]);
    const writes = [client.query(INCREMENT, [key]), entryClient.query(INCREMENT, [key])];
    await waitUntilBlocked(observer, pid, await backendPid(operator));
    await waitFor('the other node', async () => {
      return (await entryObserver.query(WAITS_FOR_LOCK, [entryPid])).rowCount === 1;
    });
    await operator.query('COMMIT');
    await Promise.all(writes);

    for (const session of [observer, entryObserver]) {
      expect((await session.query(GROUPS_OF, [key])).rows).toEqual([{ groupid: 1 }]);
      const values = 'SELECT i.v AS item, n.v AS note FROM items AS i JOIN notes AS n USING (id)';
      expect((await session.query(values)).rows).toEqual([{ item: 2, note: 7 }]);
      expect((await session.query('SELECT FROM items')).rowCount).toBe(2);
    }
  });
});

describe('ten thousand shards', () => {
  it.skipIf(inject('template').binaries.hasCitus)(
    'are there in no time, on all nodes',
    async () => {
      await operator.query("SELECT standin.create_distributed_table('wide', 10000)");
      await entryClient.query('INSERT INTO wide SELECT n, 0 FROM generate_series(1, 20) AS n');
      for (const session of [observer, entryObserver]) {
        expect((await session.query('SELECT FROM wide')).rowCount).toBe(20);
        expect((await session.query('SELECT FROM wide WHERE id = 7')).rowCount).toBe(1);
        const { rowCount } = await session.query(
          "SELECT FROM pg_dist_shard WHERE logicalrelid = 'wide'::regclass",
        );
        expect(rowCount).toBe(10_000);
      }
    },
  );
});
