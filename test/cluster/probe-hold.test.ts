import { afterAll, afterEach, beforeAll, describe, expect, inject, it } from 'vitest';
import { Actor } from '../kit/faults/actor.js';
import { Harness, type TaskRow } from '../kit/harness.js';
import { waitFor } from '../kit/servers/index.js';
import { keysOfGroup } from '../kit/standin/schema.js';

/** No heartbeat and no deadline comes while a test runs, so that neither is what moves a row. */
const ENV = {
  MPP_TOPOLOGY: 'probe',
  MPP_PROBE_INTERVAL: '100ms',
  MPP_HEARTBEAT: '10min',
  MPP_MEMBER_TTL: '30min',
};
const UPDATE = 'UPDATE items SET v = v + 1 WHERE id = $1';

describe('without hooks', () => {
  let h: Harness;
  const actors: Actor[] = [];

  beforeAll(async () => {
    h = await Harness.start({ template: inject('template'), groups: 4, secondaries: true });
  });
  afterEach(async () => {
    await Promise.all(actors.splice(0).map((actor) => actor.end()));
  });
  afterAll(async () => h.stop());

  async function whileRunning(
    env: Readonly<Record<string, string>>,
    work: () => Promise<void>,
  ): Promise<void> {
    const controller = await h.startController({ ...ENV, ...env });
    try {
      await work();
    } finally {
      await controller.end();
    }
  }

  /** Waits until the probe has seen both nodes of a group. */
  async function seen(groupid: number): Promise<void> {
    await waitFor('the probe to see the group', async () => {
      const { rowCount } = await h.db.query(
        "SELECT FROM mpp_members WHERE groupid = $1 AND source = 'probe' AND state IN ('running', 'streaming')",
        [groupid],
      );
      return rowCount === 2;
    });
  }

  async function suspect(groupid: number): Promise<TaskRow> {
    const id = await waitFor('a suspect', async () => {
      const { rows } = await h.db.query<{ id: string }>(
        "SELECT id FROM mpp_tasks WHERE groupid = $1 AND event = 'suspect' AND source = 'probe'",
        [groupid],
      );
      return rows[0]?.id;
    });
    return h.acknowledged(id);
  }

  async function waitingWriter(groupid: number) {
    const [key] = await keysOfGroup(h.db, groupid, 1);
    const writer = await Actor.connect(h.cluster.coordinator);
    actors.push(writer);
    return writer.sendAndWait(UPDATE, [key]);
  }

  async function isAt(groupid: number, address: string): Promise<void> {
    await waitFor(`group ${groupid} to be at ${address}`, async () => {
      const [row] = await h.nodes(groupid);
      return row?.node === address;
    });
  }

  it('a hold that the probe opened is committed once the probe sees the new primary', async () => {
    const env = { MPP_PROBE_SUSPECT: 'on', MPP_SUSPECT_TIMEOUT: '5min' };
    await whileRunning(env, async () => {
      await seen(1);
      const group = h.cluster.group(1);
      await group.primary.stop();
      const held = await suspect(1);
      expect(held.status).toBe('holding');
      const { rows } = await h.db.query<{ timeout: string }>(
        'SELECT timeout::text FROM mpp_tasks WHERE id = $1',
        [held.id],
      );
      expect(rows).toEqual([{ timeout: '00:05:00' }]);
      const sent = await waitingWriter(1);
      await group.promoteStandby();
      await isAt(1, group.primary.address);
      expect((await h.ended(held.id)).status).toBe('done');
      await sent.answer;
    });
  });

  it('a hold that the probe opened ends once the same primary is back', async () => {
    const env = { MPP_PROBE_SUSPECT: 'on', MPP_SUSPECT_TIMEOUT: '5min' };
    await whileRunning(env, async () => {
      await seen(2);
      const { primary } = h.cluster.group(2);
      const before = await h.nodes(2);
      await primary.stop();
      const held = await suspect(2);
      expect(held.status).toBe('holding');
      const sent = await waitingWriter(2);
      await primary.start();
      expect(await h.ended(held.id)).toMatchObject({
        status: 'done',
        reason: 'the primary is the same; its traffic goes on',
      });
      await sent.answer;
      expect(await h.nodes(2)).toEqual(before);
    });
  });

  it.each([
    { end: 'at its deadline', groupid: 3, timeout: '2s' },
    { end: 'by an operator', groupid: 4, timeout: '5min' },
  ])('the end of a hold $end wakes the comparison', async ({ groupid, timeout, end }) => {
    await whileRunning({}, async () => {
      await seen(groupid);
      const group = h.cluster.group(groupid);
      const node = group.primary;
      const held = await h.request({ event: 'before_demote', groupid, node, timeout });
      expect(held.status).toBe('holding');
      await group.switchover();
      if (end === 'by an operator') {
        await waitFor('the probe to see the new primary', async () => {
          const { rowCount } = await h.db.query(
            "SELECT FROM mpp_members WHERE nodeport = $1 AND role = 'primary'",
            [group.primary.port],
          );
          return rowCount === 1;
        });
        expect((await h.nodes(groupid))[0]?.node).toBe(node.address);
        await h.db.query('SELECT mpp_release($1)', [groupid]);
      }
      expect((await h.ended(held.id)).status).toBe('rolled_back');
      await isAt(groupid, group.primary.address);
    });
  });
});
