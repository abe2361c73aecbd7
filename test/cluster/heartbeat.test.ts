import { afterAll, beforeAll, describe, expect, inject, it } from 'vitest';
import type { ControllerProcess } from '../kit/controller-process.js';
import { Harness } from '../kit/harness.js';
import { RestServer } from '../kit/patroni/rest-server.js';
import { waitFor, type Group, type Server } from '../kit/servers/index.js';
import { keysOfGroup } from '../kit/standin/schema.js';

const PROBE = { MPP_TOPOLOGY: 'probe', MPP_PROBE_INTERVAL: '100ms', MPP_PROBE_TIMEOUT: '2s' };

/** Every report is lost: only the heartbeat inserts tasks. */
describe('every report is lost', () => {
  let h: Harness;
  let lastKey = 100_000;

  beforeAll(async () => {
    h = await Harness.start({ template: inject('template'), groups: 4, secondaries: true });
  });
  afterAll(async () => h.stop());

  async function sources(groupid: number): Promise<string[]> {
    const { rows } = await h.db.query<{ source: string }>(
      'SELECT DISTINCT source FROM mpp_tasks WHERE groupid = $1',
      [groupid],
    );
    return rows.map(({ source }) => source);
  }

  /** Waits until the group's row is `primary`'s, and checks that it kept its nodeid and takes writes. */
  async function follows(group: Group, nodeid: number | undefined): Promise<void> {
    const { groupid, primary } = group;
    await waitFor(`group ${groupid} to be at ${primary.address}`, async () => {
      const [row] = await h.nodes(groupid);
      return row?.node === primary.address;
    });
    const [row] = await h.nodes(groupid);
    expect(row).toEqual({ nodeid, groupid, node: primary.address, role: 'primary' });
    expect(await sources(groupid)).toEqual(['sync']);
    const [key] = await keysOfGroup(h.db, groupid, 1, lastKey);
    lastKey = key ?? 0;
    await h.db.query('INSERT INTO items VALUES ($1, 0)', [key]);
  }

  async function say(groupid: number, server: Server, role: string, state = 'running') {
    const { host, port } = server;
    await h.db.query('SELECT mpp_report($1, $2, $3, $4, $5)', [groupid, host, port, role, state]);
  }

  async function whileRunning(
    env: Readonly<Record<string, string>>,
    work: (controller: ControllerProcess) => Promise<void>,
  ): Promise<void> {
    const controller = await h.startController(env);
    try {
      await work(controller);
    } finally {
      await controller.end();
    }
  }

  it('table: the hook of the promoted node says what it is now', async () => {
    const group = h.cluster.group(1);
    const [row] = await h.nodes(1);
    await whileRunning({}, async () => {
      await say(1, group.primary, 'primary');
      await say(1, group.standby, 'replica');
      await group.failover();
      await say(1, group.primary, 'primary');
      await follows(group, row?.nodeid);
      expect(await h.nodes(1)).toHaveLength(2);
    });
  });

  it('probe: no report is made at all', async () => {
    const group = h.cluster.group(2);
    const [row] = await h.nodes(2);
    await whileRunning(PROBE, async () => {
      await waitFor('the probe to have seen it', async () => {
        const { rows } = await h.db.query(
          "SELECT FROM mpp_topology WHERE groupid = 2 AND state IN ('running', 'streaming')",
        );
        return rows.length === 2;
      });
      await group.failover();
      await follows(group, row?.nodeid);
      await group.rejoin();
      await waitFor('the old primary to be seen as a standby', async () => {
        const { rows } = await h.db.query(
          `SELECT FROM mpp_topology WHERE nodeport = $1 AND role = 'secondary' AND state = 'streaming'`,
          [group.standby.port],
        );
        return rows.length === 1;
      });
      expect((await h.nodes(2)).map(({ node, role }) => [node, role])).toEqual([
        [group.primary.address, 'primary'],
        [group.standby.address, 'secondary'],
      ]);
    });
  });

  it('probe: it happened while no controller was there', async () => {
    const group = h.cluster.group(2);
    const [row] = await h.nodes(2);
    await group.switchover();
    await whileRunning(PROBE, async () => follows(group, row?.nodeid));
  });

  it('patroni: its REST API has the new leader', async () => {
    const group = h.cluster.group(3);
    const [row] = await h.nodes(3);
    const rest = await RestServer.start();
    const tell = (): void => {
      rest.members = [
        { role: 'leader', state: 'running', host: group.primary.host, port: group.primary.port },
        { role: 'replica', state: 'stopped', host: group.standby.host, port: group.standby.port },
      ];
    };
    tell();
    const env = {
      MPP_TOPOLOGY: 'patroni',
      MPP_PATRONI: `3=${rest.url}`,
      MPP_PATRONI_INTERVAL: '100ms',
    };
    try {
      await whileRunning(env, async () => {
        await waitFor('Patroni to be asked', () => Promise.resolve(rest.requests > 1));
        await group.failover();
        tell();
        await follows(group, row?.nodeid);
      });
    } finally {
      await rest.stop();
    }
  });

  it('a held group is left to its hold until the deadline', async () => {
    const group = h.cluster.group(4);
    const [row] = await h.nodes(4);
    await whileRunning({}, async () => {
      const { primary: node } = group;
      const hold = await h.request({ event: 'before_demote', groupid: 4, node, timeout: '2s' });
      expect(hold.status).toBe('holding');
      await group.switchover();
      await say(4, group.primary, 'primary');
      const ended = await h.ended(hold.id);
      expect(ended.status).toBe('rolled_back');
      await waitFor(`group 4 to be at ${group.primary.address}`, async () => {
        const [now] = await h.nodes(4);
        return now?.node === group.primary.address;
      });
      expect((await h.nodes(4))[0]?.nodeid).toBe(row?.nodeid);
      const { rows } = await h.db.query<{ early: boolean }>(
        `SELECT s.created_at < t.finished_at AS early
         FROM mpp_tasks AS s JOIN mpp_tasks AS t ON t.id = $1
         WHERE s.groupid = 4 AND s.source = 'sync'`,
        [hold.id],
      );
      expect(rows).toEqual([{ early: false }]);
    });
  });
});
