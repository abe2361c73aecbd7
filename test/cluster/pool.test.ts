import { once } from 'node:events';
import { createServer, type AddressInfo, type Server, type Socket } from 'node:net';
import type { Pool } from 'pg';
import { afterAll, beforeAll, describe, expect, inject, it } from 'vitest';
import { createPool, type PoolOptions } from '../../src/postgres/pool.js';
import { openSession, type Connection } from '../../src/postgres/session.js';
import { Transaction } from '../../src/postgres/transaction.js';
import { TestBed } from '../kit/servers/index.js';

const OPTIONS: PoolOptions = {
  schema: 'our "own"',
  purpose: 'test',
  max: 1,
  onIdleError: () => undefined,
};

/** What a session has of its own; `client` as source would be a parameter of the startup packet. */
const BOUNDS = `
  SELECT name, setting, source
  FROM pg_settings
  WHERE name IN ('statement_timeout', 'lock_timeout', 'search_path')
  ORDER BY name`;

describe('sessions', () => {
  let testBed: TestBed;
  let connection: Connection;

  beforeAll(async () => {
    testBed = await TestBed.open({ template: inject('template') });
    const server = await testBed.createServer('pool');
    await server.start();
    connection = server.connection;
  });
  afterAll(() => testBed.close());

  it('of a pool get their bounds without a startup parameter, which PgBouncer refuses', async () => {
    const pool = createPool(connection, { ...OPTIONS, statementTimeoutMs: 1_500 });
    const { rows } = await pool.query(BOUNDS).finally(() => pool.end());
    expect(rows).toEqual([
      { name: 'lock_timeout', setting: '1500', source: 'session' },
      { name: 'search_path', setting: 'pg_catalog, pg_temp', source: 'session' },
      { name: 'statement_timeout', setting: '1500', source: 'session' },
    ]);
  });

  it('of a pool without bounds keep those of their role', async () => {
    const pool = createPool({ ...connection, options: '-c statement_timeout=9s' }, OPTIONS);
    const { rows } = await pool.query(BOUNDS).finally(() => pool.end());
    expect(rows).toContainEqual({ name: 'statement_timeout', setting: '9000', source: 'client' });
    expect(rows).toContainEqual(expect.objectContaining({ name: 'lock_timeout', setting: '0' }));
  });

  it('opened one by one get theirs in the same way', async () => {
    const bounds = { statement_timeout: 1_500, lock_timeout: 700 };
    const session = await openSession({ ...connection, ...bounds }, 'test');
    const { rows } = await session.query(BOUNDS).finally(() => session.end());
    expect(rows).toContainEqual({ name: 'statement_timeout', setting: '1500', source: 'session' });
    expect(rows).toContainEqual({ name: 'lock_timeout', setting: '700', source: 'session' });
  });
});

describe('a transaction', () => {
  const SETTINGS = `
    SELECT name, setting
    FROM pg_settings
    WHERE name IN ('application_name', 'deadlock_timeout', 'idle_in_transaction_session_timeout',
                   'lock_timeout', 'statement_timeout')
    ORDER BY name`;
  const BOUNDED = { idleMs: 9_000, lockMs: 700, statementMs: 8_000 };
  let testBed: TestBed;
  let pool: Pool;
  let lowly: Pool;

  beforeAll(async () => {
    testBed = await TestBed.open({ template: inject('template') });
    const server = await testBed.createServer('transaction');
    await server.start();
    await server.withSession(async (db) => {
      await db.query('CREATE ROLE lowly LOGIN');
      await db.query('CREATE TABLE public.one_row AS SELECT 1 AS id');
      await db.query('GRANT ALL ON public.one_row TO lowly');
    });
    pool = createPool(server.connection, OPTIONS);
    lowly = createPool({ ...server.connection, user: 'lowly' }, OPTIONS);
  });
  afterAll(async () => {
    await Promise.all([pool.end(), lowly.end()]);
    await testBed.close();
  });

  it('has its bounds, its name, its savepoint and no deadlock to die of, until it ends', async () => {
    const before = (await pool.query(SETTINGS)).rows;
    const transaction = await Transaction.begin(pool, BOUNDED, "purpose 'x'", {
      savepoint: 'mark',
    });
    const { client, pid } = transaction;
    expect((await client.query(SETTINGS)).rows).toEqual([
      { name: 'application_name', setting: "mpp-controller purpose 'x'" },
      { name: 'deadlock_timeout', setting: String(24 * 60 * 60 * 1_000) },
      { name: 'idle_in_transaction_session_timeout', setting: '9000' },
      { name: 'lock_timeout', setting: '700' },
      { name: 'statement_timeout', setting: '8000' },
    ]);
    await client.query('ROLLBACK TO SAVEPOINT mark');
    await transaction.rollback();
    const { rows } = await pool.query<{ pid: number }>('SELECT pg_backend_pid() AS pid');
    expect(rows).toEqual([{ pid }]);
    expect((await pool.query(SETTINGS)).rows).toEqual(before);
  });

  it('of a role that may not set deadlock_timeout does without', async () => {
    const transaction = await Transaction.begin(lowly, BOUNDED, 'x');
    const { rows } = await transaction.client.query(SETTINGS);
    expect(rows).toContainEqual({ name: 'deadlock_timeout', setting: '1000' });
    await transaction.rollback();
  });

  it('with a lock that another one has is none', async () => {
    const lock = 'SELECT FROM public.one_row FOR UPDATE SKIP LOCKED';
    const first = await Transaction.beginLocked(pool, BOUNDED, 'x', lock);
    expect(await Transaction.beginLocked(lowly, BOUNDED, 'x', lock)).toBeUndefined();
    await first?.rollback();
    const second = await Transaction.beginLocked(lowly, BOUNDED, 'x', lock);
    expect(second).toBeDefined();
    await second?.rollback();
  });
});

describe('a server that falls silent right after the login', () => {
  const sockets: Socket[] = [];
  let server: Server;
  let connection: Connection;

  beforeAll(async () => {
    server = createServer((socket) => {
      sockets.push(socket);
      socket.on('error', () => undefined);
      socket.once('data', () => socket.write(WELCOME));
    });
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    const { port } = server.address() as AddressInfo;
    connection = { host: '127.0.0.1', port, user: 'u', connectionTimeoutMillis: 200 };
  });
  afterAll(async () => {
    for (const socket of sockets) socket.destroy();
    server.close();
    await once(server, 'close');
  });

  it('fails each caller that asks a pool for a session, and keeps no place in it', async () => {
    const pool = createPool(connection, OPTIONS);
    await expect(pool.connect()).rejects.toThrow(Error);
    expect(pool.totalCount).toBe(0);
    await pool.end();
  });

  it('fails each caller that opens one', async () => {
    const bounded = { ...connection, statement_timeout: 100 };
    await expect(openSession(bounded, 'test')).rejects.toMatchObject({ code: 'UNREACHABLE' });
  });
});

/** AuthenticationOk, then ReadyForQuery. */
const WELCOME = Buffer.from([0x52, 0, 0, 0, 8, 0, 0, 0, 0, 0x5a, 0, 0, 0, 5, 0x49]);
