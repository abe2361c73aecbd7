import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { afterAll, beforeAll, describe, expect, inject, it } from 'vitest';
import { packageRoot } from '../../src/package-root.js';
import {
  type Server,
  startCluster,
  TestBed,
  waitFor,
  waitUntilReplayed,
} from '../kit/servers/index.js';
import { exists } from '../kit/servers/folder.js';
import { childrenOf, isAlive } from '../kit/servers/processes.js';

const template = inject('template');

async function count(server: Server): Promise<number> {
  return server.withSession(async (session) => {
    const { rows } = await session.query<{ n: number }>('SELECT count(*)::int AS n FROM kept');
    return rows[0]?.n ?? 0;
  });
}

async function run(server: Server, sql: string): Promise<void> {
  await server.withSession((session) => session.query(sql));
}

describe('a server', () => {
  let testBed: TestBed;
  let server: Server;

  beforeAll(async () => {
    testBed = await TestBed.open({ template });
    server = await testBed.createServer('one', { work_mem: '5MB' });
    await server.start();
    await run(server, 'CREATE TABLE kept (n int)');
  });

  afterAll(() => testBed.close());

  it('runs with its settings, those for tests and those of ALTER SYSTEM', async () => {
    await run(server, "ALTER SYSTEM SET maintenance_work_mem = '7MB'");
    await server.restart();
    const settings = await server.withSession(async (session) => {
      const { rows } = await session.query<{ setting: string }>(
        `SELECT current_setting(name) AS setting
           FROM unnest(ARRAY['work_mem', 'fsync', 'maintenance_work_mem', 'wal_level']) AS name`,
      );
      return rows.map(({ setting }) => setting);
    });
    expect(settings).toEqual(['5MB', 'off', '7MB', 'logical']);
  });

  it('tells the end of its log when it does not start', async () => {
    const broken = await testBed.createServer('broken', { work_mem: 'much' });
    await expect(broken.start()).rejects.toThrow(/invalid value for parameter "work_mem"/);
    expect(broken.isRunning).toBe(false);
  });

  it('comes back on its port after a crash, with what was committed', async () => {
    const session = await server.connect();
    const lost = new Promise((resolve) => session.once('end', resolve));
    await session.query('INSERT INTO kept VALUES (1)');
    await server.kill();
    await lost;
    expect(server.isRunning).toBe(false);

    await server.start();
    expect(await count(server)).toBe(1);
  });

  it('gets a standby that streams and is promoted', async () => {
    await run(server, 'INSERT INTO kept VALUES (2)');
    const standby = await testBed.createStandby(server);
    await run(server, 'INSERT INTO kept VALUES (3)');
    await waitUntilReplayed(server, standby);
    expect([await standby.isInRecovery(), await count(standby)]).toEqual([true, 3]);

    await standby.promote();
    await run(standby, 'INSERT INTO kept VALUES (4)');
    expect([await count(server), await count(standby)]).toEqual([3, 4]);
  });
});

describe('a cluster', () => {
  it('fails over, takes the old primary back, and switches over to it', async () => {
    const cluster = await startCluster({ template, groups: 1 });
    try {
      const group = cluster.group(1);
      const first = group.primary;
      await run(first, 'CREATE TABLE kept (n int)');
      await waitUntilReplayed(first, group.standby);
      await group.failover();
      await run(group.primary, 'INSERT INTO kept VALUES (1)');
      await group.rejoin();
      await group.switchover();

      expect(group.primary).toBe(first);
      await run(group.primary, 'INSERT INTO kept VALUES (2)');
      expect(await count(group.primary)).toBe(2);
    } finally {
      await cluster.stop();
    }
  });
});

/** Starts a server, tells where it is, and waits to be killed. */
const OWNER = `
  import { createViteServer } from 'vitest/node';
  const vite = await createViteServer({
    configFile: false,
    logLevel: 'error',
    server: { middlewareMode: true, watch: null, ws: false },
  });
  const [module, template] = process.argv.slice(1);
  const { TestBed } = await vite.ssrLoadModule(module);
  const testBed = await TestBed.open({ template: JSON.parse(template) });
  const server = await testBed.createServer('orphan');
  await server.start();
  console.log(JSON.stringify({ pid: server.pid, data: server.data }));`;

it('leaves no process and no folder when its owner gets SIGKILL', async () => {
  const module = join(packageRoot(), 'test', 'kit', 'servers', 'index.ts');
  const owner = spawn(
    process.execPath,
    ['--input-type=module', '-e', OWNER, module, JSON.stringify(template)],
    { cwd: packageRoot(), stdio: ['ignore', 'pipe', 'inherit'] },
  );
  const [line] = (await once(createInterface(owner.stdout), 'line')) as [string];
  const { pid, data } = JSON.parse(line) as { pid: number; data: string };
  if (owner.pid === undefined) throw new Error('the owner did not start');
  // Its postmaster, that one's backends, and the watcher.
  const processes = [...(await childrenOf(owner.pid)), ...(await childrenOf(pid))];
  expect(processes).toContain(pid);
  expect(await exists(data)).toBe(true);

  owner.kill('SIGKILL');

  await waitFor('everything of the owner to be gone', async () => {
    const alive = await Promise.all(processes.map(isAlive));
    return !alive.includes(true) && !(await exists(data));
  });
});
