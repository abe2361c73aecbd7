import { afterAll, afterEach, beforeAll, describe, expect, inject, it } from 'vitest';
import { Barrier } from '../kit/faults/barrier.js';
import { expectWritable } from '../kit/faults/settled.js';
import { primaryAddress, subjectOf } from '../kit/faults/subject.js';
import { Harness } from '../kit/harness.js';

describe('duplicate, overridden, stale and unknown reports', () => {
  let h: Harness;

  beforeAll(async () => {
    h = await Harness.start({ template: inject('template'), standbys: false });
    await h.startController();
  });
  afterAll(async () => h.stop());
  afterEach(async () => Barrier.liftAll(h));

  it('a duplicate before_demote is holding only while the traffic waits', async () => {
    const subject = await subjectOf(h, 1);
    const { node } = subject;
    const first = await h.request({ event: 'before_demote', groupid: 1, node });
    const second = await h.request({ event: 'before_demote', groupid: 1, node });
    expect([first.status, second.status]).toEqual(['holding', 'holding']);
    expect(await h.holds()).toBe(1);
    await expect(expectWritable(h, subject.key)).rejects.toMatchObject({ code: '57014' });
    await h.request({ event: 'after_promote', groupid: 1, node });
    expect((await h.task(first.id)).status).toBe('done');
    expect((await h.task(second.id)).status).toBe('done');
    await subject.settled();
  });

  it('a duplicate before_demote is not answered before the traffic waits', async () => {
    const subject = await subjectOf(h, 1);
    const { node } = subject;
    const barrier = await Barrier.beforeHold(h, subject.key);
    const report = { event: 'before_demote', groupid: 1, node, cooldown: '20s' } as const;
    const first = await h.report(report);
    await barrier.reached();
    const second = await h.report(report);
    expect((await h.task(first)).status).toBe('claimed');
    expect((await h.task(second)).status).toBe('pending');
    const answer = waiter(second);
    await barrier.lift();
    expect((await h.acknowledged(first)).status).toBe('holding');
    expect(await answer).toBe('holding');
    await h.db.query('SELECT mpp_release(1)');
    await subject.settled();
  });

  it('an overridden report is superseded, and its waiter is answered', async () => {
    const subject = await subjectOf(h, 1);
    const { node, next } = subject;
    const barrier = await Barrier.beforeClaim(h);
    const first = await h.report({ event: 'before_demote', groupid: 1, node });
    await barrier.reached();
    const answer = waiter(first);
    const second = await h.report({ event: 'after_promote', groupid: 1, node: next });
    expect(await answer).toBe('superseded');
    await barrier.lift();
    expect((await h.ended(second)).status).toBe('done');
    expect(await primaryAddress(h, 1)).toEqual(next);
    await subject.settled();
  });

  it('a stale before_demote is discarded, and nothing waits', async () => {
    const subject = await subjectOf(h, 1);
    const stale = { ...subject.node, host: 'was-primary-once' };
    const task = await h.request({ event: 'before_demote', groupid: 1, node: stale });
    expect(task).toMatchObject({ status: 'discarded' });
    expect(task.reason).toContain('is not the primary of group 1');
    await subject.settled();
  });

  it('a stale before_demote during a hold leaves the hold alone', async () => {
    const subject = await subjectOf(h, 1);
    const { node, next } = subject;
    const hold = await h.request({ event: 'before_demote', groupid: 1, node });
    const stale = { ...node, host: 'was-primary-once' };
    const task = await h.request({ event: 'before_demote', groupid: 1, node: stale });
    expect(task.status).toBe('discarded');
    expect((await h.task(hold.id)).status).toBe('holding');
    await h.request({ event: 'after_promote', groupid: 1, node: next });
    expect((await h.task(hold.id)).status).toBe('done');
    await subject.settled();
  });

  it('what pg_dist_node says already is done without a write', async () => {
    const subject = await subjectOf(h, 1);
    const { node } = subject;
    for (const event of ['before_promote', 'after_promote'] as const) {
      const task = await h.request({ event, groupid: 1, node });
      expect(task).toMatchObject({ status: 'done' });
      expect(task.reason).toContain('already');
    }
    await subject.settled();
  });

  it('a changed mind: the target of the last before_promote, then of after_promote', async () => {
    const subject = await subjectOf(h, 2);
    const { node, next } = subject;
    const wrong = { ...node, host: 'chosen-first' };
    await h.request({ event: 'before_demote', groupid: 2, node });
    await h.request({ event: 'before_promote', groupid: 2, node: wrong });
    await h.request({ event: 'before_promote', groupid: 2, node: next });
    expect((await h.request({ event: 'after_promote', groupid: 2, node: next })).status).toBe(
      'done',
    );
    expect(await primaryAddress(h, 2)).toEqual(next);
    await subject.settled();
  });

  it('groups and nodes that are not known', async () => {
    const subject = await subjectOf(h, 1);
    const nobody = { host: 'nobody', port: 5432 };
    for (const event of ['before_demote', 'before_promote', 'suspect'] as const) {
      const task = await h.request({ event, groupid: 99, node: nobody });
      expect(task.status).toBe('discarded');
    }
    const other = await primaryAddress(h, 2);
    const task = await h.request({ event: 'after_promote', groupid: 1, node: other });
    expect(task.status).toBe('failed');
    expect(task.reason).toContain('belongs to group 2');
    await subject.settled();
  });

  it('an unknown event is refused where it enters, and leaves nothing', async () => {
    const subject = await subjectOf(h, 1);
    const { host, port } = subject.node;
    const count = 'SELECT count(*) FROM mpp_tasks';
    const before = (await h.db.query(count)).rows;
    for (const statement of [
      "INSERT INTO mpp_tasks (event, groupid, nodename, nodeport) VALUES ('demoted', 1, $1, $2)",
      "SELECT mpp_submit('demoted', 1, $1, $2)",
      "CALL mpp_request('demoted', 1, $1, $2)",
    ]) {
      await expect(h.db.query(statement, [host, port])).rejects.toMatchObject({ code: '22023' });
    }
    expect((await h.db.query(count)).rows).toEqual(before);
    await subject.settled();
  });

  /** What CALL mpp_wait answers, in a session of its own. */
  async function waiter(id: string): Promise<string | undefined> {
    return h.cluster.coordinator.withSession(async (session) => {
      const { rows } = await session.query<{ status: string }>("CALL mpp_wait($1, '20s')", [id]);
      return rows[0]?.status;
    });
  }
});
