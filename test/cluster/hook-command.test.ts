import { afterAll, beforeAll, describe, expect, inject, it } from 'vitest';
import { FaultProxy } from '../kit/faults/proxy.js';
import { Harness } from '../kit/harness.js';
import { hookKinds, type HookTarget, type Manager } from '../kit/hooks.js';
import type { Server } from '../kit/servers/index.js';

const kinds = await hookKinds();
for (const { name, missing } of kinds) {
  if (missing !== undefined) console.warn(`no test of ${name}: ${missing}`);
}

/** Has the least rights that a hook needs. */
const USER = 'hook_client';

let h: Harness;
let proxy: FaultProxy;

beforeAll(async () => {
  h = await Harness.start({ template: inject('template'), groups: 1 });
  await h.createLogin(USER);
  await h.db.query(`GRANT mpp_client TO ${USER}`);
  await h.startController();
  proxy = await FaultProxy.start(h.cluster.coordinator);
  proxy.swallowAll();
});

afterAll(async () => {
  await proxy.stop();
  await h.stop();
});

function coordinator(): HookTarget {
  const { host, port } = h.cluster.coordinator;
  return { host, port, user: USER };
}

/** The newest task that a hook reported; the comparison makes its own of what hooks say of members. */
async function newestTask() {
  const { rows } = await h.db.query<{ id: string; event: string; node: string; timeout: string }>(
    `SELECT id, event, format('%s:%s', nodename, nodeport) AS node, timeout::text
     FROM mpp_tasks WHERE source = 'client' ORDER BY id DESC LIMIT 1`,
  );
  return rows[0];
}

/** What hooks have said of a node last. */
async function member({ port }: Server) {
  const { rows } = await h.db.query<{ role: string; state: string }>(
    `SELECT role, state FROM mpp_members WHERE source = 'table' AND nodeport = $1`,
    [port],
  );
  return rows[0];
}

describe.each(kinds)('$name', ({ run, missing }) => {
  async function lineOf(
    stream: 'stdout' | 'stderr',
    manager: Manager,
    args: readonly string[],
    target = coordinator(),
  ): Promise<string> {
    const result = await run(manager, args, target);
    expect(result).toMatchObject({
      exitCode: 0,
      [stream === 'stdout' ? 'stderr' : 'stdout']: '',
      [stream]: expect.stringMatching(/^[^\n]+\n$/) as string,
    });
    return result[stream].trimEnd();
  }

  /** A hook of a node when all is well. */
  async function hook(node: Server, manager: Manager, words: string): Promise<string> {
    const flags = ['--group', '1', '--host', node.host, '--port', String(node.port)];
    return lineOf('stdout', manager, [...flags, ...words.split(' ')]);
  }

  describe.skipIf(missing !== undefined)('run by Patroni', () => {
    it('holds a primary that is about to stop, and lets it go on once it is back', async () => {
      const { primary } = h.cluster.group(1);
      expect(await hook(primary, 'patroni', 'before_stop')).toMatch(
        /^before_demote of 127\.0\.0\.1:\d+ is task \d+: holding/,
      );
      expect(await newestTask()).toMatchObject({ event: 'before_demote', node: primary.address });
      expect(await h.holds()).toBe(1);

      await hook(primary, 'patroni', 'on_stop on_stop primary group-1');
      expect(await member(primary)).toEqual({ role: 'primary', state: 'stopped' });

      expect(await hook(primary, 'patroni', 'on_restart on_restart master group-1')).toMatch(
        /^after_promote of .* is task \d+: [a-z]+.*; .* is reported as primary, running$/,
      );
      const task = await newestTask();
      expect(task).toMatchObject({ event: 'after_promote', node: primary.address });
      expect((await h.ended(task?.id ?? '')).status).toBe('done');
      expect(await member(primary)).toEqual({ role: 'primary', state: 'running' });
      expect(await h.holds()).toBe(0);
    });

    it('holds the group before a promotion', async () => {
      const { primary, standby } = h.cluster.group(1);
      expect(await hook(standby, 'patroni', 'pre_promote')).toMatch(
        /^before_promote of .* is task \d+: holding/,
      );
      expect(await newestTask()).toMatchObject({ event: 'before_promote', node: standby.address });
      await hook(primary, 'patroni', 'on_start primary group-1');
      await h.ended((await newestTask())?.id ?? '');
      expect(await h.holds()).toBe(0);
    });

    it('reports nothing when a standby stops, and what it is when it is back', async () => {
      const { standby } = h.cluster.group(1);
      const before = await newestTask();
      expect(await hook(standby, 'patroni', 'before_stop')).toBe(
        `nothing reported: ${standby.address} is a standby`,
      );
      await hook(standby, 'patroni', 'on_stop on_stop replica group-1');
      expect(await member(standby)).toEqual({ role: 'secondary', state: 'stopped' });
      await hook(standby, 'patroni', 'on_role_change on_role_change demoted group-1');
      expect(await member(standby)).toEqual({ role: 'secondary', state: 'running' });
      expect(await newestTask()).toEqual(before);
    });

    it('reports nothing of a node that does not answer', async () => {
      const before = await newestTask();
      const args = ['--group', '1', '--host', '127.0.0.1', '--port', '1', 'before_stop'];
      expect(await lineOf('stderr', 'patroni', args)).toContain(
        '127.0.0.1:1 does not say whether it is a primary',
      );
      const silent = ['--group', '1', '--host', '127.0.0.1', '--port', String(proxy.port)];
      expect(await lineOf('stderr', 'patroni', [...silent, 'before_stop'])).toContain(
        'does not say',
      );
      expect(await newestTask()).toEqual(before);
    });
  });

  describe.skipIf(missing !== undefined)('run by repmgr', () => {
    it('holds for its two commands, and reports its promotion', async () => {
      const { primary, standby } = h.cluster.group(1);
      await hook(primary, 'repmgr', 'service_stop_command');
      expect(await newestTask()).toMatchObject({ event: 'before_demote', node: primary.address });
      await hook(standby, 'repmgr', 'promote_command');
      expect(await newestTask()).toMatchObject({ event: 'before_promote', node: standby.address });
      await hook(primary, 'repmgr', 'standby_promote --success 1');
      const task = await newestTask();
      expect(task).toMatchObject({ event: 'after_promote', node: primary.address });
      expect((await h.ended(task?.id ?? '')).status).toBe('done');
      expect(await h.holds()).toBe(0);
    });

    it('reports nothing of what has failed, or is of no interest', async () => {
      const { standby } = h.cluster.group(1);
      const before = await newestTask();
      for (const words of ['standby_promote --success 0', 'repmgrd_start --success 1']) {
        expect(await hook(standby, 'repmgr', words)).toMatch(/^nothing reported: /);
      }
      await hook(standby, 'repmgr', 'standby_follow --success 1');
      expect(await member(standby)).toEqual({ role: 'secondary', state: 'running' });
      expect(await newestTask()).toEqual(before);
    });

    it('suspects a primary that is lost, not one that answers, and lets it go on once it is back', async () => {
      const { primary, standby } = h.cluster.group(1);
      const before = await newestTask();
      for (const node of [primary, standby]) {
        for (const event of ['repmgrd_upstream_disconnect', 'repmgrd_local_disconnect']) {
          expect(await hook(node, 'repmgr', `${event} --success 1`)).toContain('is no suspect');
        }
      }
      expect(await hook(standby, 'repmgr', 'repmgrd_local_reconnect --success 1')).toContain(
        'is a standby',
      );
      expect(await newestTask()).toEqual(before);

      await primary.kill();
      await hook(standby, 'repmgr', 'repmgrd_upstream_disconnect --success 1 --timeout 80s');
      const suspect = await newestTask();
      expect(suspect).toMatchObject({
        event: 'suspect',
        node: primary.address,
        timeout: '00:01:20',
      });
      expect((await h.acknowledged(suspect?.id ?? '')).status).toBe('holding');

      await primary.start();
      await hook(standby, 'repmgr', 'repmgrd_upstream_reconnect --success 1');
      const back = await newestTask();
      expect(back).toMatchObject({ event: 'after_promote', node: primary.address });
      expect((await h.ended(back?.id ?? '')).status).toBe('done');
      expect(await h.holds()).toBe(0);
    });
  });

  describe.skipIf(missing !== undefined)('ends with 0 and one line', () => {
    const NODE = ['--group', '1', '--host', 'w1'];
    const CHANGE = [...NODE, 'on_role_change', 'on_role_change', 'primary', 'group-1'];

    it.each([
      ['before a promotion', [...NODE, 'pre_promote']],
      ['after a promotion', CHANGE],
      ['of a member', [...NODE, 'on_stop', 'on_stop', 'replica', 'group-1']],
    ])('when the coordinator is down or silent, %s', async (_, args) => {
      const down = { host: '127.0.0.1', port: 1, user: USER };
      await lineOf('stderr', 'patroni', args, down);
      await lineOf('stderr', 'patroni', args, { ...down, port: proxy.port });
    });

    it('when its role is missing, or has no rights', async () => {
      expect(
        await lineOf('stderr', 'patroni', CHANGE, { ...coordinator(), user: 'missing_role' }),
      ).toContain('missing_role');
      await h.db.query('CREATE ROLE no_rights LOGIN').catch(() => undefined);
      expect(
        await lineOf('stderr', 'patroni', CHANGE, { ...coordinator(), user: 'no_rights' }),
      ).toContain('permission denied');
    });

    it('when the controller refuses the report', async () => {
      // The database takes a group that does not exist; the controller does not.
      const args = ['--group', '77', '--host', 'w7', 'pre_promote'];
      await lineOf('stderr', 'patroni', args);
      expect(await newestTask()).toMatchObject({ event: 'before_promote', node: 'w7:5432' });
    });

    it.each<[string, Manager, string[]]>([
      ['no words', 'patroni', []],
      ['no moment', 'patroni', NODE],
      ['no group', 'patroni', ['--host', 'w1', 'pre_promote']],
      ['no host', 'patroni', ['--group', '1', 'pre_promote']],
      ['a group that is no number', 'patroni', ['--group', '1; --', '--host', 'w1', 'pre_promote']],
      ['a port that is no number', 'patroni', [...NODE, '--port', 'x', 'pre_promote']],
      ['an option without its value', 'patroni', ['pre_promote', '--group']],
      ['an option that does not exist', 'patroni', [...NODE, '--grup', '1', 'pre_promote']],
      ['a moment that does not exist', 'patroni', [...NODE, 'before_start']],
      ['a role that does not exist', 'patroni', [...NODE, 'on_start', 'on_start', 'king', 's']],
      ['a host that is SQL', 'patroni', ['--group', '1', '--host', `w'); --`, 'pre_promote']],
      ['a host of two lines', 'patroni', ['--group', '1', '--host', `a\nb`, 'pre_promote']],
      ['an event without success', 'repmgr', [...NODE, 'standby_promote']],
      ['success that is no number', 'repmgr', [...NODE, 'standby_promote', '--success', 'yes']],
    ])('for %s, and reports nothing', async (_, manager, args) => {
      const before = await newestTask();
      await lineOf('stderr', manager, args);
      expect(await newestTask()).toEqual(before);
    });
  });
});
