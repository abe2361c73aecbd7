import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, inject, it } from 'vitest';
import type { ControllerProcess } from '../kit/controller-process.js';
import { Barrier } from '../kit/faults/barrier.js';
import { subjectOf, type Subject } from '../kit/faults/subject.js';
import { Harness } from '../kit/harness.js';
import { waitFor } from '../kit/servers/index.js';
import { startTraffic } from '../kit/traffic/traffic.js';

describe('a hold ends at its deadline', () => {
  let h: Harness;
  let controller: ControllerProcess;
  let subject: Subject;

  beforeAll(async () => {
    h = await Harness.start({ template: inject('template'), standbys: false });
  });
  afterAll(async () => h.stop());
  beforeEach(async () => {
    controller = await h.startController();
    subject = await subjectOf(h, 1);
  });
  afterEach(async () => {
    await Barrier.liftAll(h);
    await controller.end('SIGKILL');
  });

  it('before_demote, then nothing: rolled back with an empty queue, and traffic goes on', async () => {
    const traffic = startTraffic({
      connection: h.cluster.coordinator.connection,
      clients: { writers: 3, readers: 0 },
      thinkMs: 2,
    });
    await traffic.waitForProgress(20);
    const task = await h.request({
      event: 'before_demote',
      groupid: 1,
      node: subject.node,
      timeout: '1s',
    });
    expect(task.status).toBe('holding');
    await waitFor('all writers to wait', () => Promise.resolve(traffic.blocked === 3));
    expect(await h.ended(task.id)).toMatchObject({
      status: 'rolled_back',
      reason: 'its deadline passed before after_promote was reported',
    });
    expect(await lateness(task.id)).toBeLessThan(900);
    await traffic.waitForProgress(20);
    expect((await traffic.stop()).failures).toEqual([]);
    expect(await h.history(task.id)).toEqual(['pending', 'claimed', 'holding', 'rolled_back']);
    await subject.settled();
  });

  it('all tasks of the hold end with it, at the latest of their deadlines', async () => {
    const demote = await h.request({
      event: 'before_demote',
      groupid: 1,
      node: subject.node,
      timeout: '4s',
    });
    expect(demote.status).toBe('holding');
    const promote = await h.request({
      event: 'before_promote',
      groupid: 1,
      node: subject.next,
      timeout: '6s',
    });
    expect(promote.status).toBe('holding');
    expect((await h.ended(promote.id)).status).toBe('rolled_back');
    expect((await h.ended(demote.id)).status).toBe('rolled_back');
    expect(await lateness(demote.id)).toBeGreaterThan(500);
    expect(await lateness(promote.id)).toBeLessThan(900);
    await subject.settled();
  });

  it('an after_promote that runs at the deadline is carried out', async () => {
    const demote = await h.request({
      event: 'before_demote',
      groupid: 1,
      node: subject.node,
      timeout: '5s',
    });
    const barrier = await Barrier.beforeCommit(h, demote.id);
    const after = await h.report({ event: 'after_promote', groupid: 1, node: subject.next });
    await barrier.reached();
    await waitFor('the deadline to pass', async () => (await lateness(demote.id)) > 0);
    await barrier.lift();
    expect((await h.ended(after)).status).toBe('done');
    expect((await h.task(demote.id)).status).toBe('done');
    await subject.settled();
  });

  it('the controller hangs: the server ends the hold, the task is rolled back when it looks', async () => {
    const task = await h.request({
      event: 'before_demote',
      groupid: 1,
      node: subject.node,
      timeout: '1500ms',
    });
    // Once it is acknowledged its bounds are counted anew.
    await waitFor('the hold to have its bounds', () =>
      Promise.resolve(controller.log.some(({ msg }) => msg === 'hold opened')),
    );
    controller.signal('SIGSTOP');
    await waitFor('the server to end the hold', async () => (await h.holds()) === 0);
    // The controller, were it well, comes first; the server is a second behind.
    expect(await lateness(task.id)).toBeGreaterThan(500);
    expect(await lateness(task.id)).toBeLessThan(2_500);
    expect((await h.task(task.id)).status).toBe('holding');
    controller.signal('SIGCONT');
    expect((await h.ended(task.id)).status).toBe('rolled_back');
    await subject.settled();
  });

  it('the controller hangs while the hold waits for locks: the server ends that, too', async () => {
    const barrier = await Barrier.beforeHold(h, subject.key);
    const task = await h.report({
      event: 'before_demote',
      groupid: 1,
      node: subject.node,
      timeout: '1s',
      cooldown: '30s',
    });
    await barrier.reached();
    controller.signal('SIGSTOP');
    await waitFor('the server to end the transaction', async () => {
      // An aborted transaction has given its locks back.
      const { rowCount } = await h.db.query(`
        SELECT
        FROM pg_stat_activity
        WHERE application_name LIKE 'mpp-controller group%'
          AND state IN ('active', 'idle in transaction')`);
      return rowCount === 0;
    });
    controller.signal('SIGCONT');
    expect(['failed', 'expired']).toContain((await h.ended(task)).status);
    await barrier.lift();
    await subject.settled();
  });

  it('the controller never comes back: the next one writes it down', async () => {
    const task = await h.request({
      event: 'before_demote',
      groupid: 1,
      node: subject.node,
      timeout: '1500ms',
    });
    await controller.end('SIGKILL');
    await waitFor('the deadline to pass', async () => (await lateness(task.id)) > 0);
    controller = await h.startController();
    expect(await h.ended(task.id)).toMatchObject({ status: 'rolled_back' });
    await subject.settled();
  });

  it('a report that was not taken in time never runs late', async () => {
    await controller.end('SIGTERM');
    const task = await h.report({
      event: 'before_demote',
      groupid: 1,
      node: subject.node,
      timeout: '100ms',
    });
    await waitFor('its timeout to pass', async () => (await age(task)) > 100);
    controller = await h.startController();
    expect(await h.ended(task)).toMatchObject({ status: 'expired' });
    expect(await h.history(task)).toEqual(['pending', 'expired']);
  });

  it('a report that is not taken is answered after its timeout, however rarely the queue is looked at', async () => {
    await controller.end();
    controller = await h.startController({ MPP_POLL: '1h', MPP_MAX_HOLDS: '1' });
    const other = await subjectOf(h, 2);
    await h.request({ event: 'before_demote', groupid: 1, node: subject.node, timeout: '1min' });
    const late = {
      event: 'before_demote',
      groupid: 2,
      node: other.node,
      timeout: '300ms',
    } as const;
    expect(await h.ended(await h.report(late))).toMatchObject({ status: 'expired' });
    await h.request({ event: 'after_promote', groupid: 1, node: subject.node });
    await subject.settled();
  });

  it('notifications that never cease do not keep a report from expiring', async () => {
    const blocker = await Barrier.beforeHold(h, subject.key);
    const first = await h.report({
      event: 'before_demote',
      groupid: 1,
      node: subject.node,
      timeout: '10s',
      cooldown: '30s',
    });
    await blocker.reached();
    const late = await h.report({
      event: 'suspect',
      groupid: 1,
      node: subject.node,
      timeout: '300ms',
    });
    const noise = setInterval(() => void h.db.query("NOTIFY mpp_tasks, 'x'"), 20);
    try {
      expect((await h.ended(late)).status).toBe('expired');
    } finally {
      clearInterval(noise);
      await blocker.lift();
    }
    expect((await h.acknowledged(first)).status).toBe('holding');
    await h.db.query('SELECT mpp_release(1)');
    await subject.settled();
  });

  /** Milliseconds from the deadline of a task to its end, or to now. */
  async function lateness(id: string): Promise<number> {
    const { rows } = await h.db.query<{ ms: number }>(
      `SELECT (extract(epoch FROM coalesce(finished_at, clock_timestamp()) - deadline) * 1000)::float8 AS ms
       FROM mpp_tasks WHERE id = $1`,
      [id],
    );
    return rows[0]?.ms ?? NaN;
  }

  async function age(id: string): Promise<number> {
    const { rows } = await h.db.query<{ ms: number }>(
      'SELECT (extract(epoch FROM clock_timestamp() - created_at) * 1000)::float8 AS ms FROM mpp_tasks WHERE id = $1',
      [id],
    );
    return rows[0]?.ms ?? NaN;
  }
});
