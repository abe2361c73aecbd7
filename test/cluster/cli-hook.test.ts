import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createServer, type Server as TcpServer } from 'node:net';
import type { AddressInfo } from 'node:net';
import { text } from 'node:stream/consumers';
import { afterAll, beforeAll, describe, expect, inject, it } from 'vitest';
import { builtCli, cliEnvironment, runCli } from '../kit/cli.js';
import { ContractServer, type ContractDatabase } from '../kit/contract.js';

const template = inject('template');

let server: ContractServer;
let database: ContractDatabase;
let url: string;
let silent: TcpServer;

beforeAll(async () => {
  server = await ContractServer.start(template);
  database = await server.database('hook');
  url = `postgresql://postgres@${server.server.address}/hook`;
  silent = createServer(() => undefined).listen(0, '127.0.0.1');
  await once(silent, 'listening');
});

afterAll(async () => {
  silent.close();
  await server.stop();
});

const REPORT = 'notify before_promote --group 1 --host w1 --hook';

function hook(args: string, env: NodeJS.ProcessEnv = {}) {
  return runCli(args.split(' '), { DATABASE_URL: url, ...env });
}

/** Runs a command one of whose outputs is closed before it writes. */
async function withClosed(stream: 'stdout' | 'stderr', args: string, env: NodeJS.ProcessEnv = {}) {
  const [file, ...first] = builtCli();
  const child = spawn(file, [...first, ...args.split(' ')], {
    env: cliEnvironment({ DATABASE_URL: url, ...env }),
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  child[stream].destroy();
  const other = text(stream === 'stdout' ? child.stderr : child.stdout);
  await once(child, 'close');
  return { exitCode: child.exitCode, other: await other };
}

describe('notify --hook', () => {
  it('ends with 0 when it is reported, and says so in one line', async () => {
    expect(await hook(REPORT)).toMatchObject({
      exitCode: 0,
      stdout: expect.stringMatching(/^task \d+: pending\n$/) as string,
      stderr: '',
    });
  });

  it.each([
    ['is not acknowledged', `${REPORT} --wait 50ms`, {}, 'instead of 4', /still pending/],
    [
      'reports to a server that is down',
      REPORT,
      { DATABASE_URL: 'postgresql://u@127.0.0.1:1/d' },
      'instead of 5',
      /cannot connect/,
    ],
    ['has a wrong value', `${REPORT} --port 99999`, {}, 'instead of 2', /--port/],
    ['has a wrong setting', REPORT, { MPP_HEARTBEAT: 'often' }, 'instead of 2', /MPP_HEARTBEAT/],
  ])('ends with 0 and one line when it %s', async (_, args, env, code, line) => {
    const result = await hook(args, env);
    expect(result).toMatchObject({ exitCode: 0, stdout: '' });
    expect(result.stderr).toMatch(/^mpp-controller: [^\n]+\n$/);
    expect(result.stderr).toContain(code);
    expect(result.stderr).toMatch(line);
  });

  it('ends with 0 when an option is misspelt', async () => {
    const result = await hook('notify before_promote --hook --grup 1');
    expect(result.exitCode).toBe(0);
    expect(result.stderr).toContain('Did you mean --group?');
  });

  it('ends in bounded time when the server accepts the connection and falls silent', async () => {
    const { port } = silent.address() as AddressInfo;
    const result = await hook(`${REPORT} --wait 100ms`, {
      DATABASE_URL: `postgresql://u@127.0.0.1:${port}/d`,
    });
    expect(result).toMatchObject({ exitCode: 0, stdout: '' });
    expect(result.stderr).toMatch(/instead of [45]/);
  });

  it('ends with 0 and the reason when the task is discarded', async () => {
    const waiting = hook('notify before_demote --group 2 --host w2 --hook --wait 30s');
    const session = await database.session();
    for (let changed = 0; changed === 0;) {
      const { rowCount } = await session.query(
        `UPDATE mpp_tasks SET status = 'discarded', reason = 'w2:5432 is not the primary'
         WHERE groupid = 2 AND status = 'pending'`,
      );
      changed = rowCount ?? 0;
    }
    const result = await waiting;
    expect(result).toMatchObject({ exitCode: 0, stdout: '' });
    expect(result.stderr).toMatch(
      /^mpp-controller: task \d+ is discarded: w2:5432 is not the primary .*3\)\n$/,
    );
  });

  it.each(['stdout', 'stderr'] as const)('ends with 0 when %s is closed', async (stream) => {
    for (const args of [REPORT, `${REPORT} --port 0`]) {
      expect((await withClosed(stream, args)).exitCode).toBe(0);
    }
  });
});

describe('a command whose output is closed', () => {
  it.each(['--help', 'notify --help', 'status', 'status --json', 'gucs'])(
    'ends %s quietly',
    async (args) => {
      expect(await withClosed('stdout', args)).toEqual({ exitCode: 0, other: '' });
    },
  );

  it('keeps the exit code of a command that failed', async () => {
    expect(await withClosed('stderr', 'notify nope --group 1 --host w1')).toEqual({
      exitCode: 2,
      other: '',
    });
  });

  it('stops the controller, without a stack', async () => {
    const env = { DATABASE_URL: 'postgresql://u@127.0.0.1:1/d', MPP_LOG_LEVEL: 'trace' };
    expect(await withClosed('stdout', 'run', env)).toEqual({
      exitCode: 1,
      other: 'mpp-controller: stopped: the reader of the log has gone\n',
    });
  });
});

describe('status --check', () => {
  it('is critical without an active controller, in one line', async () => {
    const result = await hook('status --check');
    expect(result).toMatchObject({ exitCode: 2, stderr: '' });
    expect(result.stdout).toMatch(/^MPP CRITICAL - no controller is active[^\n]*\n$/);
  });

  it('is unknown where the database cannot be asked', async () => {
    const result = await hook('status --check', { DATABASE_URL: 'postgresql://u@127.0.0.1:1/d' });
    expect(result).toMatchObject({ exitCode: 3, stderr: '' });
    expect(result.stdout).toMatch(/^MPP UNKNOWN - cannot connect[^\n]+\n$/);
  });
});
