import { afterAll, beforeAll, describe, expect, inject, it } from 'vitest';
import type { ControllerProcess } from '../kit/controller-process.js';
import { Actor } from '../kit/faults/actor.js';
import { waitUntilNothingHeld } from '../kit/faults/hold-sessions.js';
import { primaryAddress } from '../kit/faults/subject.js';
import { Harness } from '../kit/harness.js';
import { waitUntilSynced } from '../kit/standin/observe.js';
import { keysOfGroup } from '../kit/standin/schema.js';
import { startTraffic, type Traffic, type TrafficReport } from '../kit/traffic/traffic.js';

const ROUNDS = 3;

/** Planned switchovers of group 1; statements enter through the coordinator and through group 2. */
describe('a planned switchover under mixed load', () => {
  let h: Harness;
  let controller: ControllerProcess;

  beforeAll(async () => {
    h = await Harness.start({ template: inject('template') });
    controller = await h.startController();
    await h.db.query('INSERT INTO lookup VALUES (1, 0)');
  });
  afterAll(async () => h.stop());

  function startLoad(thinkMs: number, firstId: number): Traffic {
    return startTraffic({
      connection: [h.cluster.coordinator.connection, h.cluster.group(2).primary.connection],
      clients: { writers: 3, readers: 3, transactions: 3 },
      thinkMs,
      firstId,
      sharedNotes: 4,
    });
  }

  /** What waits is what waited before: a client each, and it goes on after the commit. */
  async function switchOver(pause: 'writes' | 'all'): Promise<void> {
    const group = h.cluster.group(1);
    const { primary: node, standby: next } = group;
    const demote = await h.request({
      event: 'before_demote',
      groupid: 1,
      node,
      pause,
      timeout: '1min',
      cooldown: '30s',
    });
    expect(demote).toMatchObject({ status: 'holding', reason: null });
    await group.switchover();
    const promote = await h.request({ event: 'before_promote', groupid: 1, node: next });
    expect(promote.status).toBe('holding');
    const after = await h.request({ event: 'after_promote', groupid: 1, node: next });
    expect(after.status).toBe('done');
    expect(await primaryAddress(h, 1)).toEqual({ host: next.host, port: next.port });
  }

  async function rounds(pause: 'writes' | 'all', thinkMs: number, firstId: number) {
    const reports: TrafficReport[] = [];
    for (let round = 0; round < ROUNDS; round += 1) {
      const traffic = startLoad(thinkMs, firstId + round * 100_000);
      await traffic.waitForProgress(100);
      await switchOver(pause);
      for (const kind of ['read', 'write', 'transaction'] as const) {
        await traffic.waitForProgress(20, { kind });
      }
      const report = await traffic.stop();
      reports.push(report);
      // Nothing of ours is left in anybody's way, on any node.
      await waitUntilNothingHeld(h);
      await expectRows(firstId + round * 100_000, report);
      await h.cluster.group(1).rejoin();
      await waitUntilSynced(h.db);
    }
    expect(controller.log.filter(({ msg }) => msg.startsWith('ended a session'))).toEqual([]);
    return reports;
  }

  /** What was acknowledged is there, once. */
  async function expectRows(firstId: number, report: TrafficReport): Promise<void> {
    const { inserted, acknowledged, perhaps } = report;
    for (const server of [h.cluster.coordinator, h.cluster.group(2).primary]) {
      const { rows } = await server.withSession((db) =>
        db.query<{ n: number; sum: number }>(SUMS, [firstId]),
      );
      expect(rows[0]?.n).toBe(inserted);
      expect(rows[0]?.sum).toBeGreaterThanOrEqual(acknowledged.items);
      expect(rows[0]?.sum).toBeLessThanOrEqual(acknowledged.items + perhaps.items);
    }
  }

  it(`pause = all, ${ROUNDS} times: no failed statement of any kind, no deadlock`, async () => {
    const reports = await rounds('all', 20, 1);
    for (const { failures, deadlocks } of reports) {
      expect(failures).toEqual([]);
      expect(deadlocks).toBe(0);
    }
  }, 180_000);

  it(`pause = writes, ${ROUNDS} times: no failed write, no failed transaction`, async () => {
    const reports = await rounds('writes', 20, 1_000_001);
    for (const { failures, deadlocks } of reports) {
      expect(failures.filter(({ kind }) => kind !== 'read')).toEqual([]);
      expect(deadlocks).toBe(0);
    }
  }, 180_000);

  it('pause = all: a read of the group waits, on each node, and finds the new primary', async () => {
    const group = h.cluster.group(1);
    const [key] = await keysOfGroup(h.db, 1, 1, 5_000_000);
    await h.db.query('INSERT INTO items VALUES ($1, 42)', [key]);
    const { primary: node, standby: next } = group;
    const report = { groupid: 1, pause: 'all', timeout: '1min' } as const;
    const demote = await h.request({ ...report, event: 'before_demote', node });
    expect(demote).toMatchObject({ status: 'holding', reason: null });
    const readers = [];
    for (const server of [h.cluster.coordinator, h.cluster.group(2).primary]) {
      const actor = await Actor.connect(server);
      const sent = await actor.sendAndWait('SELECT v FROM items WHERE id = $1', [key]);
      readers.push({ actor, sent });
    }
    await group.switchover();
    const after = await h.request({ ...report, event: 'after_promote', node: next });
    expect(after.status).toBe('done');
    for (const { actor, sent } of readers) {
      expect((await sent.answer).rows).toEqual([{ v: 42 }]);
      await actor.end();
    }
    await waitUntilNothingHeld(h);
    await group.rejoin();
    await waitUntilSynced(h.db);
  });

  it('pause = writes: a read of the group passes, a write waits', async () => {
    const node = await primaryAddress(h, 1);
    const [key] = await keysOfGroup(h.db, 1, 1, 5_000_000);
    const report = { groupid: 1, node, pause: 'writes', timeout: '1min' } as const;
    const demote = await h.request({ ...report, event: 'before_demote' });
    expect(demote).toMatchObject({ status: 'holding', reason: null });
    for (const server of [h.cluster.coordinator, h.cluster.group(2).primary]) {
      const actor = await Actor.connect(server);
      const { rows } = await actor.query('SELECT v FROM items WHERE id = $1', [key]);
      expect(rows).toEqual([{ v: 42 }]);
      await actor.sendAndWait('UPDATE items SET v = v + 1 WHERE id = $1', [key]);
      await actor.end();
    }
    const after = await h.request({ ...report, event: 'after_promote' });
    expect(after.status).toBe('done');
    await waitUntilNothingHeld(h);
  });
});

const SUMS = `
  SELECT count(*)::integer AS n, coalesce(sum(v), 0)::integer AS sum
  FROM items
  WHERE id >= $1 AND id < $1 + 100000`;
