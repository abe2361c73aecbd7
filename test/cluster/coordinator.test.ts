import { afterAll, beforeAll, describe, expect, inject, it } from 'vitest';
import { Harness } from '../kit/harness.js';
import { waitFor, waitUntilReplayed } from '../kit/servers/index.js';

describe('registration, and the coordinator as a group like any other', () => {
  let h: Harness;

  beforeAll(async () => {
    h = await Harness.start({
      template: inject('template'),
      groups: 1,
      coordinatorStandby: true,
      register: false,
    });
  });
  afterAll(async () => h.stop());

  it('register groups 0 and 1, then their standbys', async () => {
    const controller = await h.startController();
    const [coordinator, worker] = [h.cluster.group(0), h.cluster.group(1)];
    for (const { groupid, primary } of [coordinator, worker]) {
      const task = await h.request({ event: 'after_promote', groupid, node: primary });
      expect(task).toMatchObject({ status: 'done', nodeid: expect.any(Number) as number });
    }
    expect(await h.nodes()).toEqual([
      {
        nodeid: expect.any(Number) as number,
        groupid: 0,
        node: coordinator.primary.address,
        role: 'primary',
      },
      {
        nodeid: expect.any(Number) as number,
        groupid: 1,
        node: worker.primary.address,
        role: 'primary',
      },
    ]);
    for (const { groupid, primary, standby } of [coordinator, worker]) {
      const secondaries = [standby.address];
      const id = await h.report({ event: 'after_promote', groupid, node: primary, secondaries });
      expect((await h.ended(id)).status).toBe('done');
    }
    const all = await h.nodes();
    expect(all.map(({ groupid, role }) => [groupid, role])).toEqual([
      [0, 'primary'],
      [1, 'primary'],
      [0, 'secondary'],
      [1, 'secondary'],
    ]);
    await worker.primary.withSession((session) =>
      waitFor('the worker to have the same rows', async () => {
        const copy = await h.nodes(undefined, session);
        return JSON.stringify(copy) === JSON.stringify(all);
      }),
    );
    expect(await controller.end()).toBe(0);
  });

  it('coordinator failover and back', async () => {
    const group = h.cluster.group(0);
    const [row] = await h.nodes(0);
    for (let round = 1; round <= 2; round += 1) {
      const controller = await h.startController();
      const [old, next] = [group.primary, group.standby];
      const demote = await h.request({ event: 'before_demote', groupid: 0, node: old });
      expect(demote.status).toBe('holding');
      await waitUntilReplayed(old, next);
      await group.switchover();
      await controller.end('SIGKILL');

      await h.reconnect();
      const successor = await h.startController();
      const after = await h.request({ event: 'after_promote', groupid: 0, node: next });
      expect(after).toMatchObject({ status: 'done', nodeid: row?.nodeid });
      expect((await h.ended(demote.id)).status).toMatch(/^(done|superseded|rolled_back)$/);
      expect(await h.nodes(0)).toEqual([
        { nodeid: row?.nodeid, groupid: 0, node: next.address, role: 'primary' },
        expect.objectContaining({ node: old.address, role: 'secondary' }),
      ]);
      expect(await h.holds()).toBe(0);
      expect(await successor.end()).toBe(0);
      await group.rejoin();
    }
  });
});
