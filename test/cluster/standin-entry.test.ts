import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, inject, it } from 'vitest';
import type pg from 'pg';
import { startCluster, waitFor, type Cluster, type Server } from '../kit/servers/index.js';
import { backendPid, primaryNodeId, waitUntilBlocked } from '../kit/standin/observe.js';
import { prepareCluster } from '../kit/standin/prepare.js';
import { keysOfGroup } from '../kit/standin/schema.js';

// Statements that enter through any node with metadata, on the stand-in and on Citus: see
// standin.test.ts.

let cluster: Cluster;
let coordinator: Server;
/** The primary of group 1, as a node where statements enter. */
let entry: Server;
/** Sessions that only look; they last for the file, the others for one test. */
let observer: pg.Client;
let entryObserver: pg.Client;
let operator: pg.Client;
let client: pg.Client;
let entryOperator: pg.Client;
let entryClient: pg.Client;
/** A key of items in group 1, two in group 2. */
let ownKey: number;
let key: number;
let secondKey: number;

beforeAll(async () => {
  cluster = await startCluster({ template: inject('template') });
  await prepareCluster(cluster);
  coordinator = cluster.coordinator;
  entry = cluster.group(1).primary;
  observer = await coordinator.connect();
  entryObserver = await entry.connect();
  [ownKey = 0] = await keysOfGroup(observer, 1, 1);
  [key = 0, secondKey = 0] = await keysOfGroup(observer, 2, 2);
  for (const id of [ownKey, key]) await observer.query('INSERT INTO items VALUES ($1, 0)', [id]);
  await entryObserver.query('INSERT INTO items VALUES ($1, 0)', [secondKey]);
  await entryObserver.query('INSERT INTO lookup VALUES (1, 0)');
});

afterAll(async () => {
  for (const session of [observer, entryObserver]) await session.end();
  await cluster.stop();
});

beforeEach(async () => {
  [operator, client] = [await coordinator.connect(), await coordinator.connect()];
  [entryOperator, entryClient] = [await entry.connect(), await entry.connect()];
});

afterEach(async () => {
  for (const session of [observer, entryObserver]) await session.query(END_SESSIONS);
});

const END_SESSIONS = `
  SELECT pg_terminate_backend(pid) FROM pg_stat_activity
  WHERE application_name = 'mpp-controller test' AND pid <> pg_backend_pid()`;
const INCREMENT = 'UPDATE items SET v = v + 1 WHERE id = $1';
const READ = 'SELECT v FROM items WHERE id = $1';
const COUNT = 'SELECT count(*)::int AS n FROM items';
const LOCK_GROUP = `
  SELECT lock_shard_metadata(7, array_agg(shardid))
  FROM pg_dist_placement JOIN pg_dist_shard USING (shardid)
  WHERE groupid = $1 AND logicalrelid <> 'lookup'::regclass`;

/** Cancels what `session` waits for, and expects that it fails for it. */
async function cancel(by: pg.Client, pid: number, statement: Promise<unknown>): Promise<void> {
  const cancelled = expect(statement).rejects.toMatchObject({ code: '57014' });
  await by.query('SELECT pg_cancel_backend($1::integer)', [pid]);
  await cancelled;
}

describe('a row', () => {
  it('written through one node is seen through every other', async () => {
    for (const session of [client, entryClient]) {
      const before = (await session.query<{ n: number }>(COUNT)).rows[0]?.n ?? 0;
      const [id] = await keysOfGroup(observer, 2, 1, secondKey + before);
      await session.query('INSERT INTO items VALUES ($1, 5)', [id]);
      for (const reader of [observer, entryObserver]) {
        expect((await reader.query(READ, [id])).rows).toEqual([{ v: 5 }]);
        expect((await reader.query(COUNT)).rows).toEqual([{ n: before + 1 }]);
        expect((await reader.query(`${READ} FOR UPDATE`, [id])).rowCount).toBe(1);
        expect((await reader.query('SELECT FROM items WHERE id = -1')).rowCount).toBe(0);
      }
      const duplicate = entryClient.query('INSERT INTO items VALUES ($1, 5)', [id]);
      await expect(duplicate).rejects.toMatchObject({ code: '23505' });
      expect((await entryObserver.query('DELETE FROM items WHERE id = $1', [id])).rowCount).toBe(1);
      expect((await observer.query(READ, [id])).rowCount).toBe(0);
    }
  });

  it('of a reference table is the same on every node', async () => {
    for (const session of [client, entryClient]) {
      await session.query('UPDATE lookup SET v = v + 1 WHERE id = 1');
      const seen = await Promise.all(
        [observer, entryObserver].map((each) => each.query('SELECT * FROM lookup')),
      );
      expect(seen[0]?.rows).toEqual(seen[1]?.rows);
    }
    const other = await cluster
      .group(2)
      .primary.withSession((each) => each.query('SELECT v FROM lookup WHERE id = 1'));
    expect(other.rows).toEqual([{ v: 2 }]);
  });

  it('is found by one key, by several, and by none', async () => {
    for (const session of [client, entryClient]) {
      const count = async (sql: string) => (await session.query(sql)).rowCount;
      expect(await count(`SELECT FROM items WHERE id = ${key}`)).toBe(1);
      expect(await count(`SELECT FROM items WHERE id = ${key} OR id = ${ownKey}`)).toBe(2);
      expect(await count(`SELECT FROM items WHERE id IN (${key}, ${ownKey})`)).toBe(2);
      expect(await count(`SELECT FROM items WHERE id BETWEEN ${key} AND ${key}`)).toBe(1);
      expect(await count('SELECT FROM items')).toBe(3);
      expect(await count('UPDATE items SET v = v + 1')).toBe(3);
      const joined = `SELECT FROM items JOIN generate_series(1, 10000) AS n ON items.id = n`;
      expect(await count(joined)).toBe(3);
    }
  });

  it('keeps its lock until the transaction ends, for clients of all nodes', async () => {
    await entryClient.query('BEGIN');
    await entryClient.query(INCREMENT, [key]);
    await entryClient.query(INCREMENT, [ownKey]);
    const before = (await observer.query<{ v: number }>(READ, [key])).rows[0]?.v ?? 0;
    expect((await entryClient.query(READ, [key])).rows).toEqual([{ v: before + 1 }]);
    const other = client.query(INCREMENT, [key]);
    const worker = await cluster.group(2).primary.connect();
    await waitFor('the update to wait for the row', async () => {
      const { rowCount } = await worker.query(ROW_WAITERS);
      return rowCount === 1;
    });
    await worker.end();
    await entryClient.query('COMMIT');
    await other;
    expect((await observer.query(READ, [key])).rows).toEqual([{ v: before + 2 }]);
  });

  it('is free again when the transaction of its writer failed', async () => {
    for (const session of [client, entryClient]) {
      await session.query('BEGIN');
      await session.query(INCREMENT, [key]);
      await expect(session.query('INSERT INTO lookup VALUES (1, 0)')).rejects.toThrow();
      await session.query('ROLLBACK');
      await observer.query("SET statement_timeout = '5s'");
      await observer.query(INCREMENT, [key]);
      await observer.query('RESET statement_timeout');
    }
  });
});

const ROW_WAITERS = `
  SELECT FROM pg_stat_activity
  WHERE wait_event_type = 'Lock' AND application_name LIKE 'citus_internal gpid=%'`;

describe('a global pid', () => {
  it('names the entry node and the backend of the client', async () => {
    const pairs = [
      [client, await primaryNodeId(observer, 0)],
      [entryClient, await primaryNodeId(observer, 1)],
    ] as const;
    for (const [session, nodeid] of pairs) {
      await session.query('BEGIN');
      await session.query(INCREMENT, [key]);
      const gpid = BigInt(nodeid) * 10_000_000_000n + BigInt(await backendPid(session));
      const { rowCount } = await cluster
        .group(2)
        .primary.withSession((worker) =>
          worker.query('SELECT FROM pg_stat_activity WHERE application_name = $1', [
            `citus_internal gpid=${gpid}`,
          ]),
        );
      expect(rowCount).toBe(1);
      const { rows } = await session.query('SELECT citus_backend_gpid()::text AS gpid');
      expect(rows).toEqual([{ gpid: String(gpid) }]);
      await session.query('ROLLBACK');
    }
  });
});

describe('a hold', () => {
  it('of table locks on an entry node makes all wait there, and none elsewhere', async () => {
    for (const table of ['items', 'notes', 'lookup']) {
      await entryOperator.query('BEGIN');
      await entryOperator.query('SET LOCAL citus.enable_ddl_propagation = off');
      await entryOperator.query(`LOCK TABLE ${table} IN ACCESS EXCLUSIVE MODE`);
      const [waiting, holding] = [await backendPid(entryClient), await backendPid(entryOperator)];
      for (const sql of [
        `SELECT * FROM ${table} WHERE id = ${key}`,
        `SELECT count(*) FROM ${table}`,
        `UPDATE ${table} SET v = v + 1 WHERE id = ${key}`,
      ]) {
        const statement = entryClient.query(sql);
        await waitUntilBlocked(entryObserver, waiting, holding);
        await cancel(entryObserver, waiting, statement);
        await client.query(sql);
      }
      await entryOperator.query('ROLLBACK');
    }
  });

  it('in EXCLUSIVE mode makes only writers wait', async () => {
    await entryOperator.query('BEGIN');
    await entryOperator.query('SET LOCAL citus.enable_ddl_propagation = off');
    await entryOperator.query('LOCK TABLE items, lookup IN EXCLUSIVE MODE');
    const [waiting, holding] = [await backendPid(entryClient), await backendPid(entryOperator)];
    await entryClient.query(READ, [key]);
    await entryClient.query('SELECT * FROM lookup');
    const write = entryClient.query(INCREMENT, [key]);
    await waitUntilBlocked(entryObserver, waiting, holding);
    await entryOperator.query('ROLLBACK');
    await write;
  });

  it('waits for a reader that is in a transaction', async () => {
    await entryClient.query('BEGIN');
    await entryClient.query(READ, [key]);
    await entryOperator.query("SET lock_timeout = '50ms'");
    await entryOperator.query('BEGIN');
    await entryOperator.query('SET LOCAL citus.enable_ddl_propagation = off');
    const lock = entryOperator.query('LOCK TABLE items IN ACCESS EXCLUSIVE MODE');
    await expect(lock).rejects.toMatchObject({ code: '55P03' });
  });

  it('of shard locks is one of its entry node alone', async () => {
    await operator.query('BEGIN');
    await operator.query(LOCK_GROUP, [2]);
    await entryClient.query(INCREMENT, [key]);
    await entryOperator.query('BEGIN');
    await entryOperator.query(LOCK_GROUP, [2]);
    await operator.query('ROLLBACK');
    await client.query(INCREMENT, [key]);
    const [waiting, holding] = [await backendPid(entryClient), await backendPid(entryOperator)];
    await entryClient.query(READ, [key]);
    await entryClient.query(INCREMENT, [ownKey]);
    const write = entryClient.query(INCREMENT, [key]);
    await waitUntilBlocked(entryObserver, waiting, holding);
    await entryOperator.query('ROLLBACK');
    await write;
  });
});
