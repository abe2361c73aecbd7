import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, inject, it } from 'vitest';
import type { ControllerProcess } from '../kit/controller-process.js';
import { Actor } from '../kit/faults/actor.js';
import { waitUntilNothingHeld } from '../kit/faults/hold-sessions.js';
import { subjectOf, type Subject } from '../kit/faults/subject.js';
import { Harness } from '../kit/harness.js';
import { waitFor, type Server } from '../kit/servers/index.js';

const UPDATE = 'UPDATE items SET v = v + 1 WHERE id = $1';

/** Group 1 is held; another node is slow, or falls silent. */
describe('a hold with a slow node', () => {
  let h: Harness;
  let controller: ControllerProcess;
  let subject: Subject;
  let entry: Server;
  const actors: Actor[] = [];

  beforeAll(async () => {
    h = await Harness.start({ template: inject('template'), standbys: false });
    entry = h.cluster.group(2).primary;
  });
  beforeEach(async () => {
    controller = await h.startController();
    subject = await subjectOf(h, 1);
    await h.db.query('DELETE FROM items WHERE id = $1', [subject.key]);
    await h.db.query('INSERT INTO items VALUES ($1, 0)', [subject.key]);
  });
  afterEach(async () => {
    await entry.thaw();
    await Promise.all(actors.splice(0).map((actor) => actor.end()));
    await h.db.query('SELECT mpp_release(1)');
    await waitUntilNothingHeld(h);
    await controller.end();
  });
  afterAll(async () => h.stop());

  async function through(server: Server): Promise<Actor> {
    const actor = await Actor.connect(server);
    actors.push(actor);
    return actor;
  }

  it.each(['writes', 'all'] as const)(
    'one that falls silent while held does not keep the promotion waiting, under %s',
    async (pause) => {
      const demote = await h.request({
        event: 'before_demote',
        groupid: 1,
        node: subject.node,
        pause,
      });
      expect(demote).toMatchObject({ status: 'holding', reason: null });
      await entry.freeze();
      const promote = await h.request({ event: 'before_promote', groupid: 1, node: subject.next });
      expect(promote.status).toBe('holding');
      const after = await h.request({ event: 'after_promote', groupid: 1, node: subject.next });
      expect(after.status).toBe('done');
      expect((await h.task(demote.id)).status).toBe('done');
    },
  );

  it('one that falls silent while the hold drains is left out before the cooldown', async () => {
    const client = await through(entry);
    await client.begin(UPDATE, [subject.key]);
    const id = await h.report({
      event: 'suspect',
      groupid: 1,
      node: subject.node,
      pause: 'writes',
      timeout: '2min',
      cooldown: '1min',
    });
    await client.isInTheWay();
    await entry.freeze();
    await expectLeftOut(id);
    await entry.thaw();
    // Nobody has ended its session.
    await client.query('COMMIT');
  });

  it('one that takes connections and says nothing is left out', async () => {
    const client = await through(h.cluster.coordinator);
    await entry.freeze();
    const demote = { event: 'before_demote', groupid: 1, node: subject.node } as const;
    const id = await h.report({ ...demote, timeout: '2min', cooldown: '1min' });
    await waitFor('the task to be claimed', async () => (await h.task(id)).status === 'claimed');
    // Until it is known that the node says nothing, nobody waits elsewhere.
    await client.query(UPDATE, [subject.key]);
    await expectLeftOut(id);
  });

  async function expectLeftOut(id: string): Promise<void> {
    const task = await h.acknowledged(id);
    expect(task.status).toBe('holding');
    expect(task.attempt).toBe(1);
    expect(task.reason).toContain(`what enters through ${entry.address} does not wait: `);
  }

  it('lasts until its deadline, which is counted from when the last node had its locks', async () => {
    const client = await through(entry);
    await client.begin(UPDATE, [subject.key]);
    const id = await h.report({
      event: 'before_demote',
      groupid: 1,
      node: subject.node,
      pause: 'writes',
      timeout: '4s',
      cooldown: '20s',
    });
    await client.isInTheWay();
    await waitFor('the drain to have lasted for half of the timeout', async () => {
      const { rowCount } = await h.db.query(
        "SELECT FROM mpp_tasks WHERE id = $1 AND clock_timestamp() > created_at + '2s'",
        [id],
      );
      return rowCount === 1;
    });
    await client.query('COMMIT');
    expect((await h.acknowledged(id)).status).toBe('holding');
    expect((await h.ended(id)).status).toBe('rolled_back');
    expect((await h.task(id)).attempt).toBe(1);
    expect(await h.history(id)).toEqual(['pending', 'claimed', 'holding', 'rolled_back']);
  });
});
