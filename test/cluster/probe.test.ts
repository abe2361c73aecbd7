import { afterAll, afterEach, beforeAll, describe, expect, inject, it } from 'vitest';
import type { ControllerProcess } from '../kit/controller-process.js';
import { FaultProxy } from '../kit/faults/proxy.js';
import { Harness } from '../kit/harness.js';
import { TestBed, waitFor, type Server } from '../kit/servers/index.js';

const PROBE = { MPP_TOPOLOGY: 'probe', MPP_PROBE_INTERVAL: '50ms', MPP_PROBE_TIMEOUT: '500ms' };

describe('the probe', () => {
  let h: Harness;
  let controller: ControllerProcess;

  beforeAll(async () => {
    h = await Harness.start({ template: inject('template'), groups: 4, secondaries: true });
  });
  afterEach(async () => {
    expect(await controller.end()).toBe(0);
    await h.db.query('DELETE FROM mpp_members');
  });
  afterAll(async () => h.stop());

  async function start(env: Readonly<Record<string, string>> = {}): Promise<void> {
    controller = await h.startController({ ...PROBE, ...env });
  }

  async function say(
    groupid: number,
    { host, port }: { host: string; port: number },
    role: string,
  ) {
    await h.db.query('SELECT mpp_report($1, $2, $3, $4)', [groupid, host, port, role]);
  }

  /** What the probe has written of a node. */
  async function seen({ port }: { port: number }): Promise<Record<string, unknown> | undefined> {
    const { rows } = await h.db.query<Record<string, unknown>>(
      `SELECT role, state, timeline, system_identifier, reason, reported_at::text
       FROM mpp_members WHERE nodeport = $1 AND source = 'probe'`,
      [port],
    );
    return rows[0];
  }

  async function sees(node: { port: number }, wanted: Record<string, unknown>) {
    return waitFor(`the probe to see ${JSON.stringify(wanted)}`, async () => {
      const row = await seen(node);
      const same = Object.entries(wanted).every(([key, value]) => row?.[key] === value);
      return row !== undefined && same ? row : undefined;
    });
  }

  async function heartbeats(count: number): Promise<void> {
    const last = async (): Promise<string | undefined> => {
      const { rows } = await h.db.query<{ at: string }>(
        'SELECT max(heartbeat_at)::text AS at FROM mpp_controllers',
      );
      return rows[0]?.at;
    };
    for (let beat = 1; beat <= count; beat += 1) {
      const before = await last();
      await waitFor('a heartbeat', async () => (await last()) !== before);
    }
  }

  async function suspects(groupid: number): Promise<string[]> {
    const { rows } = await h.db.query<{ node: string }>(
      `SELECT format('%s:%s', nodename, nodeport) AS node
       FROM mpp_tasks WHERE groupid = $1 AND event = 'suspect' AND source = 'probe' ORDER BY id`,
      [groupid],
    );
    return rows.map(({ node }) => node);
  }

  it('writes down role, state, timeline and system identifier of every node', async () => {
    await start();
    const { primary, standby } = h.cluster.group(1);
    const one = await sees(primary, { role: 'primary', state: 'running', timeline: 1 });
    const other = await sees(standby, { role: 'secondary', state: 'streaming', timeline: 1 });
    await sees(h.cluster.coordinator, { role: 'primary', state: 'running' });
    expect(one['system_identifier']).toMatch(/^\d+$/);
    expect(other['system_identifier']).toBe(one['system_identifier']);
  });

  it('asks as MPP_NODE_URL says, and does without the identifier where it may not ask', async () => {
    const { primary, standby } = h.cluster.group(1);
    await primary.withSession(async (session) => {
      await session.query('CREATE ROLE plain LOGIN');
      await session.query('REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC');
    });
    await start({ MPP_NODE_URL: 'postgresql://plain@/postgres' });
    await sees(primary, { role: 'primary', state: 'running', system_identifier: null });
    await sees(standby, { role: 'secondary', system_identifier: null });
  });

  it('says nothing of a node that does not let it in, and why once', async () => {
    await start({ MPP_NODE_URL: 'postgresql://nobody_there@/postgres' });
    const { address } = h.cluster.group(1).primary;
    await controller.logged(
      'why',
      ({ msg, node }) => msg.includes('nobody_there') && node === address,
    );
    expect(await seen(h.cluster.group(1).primary)).toBeUndefined();
    const lines = controller.log.filter(
      ({ msg, node }) => msg.includes('nobody_there') && node === address,
    );
    expect(lines).toHaveLength(1);
  });

  it('reports a primary that crashes as suspect, once for each incident', async () => {
    await start({ MPP_PROBE_SUSPECT: 'on' });
    const { primary, standby } = h.cluster.group(2);
    await sees(primary, { state: 'running' });
    await standby.stop();
    await sees(standby, { state: 'unreachable' });
    for (const incident of [1, 2]) {
      await primary.kill();
      await waitFor('a suspect', async () => (await suspects(2)).length === incident);
      const before = await sees(primary, { state: 'unreachable', role: 'primary' });
      // Further rounds make no further report.
      await h.db.query("SELECT mpp_report(2, $1, 1, 'replica', 'stopped')", [`w${incident}`]);
      await waitFor('the probe to confirm it', async () => {
        const row = await seen(primary);
        return row !== undefined && row['reported_at'] !== before['reported_at'];
      });
      expect(await suspects(2)).toHaveLength(incident);
      await primary.start();
      await sees(primary, { state: 'running' });
      // While its hold lasts, another would say nothing new.
      await h.db.query('SELECT mpp_release(2)');
    }
    expect(await suspects(2)).toEqual([primary.address, primary.address]);
    await standby.start();
  });

  it('reports a clean stop as well, and no primary whose one session was ended', async () => {
    await start({ MPP_PROBE_SUSPECT: 'on' });
    const { primary } = h.cluster.group(3);
    await sees(primary, { state: 'running' });
    const pids = async (session: Awaited<ReturnType<Server['connect']>>) => {
      const { rows } = await session.query<{ pid: number }>(
        "SELECT pid FROM pg_stat_activity WHERE application_name = 'mpp-controller probe'",
      );
      return rows.map(({ pid }) => pid);
    };
    await primary.withSession(async (session) => {
      const [pid] = await pids(session);
      expect(pid).toBeDefined();
      await session.query('SELECT pg_terminate_backend($1::integer)', [pid]);
      await waitFor('the probe to be back', async () => {
        const now = await pids(session);
        return now.length === 1 && now[0] !== pid;
      });
    });
    await sees(primary, { state: 'running' });
    expect(await suspects(3)).toEqual([]);
    await primary.stop();
    await waitFor('a suspect', async () => (await suspects(3)).length === 1);
    await primary.start();
    await sees(primary, { state: 'running' });
  });

  it('sees a node that falls silent, while the others go on being asked', async () => {
    const { primary, standby } = h.cluster.group(1);
    const proxy = await FaultProxy.start(standby);
    const silent = { host: '127.0.0.1', port: proxy.port };
    try {
      await say(1, silent, 'replica');
      await start({ MPP_PROBE_SUSPECT: 'on' });
      // It is a further name of a server that the catalog has.
      await sees(silent, { role: 'secondary', state: 'alias' });
      proxy.swallowAll();
      await sees(silent, { state: 'unreachable' });
      // Whatever changes in the group makes the next round of the others confirm what they said.
      const before = await seen(primary);
      await h.db.query("SELECT mpp_report(1, 'w', 1, 'replica', 'stopped')");
      await waitFor('the primary to be asked', async () => {
        const row = await seen(primary);
        return row !== undefined && row['reported_at'] !== before?.['reported_at'];
      });
      expect(await suspects(1)).toEqual([]);
    } finally {
      await proxy.stop();
    }
  });

  it('takes no server of another cluster for a member', async () => {
    const stranger = await TestBed.open();
    try {
      const server = await stranger.createServer('stranger');
      await server.start();
      const before = await h.nodes(1);
      await start();
      await sees(h.cluster.group(1).primary, { role: 'primary', state: 'running' });
      await h.db.query('SELECT mpp_report(1, $1, $2, $3)', [server.host, server.port, 'primary']);
      const row = await sees(server, { role: 'primary', state: 'foreign' });
      expect(row['reason']).toMatch(/another cluster answers at this address.*of group 1 is \d+/);
      await controller.logged('it', ({ msg }) => msg.includes('another cluster answers'));
      await heartbeats(2);
      expect(await h.nodes(1)).toEqual(before);
    } finally {
      await stranger.close();
    }
  });

  it('of two that claim to be the primary the higher timeline wins, and else none', async () => {
    const group = h.cluster.group(4);
    const [row] = await h.nodes(4);
    const third = await h.cluster.testBed.createStandby(group.primary, 'third');
    await say(4, third, 'replica');
    await start();
    await sees(third, { role: 'secondary' });
    // Both of a split brain live: the old primary on timeline 1, the new one on 2.
    await group.standby.promote();
    await waitFor('the higher timeline to win', async () => {
      const [now] = await h.nodes(4);
      return now?.node === group.standby.address && now.nodeid === row?.nodeid;
    });
    await sees(group.primary, { role: 'primary', timeline: 1 });
    await third.promote();
    await sees(third, { role: 'primary', timeline: 2 });
    const line = await controller.logged(
      'the contradiction',
      ({ problem }) => typeof problem === 'string' && problem.includes('(timeline 2)'),
    );
    expect(line).toMatchObject({ groupid: 4 });
    expect((await h.nodes(4))[0]?.node).toBe(group.standby.address);
    await group.standby.stop();
    await waitFor('the one that is left to win', async () => {
      const [now] = await h.nodes(4);
      return now?.node === third.address;
    });
  });
});
