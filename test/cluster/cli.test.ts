import type { Client } from 'pg';
import { afterAll, beforeAll, describe, expect, inject, it } from 'vitest';
import { runCli, type CommandResult } from '../kit/cli.js';
import { TestBed, waitFor, type Server } from '../kit/servers/index.js';
import { installStandin } from '../kit/standin/install.js';

const template = inject('template');

let testBed: TestBed;
let server: Server;

/** The URL of a database, with what must never be shown in it. */
function url(database: string, user = 'postgres'): string {
  return `postgresql://${user}:top%2Fsecret@${server.address}/${database}?application_name=hidden`;
}

async function cli(args: string, database = 'cli', env: NodeJS.ProcessEnv = {}) {
  const result = await runCli(args.split(' '), { DATABASE_URL: url(database), ...env });
  expect(result.stdout + result.stderr).not.toMatch(/top.{1,3}secret/);
  return result;
}

/** Expects one line on standard error, without a stack, and returns it. */
function complaint({ stderr }: CommandResult): string {
  expect(stderr).toMatch(/^mpp-controller: [^\n]+\n$/);
  return stderr.slice('mpp-controller: '.length, -1);
}

async function withSession<T>(database: string, work: (session: Client) => Promise<T>): Promise<T> {
  const session = await server.connect('test', database);
  try {
    return await work(session);
  } finally {
    await session.end();
  }
}

/** Does what a controller would do with a group's task, once it is there and somebody waits for it. */
async function answer(groupid: number, change: string): Promise<void> {
  await withSession('cli', (session) =>
    waitFor(`a task of group ${groupid} that is waited for`, async () => {
      const { rowCount } = await session.query(
        `UPDATE mpp_tasks SET ${change}
         WHERE groupid = $1 AND status = 'pending'
           AND EXISTS (SELECT FROM pg_stat_activity
                       WHERE application_name = 'mpp-controller notify' AND query LIKE 'CALL%')`,
        [groupid],
      );
      return rowCount === 1;
    }),
  );
}

beforeAll(async () => {
  testBed = await TestBed.open({ template });
  server = await testBed.createServer('cli');
  await server.start();
  await server.withSession((session) => session.query('CREATE DATABASE cli'));
  await server.withSession((session) => session.query('CREATE DATABASE bare'));
  await server.withSession((session) => session.query('CREATE DATABASE plain'));
  for (const database of ['cli', 'bare']) await withSession(database, makeCitus);
});

async function makeCitus(session: Client): Promise<void> {
  if (template.binaries.hasCitus) await session.query('CREATE EXTENSION citus');
  else await installStandin(session);
}

afterAll(() => testBed.close());

describe('a database that is not there, or not ready', () => {
  it('ends notify with 5 and the others with 1 when the server cannot be reached', async () => {
    const env = { DATABASE_URL: 'postgresql://u:top%2Fsecret@127.0.0.1:1/d' };
    const notify = await cli('notify suspect --group 1 --host w1', 'cli', env);
    expect(notify.exitCode).toBe(5);
    expect(complaint(notify)).toContain('cannot connect to 127.0.0.1:1/d');
    expect((await cli('status', 'cli', env)).exitCode).toBe(1);
  });

  it.each([
    ['no such database', 'nowhere', 'postgres', 'nowhere'],
    ['no such role', 'cli', 'stranger', 'DATABASE_URL'],
  ])('ends notify and status with 2 for %s', async (_, database, user, word) => {
    const env = { DATABASE_URL: url(database, user) };
    for (const args of ['notify suspect --group 1 --host w1', 'status']) {
      const result = await cli(args, database, env);
      expect(result.exitCode).toBe(2);
      expect(complaint(result)).toContain(word);
    }
  });

  it.each(['status', 'notify suspect --group 1 --host w1'])(
    'says to %s that it must be migrated',
    async (args) => {
      const result = await cli(args, 'bare');
      expect(result.exitCode).toBe(2);
      expect(complaint(result)).toContain('mpp-controller migrate');
    },
  );
});

describe('migrate', () => {
  it('applies what is missing, then nothing', async () => {
    const first = await cli('migrate');
    expect(first).toMatchObject({ exitCode: 0, stderr: '' });
    expect(first.stdout).toMatch(/^applied access\n(applied .+\n)+schema public is up to date\n$/);
    const second = await cli('migrate');
    expect(second).toMatchObject({
      exitCode: 0,
      stdout: 'schema public is up to date: nothing to do\n',
    });
  });

  it('refuses a database without pg_dist_node, and makes nothing in it', async () => {
    const result = await cli('migrate', 'plain');
    expect(result.exitCode).toBe(2);
    expect(complaint(result)).toContain('has no pg_dist_node');
    const several = await cli('migrate', 'bare', { MPP_DATABASES: 'bare,plain' });
    expect(several.exitCode).toBe(2);
    expect(complaint(several)).toContain('database plain of MPP_DATABASES');
    const schemas = await withSession('bare', (session) =>
      session.query("SELECT FROM pg_namespace WHERE nspname LIKE 'mpp_migrations%'"),
    );
    expect(schemas.rowCount).toBe(0);
  });

  it('takes a schema whose name needs quotes, here and in the commands after it', async () => {
    const env = { MPP_SCHEMA: 'Our "Own"' };
    expect(await cli('migrate', 'bare', env)).toMatchObject({ exitCode: 0 });
    expect(await cli('status', 'bare', env)).toMatchObject({ exitCode: 0, stderr: '' });
    expect(await cli('notify suspect --group 1 --host w1', 'bare', env)).toMatchObject({
      exitCode: 0,
      stdout: expect.stringMatching(/^task \d+: pending\n$/) as string,
    });
  });
});

describe('notify', () => {
  beforeAll(async () => {
    expect((await cli('migrate')).exitCode).toBe(0);
  });

  it('hands over every option', async () => {
    const result = await cli(
      'notify after_promote --group 10 --host w1 --port 6000 --secondary w2:1 --secondary [::1]:2' +
        ' --timeout 5s --cooldown 500ms --pause all',
    );
    expect(result).toMatchObject({ exitCode: 0, stderr: '' });
    const rows = await withSession('cli', async (session) => {
      const found = await session.query(
        `SELECT event, nodename, nodeport, secondaries, timeout::text, cooldown::text, pause, source
         FROM mpp_tasks WHERE groupid = 10`,
      );
      return found.rows as unknown[];
    });
    expect(rows).toEqual([
      {
        event: 'after_promote',
        nodename: 'w1',
        nodeport: 6000,
        secondaries: ['w2:1', '[::1]:2'],
        timeout: '00:00:05',
        cooldown: '00:00:00.5',
        pause: 'all',
        source: 'client',
      },
    ]);
  });

  it('tells no secondaries from secondaries that stay', async () => {
    await cli('notify after_promote --group 11 --host w1 --no-secondaries');
    await cli('notify after_promote --group 12 --host w1');
    const rows = await withSession('cli', async (session) => {
      const found = await session.query(
        'SELECT secondaries FROM mpp_tasks WHERE groupid IN (11, 12) ORDER BY groupid',
      );
      return found.rows as unknown[];
    });
    expect(rows).toEqual([{ secondaries: [] }, { secondaries: null }]);
  });

  it('ends with 2 when the database refuses the input', async () => {
    const result = await cli('notify suspect --group 1 --host w1 --secondary w1:5432');
    expect(result).toMatchObject({ exitCode: 2, stdout: '' });
    expect(complaint(result)).toContain('is the node itself');
  });

  it('waits until the traffic waits', async () => {
    const held = "status = 'holding', held_at = now(), deadline = now() + interval '30 s'";
    const [result] = await Promise.all([
      cli('notify before_demote --group 20 --host w1 --wait'),
      answer(20, held),
    ]);
    expect(result).toMatchObject({ exitCode: 0, stderr: '' });
    expect(result.stdout).toMatch(/^task \d+: holding\n$/);
  });

  it('ends with 3 and the reason when the task is discarded', async () => {
    const [result] = await Promise.all([
      cli('notify before_demote --group 21 --host w1 --wait 30s'),
      answer(21, "status = 'discarded', reason = 'w1:5432 is not the primary'"),
    ]);
    expect(result.exitCode).toBe(3);
    expect(result.stdout).toMatch(/^task \d+: discarded\n$/);
    expect(complaint(result)).toBe('w1:5432 is not the primary');
  });

  it('ends with 4 when no answer comes in time', async () => {
    const result = await cli('notify before_demote --group 22 --host w1 --wait 100ms');
    expect(result.exitCode).toBe(4);
    expect(complaint(result)).toMatch(/^task \d+ is still pending/);
  });

  it('goes on waiting when its session is ended', async () => {
    const waiting = cli('notify before_demote --group 23 --host w1 --wait 30s');
    await withSession('cli', (session) =>
      waitFor('a waiting session to end', async () => {
        const { rowCount } = await session.query(
          `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
           WHERE application_name = 'mpp-controller notify' AND query LIKE 'CALL%'`,
        );
        return rowCount === 1;
      }),
    );
    await answer(23, "status = 'done'");
    expect(await waiting).toMatchObject({ exitCode: 0 });
  });

  it('works as a member of mpp_client, who may not look', async () => {
    await withSession('cli', (session) =>
      session.query('CREATE ROLE hook LOGIN IN ROLE mpp_client'),
    );
    const env = { DATABASE_URL: url('cli', 'hook') };
    const args = 'notify before_demote --group 24 --host w1 --wait 100ms';
    expect((await cli(args, 'cli', env)).exitCode).toBe(4);
    const status = await cli('status', 'cli', env);
    expect(status.exitCode).toBe(2);
    expect(complaint(status)).toContain('mpp_operator');
  });
});

describe('status', () => {
  it('shows people what waits, and machines the same', async () => {
    expect((await cli('migrate')).exitCode).toBe(0);
    expect((await cli('notify after_promote --group 30 --host w30')).exitCode).toBe(0);
    const text = await cli('status');
    expect(text).toMatchObject({ exitCode: 0, stderr: '' });
    expect(text.stdout).toContain('None is active: reports wait until one runs');
    expect(text.stdout).toMatch(/30 +after_promote +w30:5432 +pending/);

    const json = await cli('status --json');
    expect(JSON.parse(json.stdout)).toMatchObject({
      backlog: expect.any(Number) as number,
      controllers: [],
      queue: expect.arrayContaining([
        expect.objectContaining({ groupid: 30, event: 'after_promote', nodename: 'w30' }),
      ]) as unknown[],
    });
  });
});

describe('run', () => {
  it('ends with 2 where the database is not ready', async () => {
    const result = await cli('run --log-level silent', 'plain');
    expect(result.exitCode).toBe(2);
    complaint(result);
  });
});
