import { writeFile } from 'node:fs/promises';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, inject, it } from 'vitest';
import { type CommandResult, runCli } from '../kit/cli.js';
import { Harness } from '../kit/harness.js';
import { exists } from '../kit/servers/folder.js';
import { waitFor, type Group } from '../kit/servers/index.js';

describe('a command for all groups', () => {
  let h: Harness;
  let folder: string;

  beforeAll(async () => {
    h = await Harness.start({ template: inject('template'), secondaries: true });
    await h.startController({ MPP_TOPOLOGY: 'table', MPP_PAUSE: 'all' });
  });
  beforeEach(async () => {
    folder = await mkdtemp(join(tmpdir(), 'mpp-switchover-all-'));
  });
  afterEach(async () => rm(folder, { recursive: true, force: true }));
  afterAll(async () => h.stop());

  function run(...args: readonly string[]): Promise<CommandResult> {
    const { address } = h.cluster.coordinator;
    return runCli(args, { DATABASE_URL: `postgresql://postgres@${address}/postgres` });
  }

  /** A shell command that has this test do something for the group that it is called for. */
  function asks(name: string): string {
    const path = `${folder}/${name}-$MPP_GROUP`;
    return `echo $MPP_FROM_PORT $MPP_TO_PORT > ${path}.asked; while [ ! -e ${path}.done ]; do sleep 0.02; done; exec sh ${path}.done`;
  }

  async function serve(name: string, group: Group, work: () => Promise<void>, code = 0) {
    const path = join(folder, `${name}-${group.groupid}`);
    await waitFor(`the command ${name} of group ${group.groupid}`, () => exists(`${path}.asked`));
    await work();
    await writeFile(`${path}.done`, `exit ${code}\n`);
  }

  async function primaries(): Promise<string[]> {
    return (await h.nodes()).flatMap(({ groupid, role, node }) =>
      groupid > 0 && role === 'primary' ? [node] : [],
    );
  }

  it('moves one group after the other to its secondary', async () => {
    const groups = [h.cluster.group(1), h.cluster.group(2)];
    const [old, next] = [
      groups.map((g) => g.primary.address),
      groups.map((g) => g.standby.address),
    ];
    const commands = ['--stop', asks('stop'), '--promote', asks('promote'), '--yes', '--json'];
    const result = run('switchover', '--all', ...commands);
    for (const group of groups) {
      await serve('stop', group, () => group.primary.stop());
      await serve('promote', group, () => group.promoteStandby());
    }
    const { exitCode, stdout, stderr } = await result;
    expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: '' });
    const done = JSON.parse(stdout) as Record<string, unknown>[];
    expect(done).toMatchObject([
      { group: 1, from: old[0], to: next[0], outcome: 'done' },
      { group: 2, from: old[1], to: next[1], outcome: 'done' },
    ]);
    expect(await primaries()).toEqual(next);
    for (const group of groups) await group.rejoin();
  });

  it('ends with the first that fails, and names those that were not begun', async () => {
    const before = await primaries();
    const result = run('restart', '--all', '--cmd', asks('restart'), '--yes', '--json');
    await serve('restart', h.cluster.group(1), () => Promise.resolve(), 7);
    const { exitCode, stdout, stderr } = await result;
    expect(exitCode).toBe(3);
    expect(stderr).toMatch(/exit code 7\. Not begun: group 2\n$/);
    expect(JSON.parse(stdout)).toMatchObject([{ group: 1, outcome: 'unchanged' }]);
    expect(await primaries()).toEqual(before);
  });

  it('says what it would do for each, and refuses what does not fit', async () => {
    const dry = await run('restart', '--all', '--cmd', 'true', '--dry-run');
    expect(dry.stdout).toMatch(/^group 1: restart of .*\n.*\ngroup 2: restart of /);
    for (const args of [
      ['switchover', '1', '--all', '--stop', 'true', '--promote', 'true'],
      ['switchover', '--all', '--to', 'a:1', '--stop', 'true', '--promote', 'true'],
      ['restart', '--cmd', 'true'],
    ]) {
      expect(await run(...args)).toMatchObject({ exitCode: 2, stdout: '' });
    }
    await h.db.query(`
      SELECT citus_remove_node(nodename, nodeport)
      FROM pg_dist_node WHERE groupid = 2 AND noderole = 'secondary'`);
    const commands = ['--stop', 'true', '--promote', 'true', '--yes'];
    const refused = await run('switchover', '--all', ...commands);
    expect(refused).toMatchObject({ exitCode: 3, stdout: '' });
    expect(refused.stderr).toContain('no secondary is registered for group 2');
  });
});
