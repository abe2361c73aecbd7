import { afterAll, beforeAll, describe, expect, inject, it } from 'vitest';
import { runCli, type CommandResult } from '../kit/cli.js';
import { subjectOf } from '../kit/faults/subject.js';
import { Harness } from '../kit/harness.js';
import { waitFor } from '../kit/servers/index.js';

describe('wait, explain, cancel and release', () => {
  let h: Harness;

  beforeAll(async () => {
    h = await Harness.start({ template: inject('template'), groups: 1, standbys: false });
    await h.createLogin('operator');
    await h.createLogin('hook');
    await h.db.query('GRANT mpp_operator TO operator; GRANT mpp_client TO hook');
  });
  afterAll(async () => h.stop());

  function cli(args: string, user = 'operator'): Promise<CommandResult> {
    const { host, port } = h.cluster.coordinator;
    return runCli(args.split(' '), { DATABASE_URL: `postgres://${user}@${host}:${port}/postgres` });
  }

  it('a task is explained step by step, with the rows that it changed', async () => {
    const controller = await h.startController();
    const { node, next } = await subjectOf(h, 1);
    const demote = await h.request({ event: 'before_demote', groupid: 1, node });
    const promote = await h.request({ event: 'after_promote', groupid: 1, node: next });
    const [was, is] = [node, next].map(({ host, port }) => `${host}:${port}`);
    const first = await cli(`explain ${demote.id}`);
    expect(first.stdout).toMatch(
      new RegExp(
        `^task ${demote.id}: before_demote of group 1 for ${was}, by postgres \\(client\\), .*\n` +
          ' *[0-9.]+ s  pending\n' +
          ' *[0-9.]+ s  claimed by controller .*\n *[0-9.]+ s  holding by controller .*\n' +
          ' *[0-9.]+ s  done by controller .*\n',
      ),
    );
    const second = await cli(`explain ${promote.id}`);
    expect(second.stdout).toMatch(
      new RegExp(`\n *before  ${was} primary, nodeid \\d+\n *after  ${is} primary, nodeid \\d+\n`),
    );
    const json = await cli(`explain ${promote.id} --json`);
    expect(JSON.parse(json.stdout)).toMatchObject({
      id: promote.id,
      event: 'after_promote',
      log: [{ status: 'pending' }, { status: 'claimed' }, { status: 'done', attempt: 1 }],
    });
    const done = await cli(`wait ${promote.id}`, 'hook');
    // Another role's task is not a client's to see.
    expect(done).toMatchObject({ exitCode: 2, stdout: '' });
    expect(await cli(`wait ${promote.id}`)).toMatchObject({
      exitCode: 0,
      stdout: `task ${promote.id}: done\n`,
    });
    expect(await controller.end()).toBe(0);
  });

  it('a hold is released once; then there is none', async () => {
    const controller = await h.startController();
    const { node } = await subjectOf(h, 1);
    const demote = await h.request({ event: 'before_demote', groupid: 1, node });
    const released = await cli('release 1');
    expect(released.stdout).toContain('the hold of group 1 is ended');
    expect((await h.ended(demote.id)).status).toBe('rolled_back');
    await waitFor('the hold to be gone', async () => (await h.holds()) === 0);
    expect((await cli('release 1')).stdout).toBe('group 1 was not held\n');
    const waited = await cli(`wait ${demote.id}`);
    expect(waited.exitCode).toBe(3);
    expect(waited.stderr).toContain('rolled_back: released by operator');
    expect(await controller.end()).toBe(0);
  });

  it('a pending task is cancelled once; then its end is final', async () => {
    const { node } = await subjectOf(h, 1);
    const id = await h.report({ event: 'before_demote', groupid: 1, node });
    expect(await cli(`wait ${id} --timeout 100ms`)).toMatchObject({
      exitCode: 4,
      stderr: `mpp-controller: task ${id}: pending\n`,
    });
    expect(await cli(`cancel ${id}`)).toMatchObject({
      exitCode: 0,
      stdout: `task ${id} is cancelled\n`,
    });
    const again = await cli(`cancel ${id}`);
    expect(again.exitCode).toBe(3);
    expect(again.stderr).toContain('has ended as cancelled: an end is final');
    const explained = await cli(`explain ${id}`);
    expect(explained.stdout).toContain('s  cancelled: cancelled by operator');
  });

  it.each([
    ['cancel 999999', 2, /there is no task 999999/],
    ['explain 999999', 2, /there is no task 999999/],
    ['cancel x', 2, /<task> cannot be "x"/],
    ['release -1', 2, /unknown option|cannot be/],
    ['wait 1 --timeout soon', 2, /--timeout/],
  ])('%s ends with %i', async (args, exitCode, message) => {
    const result = await cli(args);
    expect(result.stderr).toMatch(message);
    expect(result.exitCode).toBe(exitCode);
  });

  it.each(['cancel 1', 'release 1', 'explain 1'])('%s is for operators', async (args) => {
    const { exitCode, stderr } = await cli(args, 'hook');
    expect(exitCode).toBe(2);
    expect(stderr).toMatch(/permission denied/);
  });
});
