import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, inject, it } from 'vitest';
import type { ControllerProcess } from '../kit/controller-process.js';
import { Actor } from '../kit/faults/actor.js';
import { Barrier } from '../kit/faults/barrier.js';
import {
  endHoldSessions,
  waitUntilNothingHeld,
  waitUntilTable,
} from '../kit/faults/hold-sessions.js';
import { subjectOf, type Subject } from '../kit/faults/subject.js';
import { Harness } from '../kit/harness.js';
import { waitFor, type Server } from '../kit/servers/index.js';
import { keysOfGroup } from '../kit/standin/schema.js';

const UPDATE = 'UPDATE items SET v = v + 1 WHERE id = $1';
const SELECT = 'SELECT v FROM items WHERE id = $1';

/** Faults that strike the sessions of a hold: those of the coordinator and of other entry nodes. */
describe('while a hold of group 1 drains, or is there', () => {
  let h: Harness;
  let controller: ControllerProcess;
  let subject: Subject;
  /** Of the same group as subject.key. */
  let otherKey: number;
  let entry: Server;
  const actors: Actor[] = [];

  beforeAll(async () => {
    h = await Harness.start({ template: inject('template'), standbys: false });
    entry = h.cluster.group(2).primary;
    subject = await subjectOf(h, 1);
    [otherKey = 0] = await keysOfGroup(h.db, 1, 1, subject.key);
    await h.db.query('INSERT INTO items VALUES ($1, 0), ($2, 0)', [subject.key, otherKey]);
  });
  beforeEach(async () => {
    controller = await h.startController();
  });
  afterEach(async () => {
    await Barrier.liftAll(h);
    await Promise.all(actors.splice(0).map((actor) => actor.end()));
    await h.db.query('SELECT mpp_release(1)');
    await controller.end('SIGKILL');
    await waitUntilNothingHeld(h);
    await endOpenTasks();
  });
  afterAll(async () => h.stop());

  async function endOpenTasks(): Promise<void> {
    await h.db.query("UPDATE mpp_tasks SET status = 'cancelled' WHERE finished_at IS NULL");
  }

  async function through(server: Server): Promise<Actor> {
    const actor = await Actor.connect(server);
    actors.push(actor);
    return actor;
  }

  /** With `suspect` the hold stays in the queue behind a client that stays. */
  function demote(
    pause: 'writes' | 'all',
    event: 'before_demote' | 'suspect' = 'before_demote',
  ): Promise<string> {
    const [timeout, cooldown] = ['2min', '1min'];
    return h.report({
      event,
      groupid: 1,
      node: subject.node,
      pause,
      timeout,
      cooldown,
    });
  }

  async function expectTakenAgain(id: string): Promise<void> {
    await expectHeld(id, 2);
  }

  /** Held in this attempt or a later one, on all nodes, and ended by a report. */
  async function expectHeld(id: string, attempt: number): Promise<void> {
    await waitFor('the hold to be there', async () => {
      const task = await h.task(id);
      return task.status === 'holding' && task.attempt >= attempt;
    });
    expect(await h.holds()).toBe(1);
    const waiting = [];
    for (const server of [h.cluster.coordinator, entry]) {
      waiting.push(await (await through(server)).sendAndWait(UPDATE, [subject.key]));
    }
    const after = await h.request({ event: 'after_promote', groupid: 1, node: subject.next });
    expect(after.status).toBe('done');
    for (const { answer } of waiting) await answer;
    await subject.settled();
    subject = await subjectOf(h, 1);
  }

  async function endWatchSessions(count: number): Promise<void> {
    const endOn = async (server: Server): Promise<void> =>
      server.withSession(async (db) => {
        let ended = 0;
        const end = async (): Promise<boolean> => {
          ended += await endHoldSessions(db, 'watch');
          return ended >= count;
        };
        const bounds = { timeoutMs: 30_000, intervalMs: 1 };
        await waitFor(`${count} sessions that watch to be there and be ended`, end, bounds);
      });
    await Promise.all([h.cluster.coordinator, entry].map(endOn));
  }

  const ENTRIES = [
    { name: 'the coordinator', groupid: 0 },
    { name: 'another worker', groupid: 2 },
  ];

  describe('the controller gets SIGKILL', () => {
    it.each(ENTRIES)(
      'while it drains, a writer of $name blocks it: no session waits for the dead one',
      async ({ groupid }) => {
        const writer = await through(h.cluster.group(groupid).primary);
        await writer.begin(UPDATE, [subject.key]);
        const id = await demote('writes');
        await writer.isInTheWay();
        await controller.end('SIGKILL');
        // The writer stays where it is: nobody may be kept by a session whose controller has gone.
        await waitUntilNothingHeld(h);
        await (await through(h.cluster.group(groupid).primary)).query(UPDATE, [otherKey]);
        await writer.query('COMMIT');
        controller = await h.startController();
        await expectTakenAgain(id);
      },
    );

    it.each(ENTRIES)(
      'while it drains, a reader of $name in its way: readers go on at once',
      async ({ groupid }) => {
        const { primary } = h.cluster.group(groupid);
        const reader = await through(primary);
        await reader.begin(SELECT, [subject.key]);
        const id = await demote('all');
        await waitUntilTable(primary, 'items', { granted: false });
        await controller.end('SIGKILL');
        await waitUntilNothingHeld(h);
        await (await through(primary)).query(SELECT, [subject.key]);
        await reader.query('COMMIT');
        controller = await h.startController();
        await expectTakenAgain(id);
      },
    );

    it('while it holds: all its sessions are gone, on all nodes, and the traffic goes on', async () => {
      const id = await demote('all');
      expect((await h.acknowledged(id)).status).toBe('holding');
      const sent = [];
      for (const server of [h.cluster.coordinator, entry]) {
        sent.push(await (await through(server)).sendAndWait(UPDATE, [subject.key]));
      }
      await controller.end('SIGKILL');
      await Promise.all(sent.map(({ answer }) => answer));
      await waitUntilNothingHeld(h);
      controller = await h.startController();
      await expectTakenAgain(id);
    });
  });

  describe('a session is ended by an administrator', () => {
    it('that has what all holds share, while held: it is locked again', async () => {
      const id = await demote('all');
      expect((await h.acknowledged(id)).status).toBe('holding');
      expect(await endHoldSessions(h.db, 'shared locks')).toBeGreaterThan(0);
      await controller.logged('that it is whole', ({ msg }) => msg === 'traffic is paused again');
      await expectHeld(id, 1);
    });

    it('that has what all holds share, while the hold is opened: it is held all the same', async () => {
      const writer = await through(h.cluster.coordinator);
      await writer.begin(UPDATE, [subject.key]);
      const id = await demote('writes');
      await waitUntilTable(h.cluster.coordinator, 'lookup', { granted: true });
      expect(await endHoldSessions(h.db, 'shared locks')).toBeGreaterThan(0);
      await writer.query('COMMIT');
      await expectHeld(id, 1);
    });

    it('that holds what all holds share, while the hold is acknowledged', async () => {
      const writer = await through(h.cluster.coordinator);
      await writer.begin(UPDATE, [subject.key]);
      const id = await demote('writes');
      await waitUntilTable(h.cluster.coordinator, 'lookup', { granted: true });
      const barrier = await Barrier.beforeCommit(h, id);
      await writer.query('COMMIT');
      await barrier.reached();
      expect(await endHoldSessions(h.db, 'shared locks')).toBeGreaterThan(0);
      await barrier.lift();
      await expectHeld(id, 1);
    });

    // Time and again, so that none of the statements that these sessions run is left out.
    it.each(['writes', 'all'] as const)('that watches, while it drains: %s', async (pause) => {
      const client = await through(h.cluster.coordinator);
      await client.begin(UPDATE, [subject.key]);
      const id = await demote(pause, 'suspect');
      await waitUntilTable(h.cluster.coordinator, 'notes', { granted: true });
      await endWatchSessions(25);
      // A cycle, which the controller has to see.
      await client.query('UPDATE lookup SET v = v + 1 WHERE id = 1');
      await client.query('COMMIT');
      expect(await h.acknowledged(id)).toMatchObject({ status: 'holding', attempt: 1 });
      expect(controller.exitCode).toBeNull();
    });

    it('the one of the group, while it drains: taken again', async () => {
      const writer = await through(entry);
      await writer.begin(UPDATE, [subject.key]);
      const id = await demote('writes');
      await writer.isInTheWay();
      expect(await endHoldSessions(h.db, 'group 1')).toBe(1);
      await waitFor('another attempt', async () => (await h.task(id)).attempt > 1);
      await writer.query('COMMIT');
      await expectTakenAgain(id);
    });
  });

  it('mpp_release while it drains leaves nothing on any node', async () => {
    const writer = await through(entry);
    await writer.begin(UPDATE, [subject.key]);
    const id = await demote('all');
    await writer.isInTheWay();
    await h.db.query('SELECT mpp_release(1)');
    expect((await h.ended(id)).status).toBe('rolled_back');
    await waitUntilNothingHeld(h);
    await writer.query('COMMIT');
    // And the controller is as good as new.
    const again = await h.acknowledged(await demote('all'));
    expect(again).toMatchObject({ status: 'holding', reason: null });
  });

  it('SIGTERM while it drains: written down, and nothing is left on any node', async () => {
    const writer = await through(entry);
    await writer.begin(UPDATE, [subject.key]);
    const id = await demote('all');
    await writer.isInTheWay();
    expect(await controller.end()).toBe(0);
    expect((await h.task(id)).status).toBe('rolled_back');
    await waitUntilNothingHeld(h);
    await writer.query('COMMIT');
  });
});
