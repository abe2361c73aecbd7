import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, inject, it } from 'vitest';
import type { ControllerProcess } from '../kit/controller-process.js';
import { Actor } from '../kit/faults/actor.js';
import { holdLocks, waitUntilNothingHeld } from '../kit/faults/hold-sessions.js';
import { subjectOf, type Subject } from '../kit/faults/subject.js';
import { Harness } from '../kit/harness.js';
import { waitFor, type Server } from '../kit/servers/index.js';
import { waitUntilSynced } from '../kit/standin/observe.js';

const UPDATE = 'UPDATE items SET v = v + 1 WHERE id = $1';
const READ = 'SELECT v FROM items WHERE id = $1';

/** Group 1 is held; statements enter through the coordinator and groups 2 and 3. */
describe('a pause that is lost on another entry node', () => {
  let h: Harness;
  let controller: ControllerProcess;
  let subject: Subject;
  let entry: Server;
  const actors: Actor[] = [];

  beforeAll(async () => {
    h = await Harness.start({ template: inject('template'), groups: 3, standbys: false });
    entry = h.cluster.group(2).primary;
    subject = await subjectOf(h, 1);
    await h.db.query('INSERT INTO items VALUES ($1, 0)', [subject.key]);
  });
  beforeEach(async () => {
    controller = await h.startController();
  });
  afterEach(async () => {
    await Promise.all(actors.splice(0).map((actor) => actor.end()));
    await entry.start();
    await h.db.query('SELECT mpp_release(1)');
    await waitUntilSynced(h.db);
    await waitUntilNothingHeld(h);
    await controller.end();
  });
  afterAll(async () => h.stop());

  async function through(server: Server): Promise<Actor> {
    const actor = await Actor.connect(server);
    actors.push(actor);
    return actor;
  }

  async function hold(pause: 'writes' | 'all'): Promise<string> {
    const report = { groupid: 1, node: subject.node, pause, cooldown: '1min', timeout: '5min' };
    const task = await h.request({ ...report, event: 'before_demote' });
    expect(task).toMatchObject({ status: 'holding', reason: null });
    return task.id;
  }

  /** The locks by which the entry node is paused, of any session. */
  async function locks(): Promise<{ pids: number[]; names: string[] }> {
    const all = await entry.withSession(holdLocks);
    const kept = all.filter(
      ({ granted, mode }) => granted && /^(Access)?ExclusiveLock$/.test(mode),
    );
    const names = kept.map(({ relation, mode }) => `${relation ?? 'shard'} ${mode}`).sort();
    return { pids: kept.map(({ pid }) => pid), names };
  }

  /** Terminates the sessions by which the entry node is paused. @returns what they have locked. */
  async function terminateHold(): Promise<string[]> {
    const { pids, names } = await locks();
    expect(names).not.toEqual([]);
    await entry.withSession((db) =>
      db.query('SELECT pg_terminate_backend(unnest($1::integer[]), 5000)', [[...new Set(pids)]]),
    );
    return names;
  }

  /** Waits until the same is locked again. */
  async function paused(before: readonly string[]): Promise<void> {
    await waitFor(
      `${entry.name} to be paused again`,
      async () => {
        const { names } = await locks();
        if (names.join() !== before.join()) throw new Error(JSON.stringify(names));
        return true;
      },
      { timeoutMs: 60_000 },
    );
  }

  async function promote(): Promise<void> {
    const after = await h.request({ event: 'after_promote', groupid: 1, node: subject.next });
    expect(after.status).toBe('done');
    subject = await subjectOf(h, 1);
  }

  it.each([
    { pause: 'writes', statement: UPDATE },
    { pause: 'all', statement: READ },
  ] as const)('is taken again, with $pause', async ({ pause, statement }) => {
    const id = await hold(pause);
    await paused(await terminateHold());
    const sent = await (await through(entry)).sendAndWait(statement, [subject.key]);
    expect(await h.task(id)).toMatchObject({ status: 'holding', reason: null });
    await promote();
    await sent.answer;
  });

  it('is taken again as often as it is lost', async () => {
    const id = await hold('all');
    for (let round = 0; round < 3; round += 1) await paused(await terminateHold());
    const sent = await (await through(entry)).sendAndWait(READ, [subject.key]);
    expect(await h.task(id)).toMatchObject({ status: 'holding', reason: null });
    await promote();
    await sent.answer;
  });

  it('is taken again once a transaction that began meanwhile has ended', async () => {
    const id = await hold('all');
    const waiting = await (await through(entry)).sendAndWait(UPDATE, [subject.key]);
    const before = await terminateHold();
    await waiting.answer;
    await paused(before);
    const sent = await (await through(entry)).sendAndWait(UPDATE, [subject.key]);
    expect((await h.task(id)).status).toBe('holding');
    await promote();
    await sent.answer;
  });

  it('is named in the reason when that node goes down, and the hold stays', async () => {
    const id = await hold('all');
    await entry.stop('immediate');
    await waitFor('the reason to name the node', async () =>
      (await h.task(id)).reason?.includes(entry.address),
    );
    expect((await h.task(id)).status).toBe('holding');
    await entry.start();
    await promote();
  });
});
