import { afterAll, beforeAll, beforeEach, describe, expect, inject, it } from 'vitest';
import type pg from 'pg';
import { startCluster, type Cluster, type Server } from '../kit/servers/index.js';
import { primaryNodeId, waitUntilSynced } from '../kit/standin/observe.js';
import { prepareCluster } from '../kit/standin/prepare.js';
import { keysOfGroup } from '../kit/standin/schema.js';
import { startTraffic } from '../kit/traffic/traffic.js';

// Traffic that enters through two nodes, on the stand-in and on Citus: see standin.test.ts.

let cluster: Cluster;
let coordinator: Server;
/** The primary of group 1, as a node where statements enter. */
let entry: Server;
let observer: pg.Client;
let entryObserver: pg.Client;
let operator: pg.Client;
let entryOperator: pg.Client;
/** A key of items in group 2. */
let key: number;

beforeAll(async () => {
  cluster = await startCluster({ template: inject('template') });
  await prepareCluster(cluster);
  coordinator = cluster.coordinator;
  entry = cluster.group(1).primary;
  [observer, entryObserver] = [await coordinator.connect(), await entry.connect()];
  [operator, entryOperator] = [await coordinator.connect(), await entry.connect()];
  [key = 0] = await keysOfGroup(observer, 2, 1);
  await observer.query('INSERT INTO items VALUES ($1, 0)', [key]);
  await observer.query('INSERT INTO lookup VALUES (1, 0)');
});

afterAll(async () => {
  await Promise.all([observer, operator].map((session) => session.end()));
  await cluster.stop();
});

// Whatever a failed test left open would hold up the next one.
beforeEach(async () => {
  for (const session of [operator, entryOperator]) await session.query('ROLLBACK');
});

const UPDATE_NODE = 'SELECT citus_update_node($1, $2, $3)';
const INCREMENT = 'UPDATE items SET v = v + 1 WHERE id = $1';
const LOCK_GROUP = `
  SELECT lock_shard_metadata(7, array_agg(shardid))
  FROM pg_dist_placement JOIN pg_dist_shard USING (shardid)
  WHERE groupid = $1 AND logicalrelid <> 'lookup'::regclass`;

interface Sums {
  readonly n: number;
  readonly items: number;
  readonly notes: number;
}

async function sums(of: pg.Client): Promise<Sums | undefined> {
  const { rows } = await of.query<Sums>(`
    SELECT (SELECT count(*)::int FROM items) AS n,
           (SELECT sum(v)::int FROM items) AS items,
           (SELECT coalesce(sum(v), 0)::int FROM notes) AS notes`);
  return rows[0];
}

describe('traffic through two nodes', () => {
  it.each([
    ['rows of their own', 10_000, undefined],
    ['rows that they share', 60_000, 3],
  ])('fails nowhere by itself: transactions on %s', async (_name, firstId, sharedNotes) => {
    const before = await sums(observer);
    const traffic = startTraffic({
      connection: [coordinator.connection, entry.connection],
      clients: { writers: 3, readers: 3, transactions: 4 },
      thinkMs: 5,
      firstId,
      ...(sharedNotes === undefined ? {} : { sharedNotes }),
    });
    await traffic.waitForProgress(300, { kind: 'transaction' });
    const report = await traffic.stop();
    expect(report.failures).toEqual([]);
    expect(report.deadlocks).toBe(0);
    expect(report.inFlight).toEqual({ write: 0, read: 0, transaction: 0 });
    for (const session of [observer, entryObserver]) {
      expect(await sums(session)).toEqual({
        n: Number(before?.n) + report.inserted,
        items: Number(before?.items) + report.acknowledged.items,
        notes: Number(before?.notes) + report.acknowledged.notes,
      });
    }
  });

  it('goes on through a switchover when both nodes are held until they know of it', async () => {
    const before = await sums(observer);
    const traffic = startTraffic({
      connection: [coordinator.connection, entry.connection],
      clients: { writers: 3, readers: 3 },
      thinkMs: 5,
      firstId: 110_000,
    });
    await traffic.waitForProgress(100);
    const id = await primaryNodeId(observer, 2);
    const { standby } = cluster.group(2);
    for (const session of [operator, entryOperator]) {
      await session.query('BEGIN');
      await session.query('SET LOCAL citus.enable_ddl_propagation = off');
      await session.query('LOCK TABLE items, notes, lookup IN ACCESS EXCLUSIVE MODE');
      await session.query(LOCK_GROUP, [2]);
    }
    await cluster.group(2).switchover();
    await operator.query(UPDATE_NODE, [id, standby.host, standby.port]);
    await operator.query('COMMIT');
    await waitUntilSynced(observer);
    await entryOperator.query('COMMIT');
    await traffic.waitForProgress(200);
    const report = await traffic.stop();
    expect(report.failures).toEqual([]);
    expect((await sums(entryObserver))?.n).toBe(Number(before?.n) + report.inserted);
  });

  it('ends for a transaction that has used the old primary, if only to read', async () => {
    await cluster.group(2).rejoin();
    await waitUntilSynced(observer);
    const id = await primaryNodeId(observer, 2);
    const { standby } = cluster.group(2);
    await observer.query('BEGIN');
    await observer.query('SELECT FROM items WHERE id = $1', [key]);
    await operator.query('BEGIN');
    await operator.query('SELECT citus_pause_node_within_txn($1)', [id]);
    await cluster.group(2).switchover();
    await operator.query(UPDATE_NODE, [id, standby.host, standby.port]);
    await operator.query('COMMIT');
    const late = observer.query(INCREMENT, [key]);
    await expect(late).rejects.toMatchObject({ code: expect.stringMatching(/^08/) as string });
    await observer.query('ROLLBACK');
    expect((await observer.query(INCREMENT, [key])).rowCount).toBe(1);
  });

  it('fails where the node does not know of the new primary yet', async () => {
    await cluster.group(2).rejoin();
    await waitUntilSynced(observer);
    const id = await primaryNodeId(observer, 2);
    const { standby } = cluster.group(2);
    await cluster.group(2).switchover();
    await operator.query('BEGIN');
    await operator.query(UPDATE_NODE, [id, standby.host, standby.port]);
    await expect(entryObserver.query(INCREMENT, [key])).rejects.toMatchObject({ code: '08006' });
    await operator.query('COMMIT');
    await waitUntilSynced(observer);
    expect((await entryObserver.query(INCREMENT, [key])).rowCount).toBe(1);
  });

  it('enters through a promoted worker as it did through the old one', async () => {
    const id = await primaryNodeId(observer, 1);
    const before = await sums(observer);
    const { standby } = cluster.group(1);
    await entryObserver.end();
    await entryOperator.end();
    await cluster.group(1).switchover();
    await operator.query(UPDATE_NODE, [id, standby.host, standby.port]);
    await waitUntilSynced(observer);
    const traffic = startTraffic({
      connection: [coordinator.connection, standby.connection],
      clients: { writers: 2, readers: 2, transactions: 2 },
      thinkMs: 5,
      firstId: 160_000,
    });
    await traffic.waitForProgress(50, { kind: 'transaction' });
    const report = await traffic.stop();
    expect(report.failures).toEqual([]);
    const after = await standby.withSession(sums);
    expect(after?.n).toBe(Number(before?.n) + report.inserted);
  });
});
