import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, inject, it } from 'vitest';
import type { ControllerProcess } from '../kit/controller-process.js';
import { Actor, type Sent } from '../kit/faults/actor.js';
import { BusyClient } from '../kit/faults/busy-client.js';
import { terminated } from '../kit/faults/hold-log.js';
import { waitUntilNothingHeld } from '../kit/faults/hold-sessions.js';
import { subjectOf, type Subject } from '../kit/faults/subject.js';
import { Harness, type TaskRow } from '../kit/harness.js';
import { waitFor, type Server } from '../kit/servers/index.js';
import { keysOfGroup } from '../kit/standin/schema.js';

const ITEM = 'UPDATE items SET v = v + 1 WHERE id = $1';
const NOTE = 'UPDATE notes SET v = v + 1 WHERE id = $1';
const READ = 'SELECT v FROM items WHERE id = $1';
const LOOKUP = 'UPDATE lookup SET v = v + 1 WHERE id = 1';
/** Between two readings of one clock, and between the steps by which a server rounds it. */
const SLACK_MS = 100;

/** Group 1 is to be held; statements enter through the coordinator and group 2. */
describe('a session that blocks a hold', () => {
  let h: Harness;
  let controller: ControllerProcess;
  let subject: Subject;
  let other: Server;
  /** Of group 1; the first is the one that the blocking session writes to. */
  let keys: number[];
  const actors: Actor[] = [];
  const busy: BusyClient[] = [];

  beforeAll(async () => {
    h = await Harness.start({ template: inject('template'), groups: 3, standbys: false });
    other = h.cluster.group(2).primary;
    keys = await keysOfGroup(h.db, 1, 12);
    for (const key of keys) {
      await h.db.query('INSERT INTO items VALUES ($1, 0)', [key]);
      await h.db.query('INSERT INTO notes VALUES ($1, 0)', [key]);
    }
    await h.db.query('INSERT INTO lookup VALUES (1, 0)');
  });
  beforeEach(async () => {
    subject = await subjectOf(h, 1);
    controller = await h.startController();
  });
  afterEach(async () => {
    await Promise.all(actors.splice(0).map((actor) => actor.end()));
    await h.db.query('SELECT mpp_release(1)');
    await Promise.all(busy.splice(0).map((client) => client.stop()));
    await waitUntilNothingHeld(h);
    await controller.end();
  });
  afterAll(async () => h.stop());

  async function through(server: Server): Promise<Actor> {
    const actor = await Actor.connect(server);
    actors.push(actor);
    return actor;
  }

  function keyAt(index: number): number {
    return keys[index] ?? 0;
  }

  function demote(pause: 'writes' | 'all', cooldown: string): Promise<string> {
    const { node } = subject;
    const report = { groupid: 1, node, pause, cooldown, timeout: '5min' };
    return h.report({ ...report, event: 'before_demote' });
  }

  async function held(id: string): Promise<TaskRow> {
    const task = await h.acknowledged(id);
    expect(task.status).toBe('holding');
    return task;
  }

  function logged(actor: Actor): { server: string; pid: number } {
    return { server: actor.server.address, pid: actor.pid };
  }

  /** Sends a write that waits for another client's row, on a worker. */
  async function queueBehind(
    server: Server,
    text: string,
    values: readonly unknown[] = [],
  ): Promise<Sent> {
    const before = await rowWaits();
    const sent = (await through(server)).send(text, values);
    await waitFor('a client to wait for a row', async () => (await rowWaits()) > before);
    return sent;
  }

  async function rowWaits(): Promise<number> {
    const counts = await Promise.all(
      h.cluster.groups.map(({ primary }) =>
        primary.withSession(async (db) => (await db.query(ROW_WAITS)).rows.length),
      ),
    );
    return counts.reduce((sum, count) => sum + count, 0);
  }

  const ENTRIES = [
    { entry: 'the coordinator', groupid: 0 },
    { entry: 'another worker', groupid: 2 },
  ];

  describe.each(ENTRIES)('and idles in its transaction on $entry', ({ groupid }) => {
    it.each(['writes', 'all'] as const)(
      'is terminated after it has blocked for the cooldown, with %s',
      async (pause) => {
        const writer = await through(h.cluster.group(groupid).primary);
        await writer.begin(ITEM, [keyAt(0)]);
        await held(await demote(pause, '1s'));
        await writer.waitUntilLost();
        const [interruption, ...others] = terminated(controller.log);
        expect(others).toEqual([]);
        expect(interruption).toMatchObject(logged(writer));
        expect(interruption?.blockedMs).toBeGreaterThanOrEqual(1_000 - SLACK_MS);
        await expectReadsWait(pause);
      },
    );

    it.each(['writes', 'all'] as const)(
      'is terminated alone: the clients that queue behind it go on, with %s',
      async (pause) => {
        const writer = await through(h.cluster.group(groupid).primary);
        await writer.begin(ITEM, [keyAt(0)]);
        const queued = [
          await queueBehind(h.cluster.coordinator, ITEM, [keyAt(0)]),
          await queueBehind(other, ITEM, [keyAt(0)]),
        ];
        await held(await demote(pause, '1s'));
        await writer.waitUntilLost();
        // Those that had not begun to wait for the hold have written before it; the others are paused.
        await h.db.query('SELECT mpp_release(1)');
        await Promise.all(queued.map(({ answer }) => answer));
        expect(terminated(controller.log)).toEqual([expect.objectContaining(logged(writer))]);
      },
    );

    it.each(['writes', 'all'] as const)(
      'and wrote to a reference table is terminated alone, with %s',
      async (pause) => {
        const writer = await through(h.cluster.group(groupid).primary);
        await writer.begin(LOOKUP);
        const queued = await queueBehind(other, LOOKUP);
        await held(await demote(pause, '1s'));
        await writer.waitUntilLost();
        await h.db.query('SELECT mpp_release(1)');
        await queued.answer;
        expect(terminated(controller.log)).toEqual([expect.objectContaining(logged(writer))]);
      },
    );

    it('keeps its own cooldown when another session has blocked for longer', async () => {
      const first = await through(h.cluster.group(groupid).primary);
      await first.begin(ITEM, [keyAt(0)]);
      const id = await demote('writes', '6s');
      await first.isInTheWay();
      const second = await through(other);
      const hold = held(id);
      await Promise.race([
        second.begin(NOTE, [keyAt(1)]),
        hold.then(() =>
          Promise.reject(new Error('the second one waited until the hold was there')),
        ),
      ]);
      const began = Date.now();
      await hold;
      await Promise.all([first.waitUntilLost(), second.waitUntilLost()]);
      const interruptions = terminated(controller.log);
      expect(interruptions.map(({ pid }) => pid)).toEqual([first.pid, second.pid]);
      for (const { blockedMs } of interruptions) {
        expect(blockedMs).toBeGreaterThanOrEqual(6_000 - SLACK_MS);
      }
      expect((interruptions[1]?.at ?? 0) - began).toBeGreaterThanOrEqual(6_000 - SLACK_MS);
    });

    it.each(['writes', 'all'] as const)(
      'hardly makes other clients wait while the hold is opened, with %s',
      async (pause) => {
        const { coordinator } = h.cluster;
        const clients = {
          'the same table, through the coordinator': await repeat(coordinator, ITEM, keyAt(1)),
          'the same table, through another worker': await repeat(other, ITEM, keyAt(2)),
          'another table, through the coordinator': await repeat(coordinator, NOTE, keyAt(3)),
          'another table, through another worker': await repeat(other, NOTE, keyAt(4)),
          'a reader, through the coordinator': await repeat(coordinator, READ, keyAt(5)),
          'a reader, through another worker': await repeat(other, READ, keyAt(6)),
        };
        const writer = await through(h.cluster.group(groupid).primary);
        await writer.begin(ITEM, [keyAt(0)]);
        await Promise.all(Object.values(clients).map((client) => client.progress(20)));
        const waits = Object.entries(clients).map(
          ([name, client]) => [name, client.measureWaits(client.longestMs)] as const,
        );
        const id = await demote(pause, '8s');
        // What a client waits for afterwards is the hold itself.
        await writer.waitUntilLost();
        const waitedMs = waits.map(([name, sum]) => [name, Math.round(sum())] as const);
        expect(waitedMs.filter(([, ms]) => ms > 4_000)).toEqual([]);
        await held(id);
        expect(terminated(controller.log)).toEqual([expect.objectContaining(logged(writer))]);
        await h.db.query('SELECT mpp_release(1)');
        await Promise.all(Object.values(clients).map((client) => client.progress(1)));
      },
    );
  });

  async function repeat(server: Server, text: string, key: number): Promise<BusyClient> {
    const client = await BusyClient.start(server, [[text, [key]]]);
    busy.push(client);
    return client;
  }

  async function expectReadsWait(pause: 'writes' | 'all'): Promise<void> {
    if (pause === 'writes') return;
    const reads = [];
    for (const server of [h.cluster.coordinator, other]) {
      reads.push(await (await through(server)).sendAndWait(READ, [keyAt(0)]));
    }
    await h.db.query('SELECT mpp_release(1)');
    await Promise.all(reads.map(({ answer }) => answer));
  }
});

/** Citus has writers of a reference table wait for an advisory lock. */
const ROW_WAITS = `
  SELECT FROM pg_locks
  WHERE NOT granted AND locktype IN ('transactionid', 'tuple', 'advisory')`;
