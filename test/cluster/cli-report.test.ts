import { afterAll, beforeAll, describe, expect, inject, it } from 'vitest';
import { runCli } from '../kit/cli.js';
import { Harness } from '../kit/harness.js';

describe('the commands report and config', () => {
  let h: Harness;
  let env: { DATABASE_URL: string };

  beforeAll(async () => {
    h = await Harness.start({ template: inject('template'), groups: 1, standbys: false });
    await h.db.query('CREATE ROLE hook LOGIN; GRANT mpp_client TO hook');
    env = { DATABASE_URL: `postgresql://hook@${h.cluster.coordinator.address}/postgres` };
  });
  afterAll(async () => h.stop());

  it('say what a node is, as a member of mpp_client', async () => {
    const done = await runCli(['report', '1', '[::1]:6000', 'replica', '--state', 'stopped'], env);
    expect(done).toEqual({
      exitCode: 0,
      stdout: '[::1]:6000 of group 1 is reported as replica, stopped\n',
      stderr: '',
    });
    const { rows } = await h.db.query(
      'SELECT groupid, nodename, nodeport, role, state, reported_by FROM mpp_members',
    );
    expect(rows).toEqual([
      {
        ...{ groupid: 1, nodename: '::1', nodeport: 6000, role: 'secondary', state: 'stopped' },
        reported_by: 'hook',
      },
    ]);
  });

  it('refuse what is no node, no role, or a server that is not there, each with its exit code', async () => {
    expect(await runCli(['report', '1', 'a:0', 'primary'], env)).toMatchObject({ exitCode: 2 });
    const role = await runCli(['report', '1', 'a:1', 'boss'], env);
    expect(role).toMatchObject({ exitCode: 2, stdout: '' });
    expect(role.stderr).toContain('unknown role');
    const gone = { DATABASE_URL: 'postgresql://hook@127.0.0.1:1/postgres' };
    const away = await runCli(['report', '1', 'a:1', 'primary', '--timeout', '1s'], gone);
    expect(away).toMatchObject({ exitCode: 5, stdout: '' });
  });

  it('show settings without a server, and end with 2 where one is wrong', async () => {
    const fine = await runCli(['config', '--json'], env);
    expect(fine).toMatchObject({ exitCode: 0, stderr: '' });
    expect(JSON.parse(fine.stdout)).toContainEqual({
      ...{ name: 'MPP_POLL', value: '1s', origin: 'default', problem: null },
    });
    const wrong = await runCli(['config', 'show', '--poll', 'soon'], env);
    expect(wrong).toMatchObject({ exitCode: 2 });
    expect(wrong.stdout).toMatch(/^MPP_POLL +soon +flag +give /m);
    expect(wrong.stderr).toContain('MPP_POLL: see the column PROBLEM');
  });
});
