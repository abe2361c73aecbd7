import { afterAll, afterEach, beforeAll, describe, expect, inject, it } from 'vitest';
import type { ControllerProcess } from '../kit/controller-process.js';
import { Actor } from '../kit/faults/actor.js';
import { waitUntilNothingHeld, waitUntilTable } from '../kit/faults/hold-sessions.js';
import { Harness, type TaskRow } from '../kit/harness.js';
import { waitFor, type Server } from '../kit/servers/index.js';
import { keysOfGroup } from '../kit/standin/schema.js';

const ITEM = 'UPDATE items SET v = v + 1 WHERE id = $1';
const NOTE = 'UPDATE notes SET v = v + 1 WHERE id = $1';
const LOOKUP = 'UPDATE lookup SET v = v + 1 WHERE id = $1';

/** Clients in lockstep that would wait for a hold of group 1 while it waits for them. */
describe('a hold that drains yields', () => {
  let h: Harness;
  let controller: ControllerProcess;
  let entry: Server;
  /** Of each group, from 1: two keys of items and notes. */
  const keys: [number, number][] = [];
  const actors: Actor[] = [];

  beforeAll(async () => {
    h = await Harness.start({ template: inject('template'), groups: 3, standbys: false });
    controller = await h.startController();
    entry = h.cluster.group(2).primary;
    for (const { groupid } of h.cluster.workers) {
      const [first = 0, second = 0] = await keysOfGroup(h.db, groupid, 2);
      keys[groupid] = [first, second];
      for (const key of [first, second]) {
        await h.db.query('INSERT INTO items VALUES ($1, 0)', [key]);
        await h.db.query('INSERT INTO notes VALUES ($1, 0)', [key]);
      }
    }
    await h.db.query('INSERT INTO lookup VALUES (1, 0), (2, 0)');
  });
  afterEach(async () => {
    await Promise.all(actors.splice(0).map((actor) => actor.end()));
    for (const { groupid } of h.cluster.workers) {
      await h.db.query('SELECT mpp_release($1)', [groupid]);
    }
    await waitUntilNothingHeld(h);
  });
  afterAll(async () => h.stop());

  async function through(server: Server): Promise<Actor> {
    const actor = await Actor.connect(server);
    actors.push(actor);
    return actor;
  }

  function keyOf(groupid: number, index: 0 | 1 = 0): number {
    return keys[groupid]?.[index] ?? 0;
  }

  /**
   * The cooldown is so long that nothing but a yield can help. The primary is said to be gone: a hold that is
   * planned leaves the queue for a client that stays.
   */
  function demote(pause: 'writes' | 'all', groupid = 1): Promise<string> {
    const node = h.cluster.group(groupid).primary;
    const [timeout, cooldown] = ['2min', '1min'];
    return h.report({ event: 'suspect', groupid, node, pause, timeout, cooldown });
  }

  async function held(id: string): Promise<TaskRow> {
    const task = await h.acknowledged(id);
    expect(task.status).toBe('holding');
    expect(controller.log.filter(({ msg }) => msg.startsWith('ended a session'))).toEqual([]);
    return task;
  }

  /** How often the last hold gave way. */
  function yields(): number {
    const line = controller.log.findLast(({ msg }) => /traffic waits/.test(msg));
    return Number(line?.['yields']);
  }

  const ENTRIES = [
    { name: 'the coordinator', groupid: 0 },
    { name: 'another worker', groupid: 2 },
  ];

  it.each(ENTRIES)(
    'all, on $name: a client in the middle wants a table that the hold has',
    async ({ groupid }) => {
      const server = h.cluster.group(groupid).primary;
      const client = await through(server);
      await client.begin(ITEM, [keyOf(1)]);
      const id = await demote('all');
      await waitUntilTable(server, 'notes', { granted: true });
      await client.query(NOTE, [keyOf(1)]);
      await client.query(LOOKUP, [1]);
      await client.query('COMMIT');
      expect((await held(id)).reason).toBeNull();
      expect(yields()).toBeGreaterThan(0);
    },
  );

  it.each(ENTRIES)(
    'writes, on $name: a client in the middle wants the reference table',
    async ({ groupid }) => {
      const server = h.cluster.group(groupid).primary;
      const client = await through(server);
      await client.begin(ITEM, [keyOf(1)]);
      const id = await demote('writes');
      await waitUntilTable(server, 'lookup', { granted: true });
      await client.isInTheWay();
      await client.query(LOOKUP, [1]);
      await client.query('COMMIT');
      expect((await held(id)).reason).toBeNull();
      expect(yields()).toBeGreaterThan(0);
    },
  );

  // Theirs is one call for all shards, and the doors are what keeps new writers out of its way.
  it.each(['pause-node', 'demoted-row'])(
    'with %s: a client in the middle wants the reference table, another a further shard',
    async (strategy) => {
      await controller.end();
      controller = await h.startController({ MPP_STRATEGY: strategy });
      const client = await through(h.cluster.coordinator);
      const other = await through(h.cluster.coordinator);
      await client.begin(ITEM, [keyOf(1)]);
      await other.begin(ITEM, [keyOf(1, 1)]);
      const id = await demote('writes');
      await waitUntilTable(h.cluster.coordinator, 'lookup', { granted: true });
      await client.query(LOOKUP, [1]);
      await other.query(NOTE, [keyOf(1, 1)]);
      await client.query('COMMIT');
      await other.query('COMMIT');
      expect((await held(id)).reason).toBeNull();
      expect(yields()).toBeGreaterThan(0);
      expect((await h.task(id)).attempt).toBe(1);
      const next = await through(h.cluster.coordinator);
      const waiting = await next.sendAndWait(ITEM, [keyOf(1)]);
      await h.db.query('SELECT mpp_release(1)');
      await waiting.answer;
      await controller.end();
      controller = await h.startController();
    },
  );

  it('a place in a queue is given back: a client waits behind the hold, and the hold for the other', async () => {
    const reader = await through(h.cluster.coordinator);
    const client = await through(h.cluster.coordinator);
    await reader.begin('SELECT FROM notes WHERE id = $1', [keyOf(1)]);
    await client.begin(ITEM, [keyOf(1)]);
    const id = await demote('all');
    await waitUntilTable(h.cluster.coordinator, 'notes', { granted: false });
    await waitUntilTable(h.cluster.coordinator, 'items', { granted: false });
    // In both queues a session of the hold is in front of every new client: neither may keep its place.
    await reader.query('SELECT FROM items WHERE id = $1', [keyOf(1)]);
    await client.query(NOTE, [keyOf(1)]);
    await reader.query('COMMIT');
    await client.query('COMMIT');
    expect((await held(id)).reason).toBeNull();
  });

  // B is in the way on the other node, waits for A's row, and A waits for the hold on the coordinator: no
  // server sees more than one of these three.
  it.each([
    { where: 'on the other entry node itself', group: 2 },
    { where: 'on a third node', group: 3 },
  ])('across two entry nodes, the row $where', async ({ group }) => {
    const a = await through(h.cluster.coordinator);
    const b = await through(entry);
    await a.begin(ITEM, [keyOf(group)]);
    await b.begin(ITEM, [keyOf(1)]);
    const ofB = b.send(ITEM, [keyOf(group)]);
    await waitUntilSomebodyWaits(h.cluster.group(group).primary);
    const id = await demote('writes');
    await waitUntilTable(h.cluster.coordinator, 'lookup', { granted: true });
    await b.isInTheWay();
    // Nothing of the hold's waits on the coordinator.
    await a.query(LOOKUP, [1]);
    await a.query('COMMIT');
    await ofB.answer;
    await b.query('COMMIT');
    expect((await held(id)).reason).toBeNull();
    expect(yields()).toBeGreaterThan(0);
  });

  it('across two entry nodes, the other way round, under all', async () => {
    const a = await through(entry);
    const b = await through(h.cluster.coordinator);
    await a.begin(NOTE, [keyOf(3)]);
    await b.begin(ITEM, [keyOf(1)]);
    const ofB = b.send(NOTE, [keyOf(3)]);
    await waitUntilSomebodyWaits(h.cluster.group(3).primary);
    const id = await demote('all');
    await waitUntilTable(entry, 'lookup', { granted: true });
    await a.query(LOOKUP, [2]);
    await a.query('COMMIT');
    await ofB.answer;
    await b.query('COMMIT');
    await held(id);
  });

  it('two holds that drain at once, and a client that blocks both', async () => {
    const client = await through(h.cluster.coordinator);
    await client.begin(ITEM, [keyOf(1)]);
    await client.query(ITEM, [keyOf(3)]);
    const ids = [await demote('all', 1), await demote('all', 3)];
    await waitUntilTable(h.cluster.coordinator, 'notes', { granted: true });
    await client.query(NOTE, [keyOf(3)]);
    await client.query(LOOKUP, [1]);
    await client.query('COMMIT');
    for (const id of ids) expect((await held(id)).reason).toBeNull();
  });

  it('not what is kept: a client waits for a hold that is there, and the next hold for the client', async () => {
    const first = await demote('writes', 3);
    await held(first);
    const client = await through(h.cluster.coordinator);
    await client.begin(ITEM, [keyOf(1)]);
    const waiting = await client.sendAndWait(LOOKUP, [1]);
    const second = await demote('writes', 1);
    await client.isInTheWay();
    const node = h.cluster.group(3).primary;
    expect((await h.task(second)).status).toBe('claimed');
    const after = await h.request({ event: 'after_promote', groupid: 3, node });
    expect(after.status).toBe('done');
    // Its locks of lookup are shared with the hold that is being opened, which gives them back now.
    await waiting.answer;
    await client.query('COMMIT');
    await held(second);
  });

  async function waitUntilSomebodyWaits(server: Server): Promise<void> {
    await server.withSession((db) =>
      waitFor(`a client to wait for a row on ${server.name}`, async () => {
        const { rowCount } = await db.query(WAITS_FOR_ROW);
        return rowCount !== 0;
      }),
    );
  }
});

const WAITS_FOR_ROW = "SELECT FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'";
