import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, inject, it } from 'vitest';
import type { ControllerProcess, LogLine } from '../kit/controller-process.js';
import { Actor } from '../kit/faults/actor.js';
import { waitUntilNothingHeld, waitUntilTable } from '../kit/faults/hold-sessions.js';
import { subjectOf, type Subject } from '../kit/faults/subject.js';
import { Harness } from '../kit/harness.js';
import { keysOfGroup } from '../kit/standin/schema.js';
import type { Server } from '../kit/servers/index.js';

const UPDATE = 'UPDATE items SET v = v + 1 WHERE id = $1';
const UPDATE_LOOKUP = 'UPDATE lookup SET v = v + 1 WHERE id = 1';
const SELECT = 'SELECT v FROM items WHERE id = $1';

/** Who is in the middle of something when a hold of group 1 is asked for. */
describe('a session that blocks a hold', () => {
  let h: Harness;
  let controller: ControllerProcess;
  let subject: Subject;
  /** Of `items`, on group 2. */
  let otherKey: number;
  const actors: Actor[] = [];

  beforeAll(async () => {
    h = await Harness.start({ template: inject('template'), standbys: false });
    subject = await subjectOf(h, 1);
    [otherKey = 0] = await keysOfGroup(h.db, 2, 1);
    await h.db.query('INSERT INTO items VALUES ($1, 0), ($2, 0)', [subject.key, otherKey]);
    await h.db.query('INSERT INTO lookup VALUES (1, 0)');
  });
  // Anew for each test: a failed attempt to make reads wait is remembered for a moment.
  beforeEach(async () => {
    controller = await h.startController();
  });
  afterEach(async () => {
    await Promise.all(actors.splice(0).map((actor) => actor.end()));
    await h.db.query('SELECT mpp_release(1)');
    await subject.settled();
    await waitUntilNothingHeld(h);
    await controller.end();
  });
  afterAll(async () => h.stop());

  async function actor(server: Server = h.cluster.coordinator): Promise<Actor> {
    const connected = await Actor.connect(server);
    actors.push(connected);
    return connected;
  }

  /** Sessions that were ended as they were logged. */
  function ended(): LogLine[] {
    const isEnded = ({ msg }: LogLine): boolean =>
      msg === 'ended a session that blocked a hold for the cooldown';
    return controller.log.filter(isEnded);
  }

  function demote(pause: 'writes' | 'all', cooldown: string): Promise<string> {
    return h.report({ event: 'before_demote', groupid: 1, node: subject.node, pause, cooldown });
  }

  /** Commits the hold, and expects that what waited for it goes on. */
  async function finish(...waiting: Promise<unknown>[]): Promise<void> {
    const { next, node } = subject;
    const to = await h.request({ event: 'after_promote', groupid: 1, node: next });
    expect(to.status).toBe('done');
    await Promise.all(waiting);
    const back = await h.request({ event: 'after_promote', groupid: 1, node });
    expect(back.status).toBe('done');
    subject = await subjectOf(h, 1);
  }

  const ENTRIES = [
    { entry: 'the coordinator', groupid: 0 },
    { entry: 'another worker', groupid: 2 },
  ];

  it.each(ENTRIES)(
    'a long reader through $entry, under all: is never ended, and reads go on',
    async ({ groupid }) => {
      const { primary } = h.cluster.group(groupid);
      const reader = await actor(primary);
      await reader.begin(SELECT, [subject.key]);
      const task = await h.acknowledged(await demote('all', '3s'));
      expect(task.status).toBe('holding');
      expect(task.reason).toContain('only writes to public.items are paused: ');
      expect(task.reason).toContain(`had a conflicting lock on ${primary.address}`);
      expect(task.reason).toContain(`pid ${reader.pid} (user postgres, application shop)`);

      await (await actor(primary)).query(SELECT, [subject.key]);
      const writer = await (await actor(primary)).sendAndWait(UPDATE, [subject.key]);
      await reader.query(SELECT, [subject.key]);
      await reader.query('COMMIT');
      expect(ended()).toEqual([]);
      await finish(writer.answer);
    },
  );

  it('a long reader does not block under writes', async () => {
    const reader = await actor();
    await reader.begin(SELECT, [subject.key]);
    expect(await h.acknowledged(await demote('writes', '10s'))).toMatchObject({
      status: 'holding',
      reason: null,
    });
    await (await actor()).query(SELECT, [subject.key]);
    await reader.query('COMMIT');
    expect(ended()).toEqual([]);
  });

  describe.each(ENTRIES)('a writer through $entry', ({ groupid }) => {
    it.each([
      { what: 'idle in transaction', pause: 'writes', statement: undefined },
      { what: 'idle in transaction', pause: 'all', statement: undefined },
      { what: 'in a long statement', pause: 'writes', statement: 'SELECT pg_sleep(600)' },
    ] as const)('$what, under $pause: is ended after the cooldown', async (row) => {
      const { primary } = h.cluster.group(groupid);
      const writer = await actor(primary);
      await writer.begin(UPDATE, [subject.key]);
      const { pid } = writer;
      if (row.statement) writer.send(row.statement);
      const task = await h.acknowledged(await demote(row.pause, '1s'));
      expect(task.status).toBe('holding');
      expect(task.reason).toBeNull();
      await writer.waitUntilLost();
      expect(ended()).toEqual([
        expect.objectContaining({
          level: 'warn',
          server: primary.address,
          sessionPid: pid,
          user: 'postgres',
          application: 'shop',
          blockedMs: expect.any(Number) as number,
        }),
      ]);
      const next = await (await actor(primary)).sendAndWait(UPDATE, [subject.key]);
      await finish(next.answer);
    });

    it.each(['writes', 'all'] as const)(
      'that ends before the cooldown is not ended, under %s',
      async (pause) => {
        const writer = await actor(h.cluster.group(groupid).primary);
        const before = await valueOf(subject.key);
        await writer.begin(UPDATE, [subject.key]);
        const id = await demote(pause, '20s');
        await writer.isInTheWay();
        await writer.query(UPDATE, [subject.key]);
        await writer.query('COMMIT');
        expect(await h.acknowledged(id)).toMatchObject({ status: 'holding' });
        expect(ended()).toEqual([]);
        // What only the drain kept waiting goes on.
        const other = await actor(h.cluster.group(groupid).primary);
        const sent = pause === 'all' && (await other.sendAndWait(UPDATE, [otherKey]));
        if (!sent) await other.query(UPDATE, [otherKey]);
        await finish(...(sent ? [sent.answer] : []));
        expect(await valueOf(subject.key)).toBe(before + 2);
      },
    );

    it('of another group alone, idle, is not ended: all becomes writes', async () => {
      const writer = await actor(h.cluster.group(groupid).primary);
      await writer.begin(UPDATE, [otherKey]);
      const task = await h.acknowledged(await demote('all', '3s'));
      expect(task.status).toBe('holding');
      expect(task.reason).toContain(`pid ${writer.pid} (user postgres, application shop)`);
      await writer.query(UPDATE, [otherKey]);
      await writer.query('COMMIT');
      expect(ended()).toEqual([]);
      const own = await (await actor()).sendAndWait(UPDATE, [subject.key]);
      await finish(own.answer);
    });

    it('of another group alone, idle, does not block under writes', async () => {
      const writer = await actor(h.cluster.group(groupid).primary);
      await writer.begin(UPDATE, [otherKey]);
      const task = await h.acknowledged(await demote('writes', '30s'));
      expect(task).toMatchObject({ status: 'holding', reason: null });
      await writer.query('COMMIT');
      expect(ended()).toEqual([]);
    });

    it('of a reference table blocks, and is ended after the cooldown', async () => {
      const writer = await actor(h.cluster.group(groupid).primary);
      await writer.begin(UPDATE_LOOKUP);
      const task = await h.acknowledged(await demote('writes', '1s'));
      expect(task.status).toBe('holding');
      await writer.waitUntilLost();
      expect(ended()).toEqual([expect.objectContaining({ sessionPid: writer.pid })]);
      const next = await (await actor()).sendAndWait(UPDATE_LOOKUP);
      await finish(next.answer);
    });
  });

  it('a reader that goes on while the hold tries is let through, and then reads wait', async () => {
    const reader = await actor();
    await reader.begin(SELECT, [subject.key]);
    const id = await demote('all', '20s');
    await waitUntilTable(h.cluster.coordinator, 'items', { granted: false });
    await reader.query('COMMIT');
    expect(await h.acknowledged(id)).toMatchObject({ status: 'holding', reason: null });
    const sent = await reader.sendAndWait(SELECT, [subject.key]);
    await finish(sent.answer);
  });

  async function valueOf(key: number): Promise<number> {
    const { rows } = await h.db.query<{ v: number }>(SELECT, [key]);
    return rows[0]?.v ?? NaN;
  }
});
