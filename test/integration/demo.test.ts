import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdir, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { beforeAll, expect, inject, it } from 'vitest';
import { packageRoot } from '../../src/package-root.js';
import { openSession } from '../../src/postgres/session.js';
import { builtCli, cliEnvironment, runCli } from '../support/cli.js';
import { exists } from '../support/servers/folder.js';
import { isAlive, run } from '../support/servers/processes.js';
import { waitFor } from '../support/servers/wait.js';

/** The demo runs on what the tests run on. */
const ENV = Object.fromEntries(
  ['MPP_PG_BIN', 'MPP_PG_MAJOR', 'MPP_STANDIN'].map((name) => [name, process.env[name]]),
);

beforeAll(buildSupport);

it('the demo switches over and crashes workers, shows it, and leaves nothing', async () => {
  const demo = await runCli(['demo'], ENV);

  expect(demo.stderr).toBe('');
  const { hasCitus } = inject('template').binaries;
  expect(demo.stdout).toMatch(hasCitus ? /with Citus \d+\.\d+/ : /STAND-IN FOR CITUS/);
  const [, planned = '', crash = '', rest = ''] = demo.stdout.split(
    /^(?=PLANNED SWITCHOVER|CRASH|MPP_TASKS)/m,
  );
  expect(timeline(planned)).toEqual([
    'reported before_demote',
    'paused',
    'stopped',
    'reported before_promote',
    'promoted',
    'reported after_promote',
    'committed',
  ]);
  expect(timeline(crash)).toEqual([
    'killed',
    'reported before_promote',
    'paused',
    'promoted',
    'reported after_promote',
    'committed',
  ]);
  expect(planned).toContain('No write failed');
  const [, acknowledged, found] = /Rows acknowledged (\d+), found (\d+)/.exec(planned) ?? [];
  expect(Number(found)).toBeGreaterThan(0);
  expect(found).toBe(acknowledged);
  expect(rest.match(/ +\d+ +\w+_\w+ +[12] +127\.0\.0\.1:\d+ +done /g)).toHaveLength(5);
  for (const act of [planned, crash]) {
    const [, from, to] = /: (\S+) -> (\S+)$/m.exec(act) ?? [];
    expect(rest).toMatch(new RegExp(`primary +${from ?? '?'} +${to ?? '?'}$`, 'm'));
  }
  expect(longestLine(demo.stdout)).toBeLessThanOrEqual(80);
  expect(demo.exitCode).toBe(0);
  await gone(demo.stdout);
});

it('the demo can be kept, takes reports of others, and ends on Ctrl-C', async () => {
  const demo = new Demo(['--keep']);
  const shown = await demo.shown('STILL RUNNING', /node dist\/cli\.js status/);
  const [, url] = /psql (\S+)/.exec(shown) ?? [];
  const [, insert] = /(INSERT INTO mpp_tasks[^;]*before_demote[^;]*);/.exec(shown) ?? [];
  const connection = new URL(url ?? '');
  const session = await openSession(
    { host: connection.hostname, port: Number(connection.port), user: 'postgres' },
    'test',
  );
  try {
    await session.query(insert ?? '');
    await waitFor('sessions of the traffic to wait for the hold', async () => {
      const { rows } = await session.query('SELECT FROM mpp_holds WHERE sessions_waiting > 0');
      return rows.length === 1;
    });
  } finally {
    await session.end();
  }

  expect(await demo.end('SIGINT')).toEqual({ exitCode: 0, signal: null });
  await gone(demo.stdout);
});

it('the demo leaves nothing after SIGTERM in its middle', async () => {
  const demo = new Demo([]);
  await demo.shown('a promotion', /promoting the standby/);
  expect(await demo.end('SIGTERM')).toEqual({ exitCode: null, signal: 'SIGTERM' });
  await gone(demo.stdout);
});

it('the demo leaves nothing after SIGKILL in its middle', async () => {
  const demo = new Demo([]);
  await demo.shown('a promotion', /promoting the standby/);
  expect(await demo.end('SIGKILL')).toEqual({ exitCode: null, signal: 'SIGKILL' });
  await gone(demo.stdout);
});

it('the demo says in one line why it cannot run', async () => {
  const demo = await runCli(['demo'], { MPP_PG_BIN: '/nowhere' });
  expect(demo.stderr).toMatch(/^mpp-controller: MPP_PG_BIN is '\/nowhere'.*\n$/);
  expect(demo.exitCode).toBe(1);
});

/** A demo that runs. */
class Demo {
  readonly #child;
  readonly #stderr: Promise<string>;
  stdout = '';

  constructor(args: readonly string[]) {
    const [file, ...first] = builtCli();
    this.#child = spawn(file, [...first, 'demo', ...args], {
      env: cliEnvironment(ENV),
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    this.#stderr = text(this.#child.stderr);
    this.#child.stdout.setEncoding('utf8').on('data', (part: string) => (this.stdout += part));
  }

  /** Waits until it has printed this. @returns all it has printed */
  async shown(what: string, pattern: RegExp): Promise<string> {
    return waitFor(
      `the demo to show ${what}`,
      () => Promise.resolve(pattern.test(this.stdout) && this.stdout),
      { timeoutMs: 30_000 },
    );
  }

  async end(
    name: NodeJS.Signals,
  ): Promise<{ exitCode: number | null; signal: NodeJS.Signals | null }> {
    const ended = once(this.#child, 'exit');
    this.#child.kill(name);
    await ended;
    expect(await this.#stderr).toBe('');
    return { exitCode: this.#child.exitCode, signal: this.#child.signalCode };
  }
}

/** Waits until every process that the demo named, by port or pid, is gone, and its data with them. */
async function gone(stdout: string): Promise<void> {
  const ports = new Set(Array.from(stdout.matchAll(/127\.0\.0\.1:(\d+)/g), ([, port]) => port));
  expect(ports.size).toBe(5);
  const [, controller] = /active, process (\d+)/.exec(stdout) ?? [];
  const [, data] = /data and logs of the servers: (\S+)/.exec(stdout) ?? [];
  await waitFor('everything of the demo to be gone', async () => {
    if (await isAlive(Number(controller))) return false;
    if (await exists(data ?? '.')) return false;
    const processes = await run('ps', ['-A', '-o', 'args=']);
    return !processes.includes(data ?? 'postgres');
  });
}

/** What happened, in order: the word, and for a report its event. */
function timeline(act: string): string[] {
  return Array.from(act.matchAll(/^ +\d+ ms +(reported +\w+|\w+)/gm), ([, what = '']) =>
    what.replace(/ +/, ' '),
  );
}

function longestLine(shown: string): number {
  return Math.max(...shown.split('\n').map((line) => line.length));
}

/** Builds what the demo is made of, when it is missing or older than its sources. */
async function buildSupport(): Promise<void> {
  const root = packageRoot();
  const main = join(root, 'build', 'test', 'support', 'demo', 'main.js');
  const builtAt = (await exists(main)) ? (await stat(main)).mtimeMs : 0;
  const changedAt = await Promise.all(
    ['src', 'test/support', 'bench'].map((folder) => newest(join(root, folder))),
  );
  if (Math.max(...changedAt) < builtAt) return;
  // Types are the business of `npm run typecheck`; without them it takes a quarter of the time.
  const tsc = join(root, 'node_modules', 'typescript', 'bin', 'tsc');
  await run(process.execPath, [tsc, '-p', join(root, 'tsconfig.support.json'), '--noCheck']);
}

/** When a source file below the folder was last written. */
async function newest(folder: string): Promise<number> {
  const names = (await readdir(folder, { recursive: true })).filter((name) => name.endsWith('.ts'));
  const times = await Promise.all(
    names.map(async (name) => (await stat(join(folder, name))).mtimeMs),
  );
  return Math.max(0, ...times);
}
