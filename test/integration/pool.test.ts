import { once } from 'node:events';
import { createServer, type AddressInfo, type Server, type Socket } from 'node:net';
import { afterAll, beforeAll, describe, expect, inject, it } from 'vitest';
import { createPool, type PoolOptions } from '../../src/postgres/pool.js';
import { openSession, type Connection } from '../../src/postgres/session.js';
import { TestBed } from '../support/servers/index.js';

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
      { name: 'search_path', setting: '"our ""own""", pg_temp', source: 'session' },
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

  it('fails whoever asks a pool for a session, and keeps no place in it', async () => {
    const pool = createPool(connection, OPTIONS);
    await expect(pool.connect()).rejects.toThrow(Error);
    expect(pool.totalCount).toBe(0);
    await pool.end();
  });

  it('fails whoever opens one', async () => {
    const bounded = { ...connection, statement_timeout: 100 };
    await expect(openSession(bounded, 'test')).rejects.toMatchObject({ code: 'UNREACHABLE' });
  });
});

/** AuthenticationOk, then ReadyForQuery. */
const WELCOME = Buffer.from([0x52, 0, 0, 0, 8, 0, 0, 0, 0, 0x5a, 0, 0, 0, 5, 0x49]);
