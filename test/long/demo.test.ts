import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { beforeAll, expect, inject, it } from 'vitest';
import { packageRoot } from '../../src/package-root.js';
import { openSession } from '../../src/postgres/session.js';
import { buildIfChanged, SUPPORT } from '../kit/build.js';
import { cliEnvironment, runCli, type Program } from '../kit/cli.js';
import { exists } from '../kit/servers/folder.js';
import { isAlive, run } from '../kit/servers/processes.js';
import { waitFor } from '../kit/servers/wait.js';

/** The demo runs on what the tests run on. */
const ENV = Object.fromEntries(
  ['MPP_PG_BIN', 'MPP_PG_MAJOR', 'MPP_STANDIN'].map((name) => [name, process.env[name]]),
);

const DEMO: Program = [process.execPath, join(packageRoot(), 'build', 'demo', 'cli.js')];

/** Two of these run to their end, beside other files, on machines with two cores. */
const LONG = 300_000;

beforeAll(() => buildIfChanged(SUPPORT));

it(
  'the demo switches over and crashes a worker, counts what failed, and leaves nothing',
  async () => {
    const demo = await runCli([], ENV, DEMO);

    expect(demo.stderr).toBe('');
    const { hasCitus } = inject('template').binaries;
    expect(demo.stdout).toMatch(hasCitus ? /with Citus \d+\.\d+/ : /STAND-IN FOR CITUS/);
    const planned = ['before_demote holding', 'before_promote holding', 'after_promote done'];
    const crash = planned.slice(1);
    expect(reports(demo.stdout)).toEqual([
      ...[...planned, ...planned, ...planned],
      ...[...crash, 'suspect holding', ...crash],
    ]);
    const failures = failedStatements(demo.stdout);
    expect([...failures.keys()]).toEqual(['none', 'writes', 'all', 'not sent', 'sent']);
    expect(failures.get('none')?.all).toBeGreaterThan(0);
    expect(failures.get('writes')).toMatchObject({ writes: 0, transactions: 0 });
    expect(failures.get('all')).toEqual({ writes: 0, reads: 0, transactions: 0, all: 0 });
    expect(failures.get('sent')?.all).toBeLessThan(failures.get('not sent')?.all ?? 0);
    // The clients were busy, and a planned switchover loses nothing of what they did.
    const [, acknowledged, found] =
      /(\d+) changes were acknowledged, (\d+) are there/.exec(demo.stdout) ?? [];
    expect(Number(acknowledged)).toBeGreaterThan(0);
    expect(Number(found)).toBeGreaterThanOrEqual(Number(acknowledged));
    const moves = Array.from(demo.stdout.matchAll(/\] \w.*: (\S+) -> (\S+)$/gm));
    expect(moves).toHaveLength(5);
    const [first, last] = [moves.at(0)?.[1] ?? '?', moves.at(-1)?.[2] ?? '?'];
    expect(demo.stdout).toMatch(new RegExp(`primary +${first} +${last}$`, 'm'));
    expect(longestLine(demo.stdout)).toBeLessThanOrEqual(80);
    expect(demo.exitCode).toBe(0);
    await gone(demo.stdout);
  },
  LONG,
);

it(
  'the demo can be kept, takes reports of others, and ends on Ctrl-C',
  async () => {
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
      await session.query('RESET search_path');
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
  },
  LONG,
);

it.each([
  ['SIGTERM', 'its traffic begins', /switchover, pause = none/],
  ['SIGINT', 'an old primary comes back', /after_promote/],
  ['SIGKILL', 'a standby is promoted', /promoting the standby/],
] as const)('the demo leaves nothing after %s while %s', async (name, moment, pattern) => {
  const demo = new Demo([]);
  await demo.shown(moment, pattern);
  expect(await demo.end(name)).toEqual({ exitCode: null, signal: name });
  await gone(demo.stdout);
});

it('the demo says in one line why it cannot run', async () => {
  const demo = await runCli([], { MPP_PG_BIN: '/nowhere' }, DEMO);
  expect(demo.stderr).toMatch(/^demo: MPP_PG_BIN is '\/nowhere'.*\n$/);
  expect(demo.exitCode).toBe(1);
});

/** A demo that runs. */
class Demo {
  readonly #child;
  readonly #stderr: Promise<string>;
  stdout = '';

  constructor(args: readonly string[]) {
    const [file, ...first] = DEMO;
    this.#child = spawn(file, [...first, ...args], {
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
      { timeoutMs: LONG / 2 },
    );
  }

  async end(
    name: NodeJS.Signals,
  ): Promise<{ exitCode: number | null; signal: NodeJS.Signals | null }> {
    const ended = once(this.#child, 'exit');
    this.#child.kill(name);
    await ended;
    expect(await this.#stderr, this.stdout).toBe('');
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

/** What was reported and how that ended, in order. */
function reports(shown: string): string[] {
  return Array.from(
    shown.matchAll(/INSERT (\w+) 127\.0\.0\.1:\d+: (\w+) /g),
    ([, event, status]) => `${event ?? ''} ${status ?? ''}`,
  );
}

interface Failed {
  readonly writes: number;
  readonly reads: number;
  readonly transactions: number;
  readonly all: number;
}

/** What failed, by the first column of the tables. */
function failedStatements(shown: string): Map<string, Failed> {
  const lines = shown.matchAll(/^ {2}([a-z ]+?) +(\d+) +(\d+) +(\d+) +\d+ ms$/gm);
  return new Map(
    Array.from(lines, ([, name = '', ...counts]) => {
      const [writes = NaN, reads = NaN, transactions = NaN] = counts.map(Number);
      return [name, { writes, reads, transactions, all: writes + reads + transactions }];
    }),
  );
}

function longestLine(shown: string): number {
  return Math.max(...shown.split('\n').map((line) => line.length));
}
