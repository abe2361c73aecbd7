import { afterEach, beforeEach, describe, expect, inject, it } from 'vitest';
import { applyGucs } from '../../src/mpp/citus/gucs.js';
import { runCli } from '../kit/cli.js';
import { TestBed, type Server } from '../kit/servers/index.js';

const template = inject('template');
const { hasCitus } = template.binaries;

let testBed: TestBed;
let server: Server;

beforeEach(async () => {
  testBed = await TestBed.open({ template });
  server = await testBed.createServer('fresh');
  await server.start();
});

afterEach(() => testBed.close());

function cli(args: string, env: NodeJS.ProcessEnv = {}) {
  const DATABASE_URL = `postgresql://postgres@${server.address}/app`;
  return runCli(args.split(' '), { DATABASE_URL, ...env });
}

async function show(name: string): Promise<unknown> {
  return server.withSession(async (session) => {
    const { rows } = await session.query<{ setting: string }>(
      'SELECT current_setting($1, true) AS setting',
      [name],
    );
    return rows[0]?.setting;
  });
}

describe('gucs', () => {
  /** As a server is before Citus: other libraries, one with a name that needs quotes. */
  beforeEach(async () => {
    await server.withSession(async (session) => {
      await session.query(
        "ALTER SYSTEM SET shared_preload_libraries = 'pg_stat_statements', '$libdir/auto_explain'",
      );
      await session.query('ALTER SYSTEM SET max_prepared_transactions = 0');
      await session.query("ALTER SYSTEM SET wal_level = 'replica'");
    });
    await server.restart();
  });

  it('changes nothing without --apply', async () => {
    const result = await cli('gucs');
    expect(result).toMatchObject({ exitCode: 0, stderr: '' });
    expect(result.stdout).toMatch(
      /shared_preload_libraries .* citus, pg_stat_statements, \$libdir\/auto_explain +after a restart/,
    );
    expect(result.stdout).toMatch(/max_prepared_transactions +0 +400/);
    expect(result.stdout).toMatch(/wal_level +replica +logical/);
    expect(result.stdout).toContain('Nothing was changed');
    expect((await cli('gucs')).stdout).toBe(result.stdout);
  });

  it('sets them so that the server starts with each library as one of the list', async () => {
    const applied = await cli('gucs --apply');
    expect(applied).toMatchObject({ exitCode: 0, stderr: '' });
    expect(applied.stdout).toMatch(
      /Restart PostgreSQL for: shared_preload_libraries, max_prepared_transactions, max_worker_processes, wal_level/,
    );
    const again = await cli('gucs --apply');
    expect(again.stdout).toContain('Nothing to do');
    expect(again.stdout).toContain('waiting for a restart: shared_preload_libraries');

    if (!hasCitus) return;
    await server.restart();
    expect(await show('shared_preload_libraries')).toBe(
      'citus, pg_stat_statements, "$libdir/auto_explain"',
    );
    expect(await show('wal_level')).toBe('logical');
    expect(await show('max_prepared_transactions')).toBe('400');
    // As the server of the test was set up: what is there stays.
    expect(await show('citus.local_hostname')).toBe('127.0.0.1');
    expect((await cli('gucs')).stdout).toBe(
      'Nothing to do: every parameter is as Citus needs it.\n',
    );
  });

  it('refuses to plan for a role that may not see the libraries', async () => {
    await server.withSession((session) => session.query('CREATE ROLE blind LOGIN'));
    const result = await cli('gucs', {
      DATABASE_URL: `postgresql://blind@${server.address}/postgres`,
    });
    expect(result).toMatchObject({ exitCode: 2, stdout: '' });
    expect(result.stderr).toContain('pg_read_all_settings');
  });
});

describe('gucs --apply', () => {
  it('puts back what it has written when a later parameter is refused', async () => {
    await server.withSession(async (session) => {
      await session.query("ALTER SYSTEM SET wal_level = 'minimal'");
      const changes = [
        { name: 'wal_level', current: 'minimal', wanted: ['logical'] },
        { name: 'max_prepared_transactions', current: '0', wanted: ['5'] },
        { name: 'max_worker_processes', current: '8', wanted: ['many'] },
      ];
      await expect(applyGucs(session, changes)).rejects.toMatchObject({
        code: 'GUCS_REFUSED',
        message: expect.stringContaining('nothing was changed') as string,
      });
      const { rows } = await session.query(
        `SELECT name, setting FROM pg_file_settings
         WHERE sourcefile LIKE '%auto.conf' AND name IN ('wal_level', 'max_prepared_transactions')`,
      );
      expect(rows).toEqual([{ name: 'wal_level', setting: 'minimal' }]);
    });
  });

  it('sets nothing for a role that may set only some', async () => {
    await server.withSession(async (session) => {
      await session.query('CREATE ROLE partly LOGIN IN ROLE pg_read_all_settings');
      await session.query('GRANT ALTER SYSTEM ON PARAMETER max_worker_processes TO partly');
    });
    const before = await show('max_worker_processes');
    const result = await cli('gucs --apply', {
      DATABASE_URL: `postgresql://partly@${server.address}/postgres`,
    });
    expect(result.exitCode).toBe(2);
    expect(result.stderr).toContain('nothing was changed');
    expect(result.stderr).toMatch(/GRANT (ALTER SYSTEM ON PARAMETER|EXECUTE ON FUNCTION)/);
    await server.restart();
    expect(await show('max_worker_processes')).toBe(before);
  });

  it.runIf(hasCitus)(
    'leaves the name that an operator has set, unless another is given',
    async () => {
      await server.withSession((session) =>
        session.query("ALTER SYSTEM SET citus.local_hostname = '127.0.0.1'"),
      );
      await server.restart();
      expect(await cli('gucs --apply')).toMatchObject({ exitCode: 0, stderr: '' });
      await server.restart();
      expect(await show('citus.local_hostname')).toBe('127.0.0.1');
      expect(await show('citus.metadata_sync_retry_interval')).toBe('200ms');
      expect((await cli('gucs')).stdout).toContain('Nothing to do');
      await cli('gucs --apply --local-hostname localhost');
      await server.restart();
      expect(await show('citus.local_hostname')).toBe('localhost');
    },
  );
});

describe.skipIf(hasCitus)('bootstrap without Citus', () => {
  it('makes the database, then says what is missing', async () => {
    const result = await cli('bootstrap');
    expect(result).toMatchObject({ exitCode: 2, stdout: 'database       done           app\n' });
    expect(result.stderr).toMatch(/^mpp-controller: extension: Citus is not installed .+\n$/);
    expect((await cli('bootstrap')).stdout).toBe('database       already there  app\n');
  });
});

describe.runIf(hasCitus)('bootstrap with Citus', () => {
  const STEPS = ['database', 'extension', 'credentials', 'coordinator', 'control table', 'grants'];

  /** Outcome of each step, by its name. */
  function outcomes(stdout: string): Record<string, string> {
    const lines = stdout.trimEnd().split('\n');
    return Object.fromEntries(
      lines.map((line) => [line.slice(0, 14).trim(), line.slice(15, 29).trim()]),
    );
  }

  const all = (outcome: string) => Object.fromEntries(STEPS.map((step) => [step, outcome]));

  it('does every step once', async () => {
    const env = { MPP_AUTHINFO: 'password=top-secret' };
    const first = await cli('bootstrap', env);
    expect(first.exitCode).toBe(0);
    expect(outcomes(first.stdout)).toEqual(all('done'));
    expect(first.stdout + first.stderr).not.toContain('top-secret');
    const second = await cli('bootstrap', env);
    expect(second).toMatchObject({ exitCode: 0, stderr: '' });
    expect(outcomes(second.stdout)).toEqual(all('already there'));
  });

  it('is done once by three at the same time', async () => {
    const results = await Promise.all([cli('bootstrap'), cli('bootstrap'), cli('bootstrap')]);
    expect(results.map(({ exitCode }) => exitCode)).toEqual([0, 0, 0]);
    const made = results.filter(({ stdout }) => outcomes(stdout)['grants'] === 'done');
    expect(made).toHaveLength(1);
  });

  it('refuses credentials that Citus does not take, without showing them', async () => {
    const result = await cli('bootstrap', { MPP_AUTHINFO: 'user=x password=top-secret' });
    expect(result.exitCode).toBe(2);
    expect(result.stderr).toContain('MPP_AUTHINFO');
    expect(result.stdout + result.stderr).not.toContain('top-secret');
  });
});
