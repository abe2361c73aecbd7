import { afterAll, afterEach, beforeAll, describe, expect, inject, it } from 'vitest';
import { Actor } from '../kit/faults/actor.js';
import { waitUntilNothingHeld } from '../kit/faults/hold-sessions.js';
import { subjectOf } from '../kit/faults/subject.js';
import { Harness } from '../kit/harness.js';
import { keysOfGroup } from '../kit/standin/schema.js';
import { startTraffic } from '../kit/traffic/traffic.js';

const INSERT = 'INSERT INTO items VALUES ($1, 0)';
const UPDATE = 'UPDATE items SET v = v + 1 WHERE id = $1';

/** The primary of a group does not answer, and nobody has decided anything yet. */
describe('suspect', () => {
  let h: Harness;
  const actors: Actor[] = [];

  beforeAll(async () => {
    h = await Harness.start({ template: inject('template'), groups: 2 });
    await h.startController();
  });
  afterEach(async () => {
    await Promise.all(actors.splice(0).map((actor) => actor.end()));
    await h.db.query('SELECT mpp_release(1)');
    await waitUntilNothingHeld(h);
  });
  afterAll(async () => h.stop());

  async function client(): Promise<Actor> {
    const actor = await Actor.connect(h.cluster.coordinator);
    actors.push(actor);
    return actor;
  }

  it('holds at once, after_promote of the same node lets the traffic go on', async () => {
    const subject = await subjectOf(h, 1);
    const { node, key } = subject;
    const before = await h.nodes(1);
    const suspect = await h.request({ event: 'suspect', groupid: 1, node });
    expect(suspect.status).toBe('holding');
    const sent = await (await client()).sendAndWait(INSERT, [key]);
    const after = await h.request({ event: 'after_promote', groupid: 1, node });
    expect(after.status).toBe('done');
    await sent.answer;
    expect(await h.task(suspect.id)).toMatchObject({ status: 'done' });
    expect(await h.nodes(1)).toEqual(before);
    await subject.settled();
  });

  it('ends at its deadline, which is earlier than that of others, and nothing is changed', async () => {
    const subject = await subjectOf(h, 1);
    const { node, key } = subject;
    const { rows } = await h.db.query<{ timeout: string }>(
      "SELECT timeout::text FROM mpp_tasks WHERE event = 'suspect' LIMIT 1",
    );
    expect(rows).toEqual([{ timeout: '00:00:10' }]);
    const suspect = await h.request({ event: 'suspect', groupid: 1, node, timeout: '1s' });
    expect(suspect.status).toBe('holding');
    const sent = await (await client()).sendAndWait(UPDATE, [key]);
    expect((await h.ended(suspect.id)).status).toBe('rolled_back');
    await sent.answer;
    await subject.settled();
  });

  it('of a node that is not the primary changes nothing', async () => {
    const subject = await subjectOf(h, 1);
    const { next } = subject;
    const suspect = await h.request({ event: 'suspect', groupid: 1, node: next });
    expect(suspect.status).toBe('discarded');
    expect(await h.holds()).toBe(0);
    await subject.settled();
  });

  it('of a group that is held is done at once, and takes nothing from the hold', async () => {
    const subject = await subjectOf(h, 1);
    const { node } = subject;
    const hold = await h.request({ event: 'before_demote', groupid: 1, node, timeout: '1min' });
    expect(hold.status).toBe('holding');
    const suspect = await h.request({ event: 'suspect', groupid: 1, node, timeout: '1s' });
    expect(suspect.status).toBe('done');
    expect((await h.task(hold.id)).status).toBe('holding');
    const after = await h.request({ event: 'after_promote', groupid: 1, node });
    expect(after.status).toBe('done');
    await subject.settled();
  });

  it('then before_demote of the same group: the hold goes on, and lasts as long as the later one', async () => {
    const { node, next } = await subjectOf(h, 1);
    const suspect = await h.request({ event: 'suspect', groupid: 1, node, timeout: '1s' });
    expect(suspect.status).toBe('holding');
    const demote = await h.request({ event: 'before_demote', groupid: 1, node, timeout: '1min' });
    expect(demote.status).toBe('holding');
    const { rows } = await h.db.query<{ left: boolean }>(
      "SELECT deadline > clock_timestamp() + interval '30 s' AS left FROM mpp_holds WHERE groupid = 1",
    );
    expect(rows).toEqual([{ left: true }]);
    expect(await h.holds()).toBe(1);
    const after = await h.request({ event: 'after_promote', groupid: 1, node: next });
    expect(after.status).toBe('done');
    const back = await h.request({ event: 'after_promote', groupid: 1, node });
    expect(back.status).toBe('done');
  });

  // The server is gone before anybody says so; who comes then waits, instead of failing until the
  // HA manager has decided.
  it('before before_promote and after_promote: a crash costs what was in flight', async () => {
    const group = h.cluster.group(1);
    const [old, next] = [group.primary, group.standby];
    const own = new Set(await keysOfGroup(h.db, 1, 1_500, 1_000));
    const clients = { writers: 4, readers: 4, transactions: 2 };
    const traffic = startTraffic({
      connection: h.cluster.coordinator.connection,
      clients,
      thinkMs: 5,
      firstId: 1_000,
      accepts: (id) => own.has(id),
    });
    await traffic.waitForProgress(40);
    await old.kill();
    const suspect = await h.request({
      event: 'suspect',
      groupid: 1,
      node: old,
      timeout: '1min',
      pause: 'all',
    });
    expect(suspect.status).toBe('holding');
    const failedBefore = traffic.snapshot().failures.length;
    await group.promoteStandby();
    const promote = await h.request({ event: 'before_promote', groupid: 1, node: next });
    expect(promote.status).toBe('holding');
    const after = await h.request({ event: 'after_promote', groupid: 1, node: next });
    expect(after.status).toBe('done');
    await traffic.waitForProgress(40);
    const report = await traffic.stop();
    // Who was let through to the dead server while the hold was opened fails; who waited does not.
    const all = clients.writers + clients.readers + clients.transactions;
    expect(report.failures.length - failedBefore).toBeLessThanOrEqual(all);
    expect(report.deadlocks).toBe(0);
    expect((await h.task(suspect.id)).status).toBe('done');
    expect((await h.task(promote.id)).status).toBe('done');
    const [row] = await h.nodes(1);
    expect(row?.node).toBe(next.address);
  });
});
