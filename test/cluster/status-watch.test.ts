import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { afterAll, beforeAll, describe, expect, inject, it } from 'vitest';
import { builtCli, cliEnvironment, runCli } from '../kit/cli.js';
import { Harness } from '../kit/harness.js';
import { waitFor } from '../kit/servers/index.js';

describe('status', () => {
  let h: Harness;
  let env: { DATABASE_URL: string };

  beforeAll(async () => {
    h = await Harness.start({ template: inject('template'), groups: 1, standbys: false });
    env = { DATABASE_URL: `postgresql://postgres@${h.cluster.coordinator.address}/postgres` };
    await h.startController({ MPP_TOPOLOGY: 'table' });
  });
  afterAll(async () => h.stop());

  it('shows what a node is registered as beside what it is seen as, and ends with a verdict', async () => {
    const { host, port, address } = h.cluster.group(1).primary;
    const fine = await runCli(['status'], env);
    expect(fine.stdout.trimEnd().split('\n').at(-1)).toMatch(
      /^OK - active on .*, 0 pending, 0 held$/,
    );
    await h.db.query("SELECT mpp_start_maintenance(1), mpp_report(1, $1, $2, 'replica')", [
      host,
      port,
    ]);
    const { stdout } = await runCli(['status'], env);
    expect(stdout).toMatch(
      new RegExp(
        `1 +primary +${address} .* secondary running \\(table\\) +is a standby, says table`,
      ),
    );
    expect(stdout.trimEnd().split('\n').at(-1)).toBe(
      `WARNING - group 1: ${address} is a standby, says table`,
    );
    expect(stdout).toMatch(/^ +1 .* postgres$/m);
    const json = JSON.parse((await runCli(['status', '--json'], env)).stdout) as {
      nodes: { nodeid: number | null; seen: unknown[] }[];
      maintenance: unknown[];
    };
    expect(json.nodes.map(({ seen }) => seen.length)).toEqual([0, 1]);
    expect(json.maintenance).toMatchObject([{ groupid: 1, startedBy: 'postgres' }]);
    await h.db.query('DELETE FROM mpp_members');
    await h.db.query('SELECT mpp_end_maintenance(1)');
  });

  it('--watch shows a task when it changes, goes on after its session was lost, and ends at Ctrl-C', async () => {
    const [file, ...first] = builtCli();
    const child: ChildProcess = spawn(file, [...first, 'status', '--watch', '1s'], {
      env: cliEnvironment(env),
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    const exited = once(child, 'exit');
    let output = '';
    child.stdout?.setEncoding('utf8').on('data', (text: string) => (output += text));
    const shows = (pattern: RegExp): Promise<unknown> =>
      waitFor(`the output to have ${pattern.source}`, () => Promise.resolve(pattern.test(output)));
    await shows(/Newest changes/);
    const node = { host: 'unknown-host', port: 1 };
    await h.request({ event: 'before_demote', groupid: 1, node });
    await shows(/before_demote +discarded/);
    const pages = (): number => output.split('Newest changes').length;
    const before = pages();
    await h.db.query(
      "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'mpp-controller status'",
    );
    await waitFor('it to go on', () => Promise.resolve(pages() > before + 1));
    child.kill('SIGINT');
    expect(await exited).toEqual([0, null]);
  });
});
