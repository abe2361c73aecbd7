import { afterAll, beforeAll, describe, expect, inject, it } from 'vitest';
import { PoolBusyError } from '../../src/errors.js';
import { closeSession, openSession } from '../../src/postgres/session.js';
import { createPool, type PoolOptions } from '../../src/postgres/pool.js';
import { FaultProxy } from '../kit/faults/proxy.js';
import { TestBed, type Server } from '../kit/servers/index.js';

const OPTIONS: PoolOptions = {
  schema: 'public',
  purpose: 'test',
  max: 2,
  onIdleError: () => undefined,
};
/** A peer that is waited for without bound takes minutes, in milliseconds. */
const SOON_MS = 5_000;

describe('a pool of sessions', () => {
  let testBed: TestBed;
  let server: Server;

  beforeAll(async () => {
    testBed = await TestBed.open({ template: inject('template') });
    server = await testBed.createServer('pool-bounds');
    await server.start();
  });
  afterAll(() => testBed.close());

  it('says soon that all are in use, and gives the next one that is free to the next who asks', async () => {
    const pool = createPool(server.connection, { ...OPTIONS, busyMs: 50 });
    const [one, other] = [await pool.connect(), await pool.connect()];
    await expect(pool.connect()).rejects.toBeInstanceOf(PoolBusyError);
    await expect(pool.query('SELECT')).rejects.toMatchObject({
      code: 'POOL_BUSY',
      retryable: true,
    });
    expect(pool.totalCount).toBe(2);
    one.release();
    const again = await pool.connect();
    again.release();
    other.release();
    expect((await pool.query('SELECT 1 AS one')).rows).toEqual([{ one: 1 }]);
    await pool.end();
    await pool.end();
  });

  it.each([
    ['idle', false],
    ['in use', true],
  ])(
    'is closed soon when its sessions are %s and the network swallows everything',
    async (_, inUse) => {
      const proxy = await FaultProxy.start(server);
      const { port } = proxy;
      const pool = createPool({ ...server.connection, host: '127.0.0.1', port }, OPTIONS);
      const client = await pool.connect();
      const hanging = inUse ? client.query('SELECT').catch((error: unknown) => error) : undefined;
      if (!inUse) client.release();
      proxy.swallowAll();
      const stuck = inUse ? client.query('SELECT').catch((error: unknown) => error) : undefined;
      const began = performance.now();
      await pool.end();
      expect(performance.now() - began).toBeLessThan(SOON_MS);
      if (inUse) expect(await stuck).toBeInstanceOf(Error);
      await hanging;
      await proxy.stop();
    },
  );

  it('loses all its sessions at once when it is severed, and opens no others', async () => {
    const severed = new AbortController();
    const pool = createPool(server.connection, { ...OPTIONS, severed: severed.signal });
    const sleeping = pool.query('SELECT pg_sleep(60)').catch((error: unknown) => error);
    await pool.query('SELECT');
    severed.abort();
    expect(await sleeping).toBeInstanceOf(Error);
    await expect(pool.query('SELECT')).rejects.toThrow('were closed');
    await pool.end();
  });

  it('and a single session are closed in the same way', async () => {
    const proxy = await FaultProxy.start(server);
    const { port } = proxy;
    const session = await openSession({ ...server.connection, host: '127.0.0.1', port }, 'test');
    proxy.swallowAll();
    const began = performance.now();
    await closeSession(session);
    expect(performance.now() - began).toBeLessThan(SOON_MS);
    expect(session.connection.stream.destroyed).toBe(true);
    await proxy.stop();
  });
});
