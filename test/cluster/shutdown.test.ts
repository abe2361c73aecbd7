import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, inject, it } from 'vitest';
import type { ControllerProcess } from '../kit/controller-process.js';
import { Barrier } from '../kit/faults/barrier.js';
import { FaultProxy } from '../kit/faults/proxy.js';
import { waitUntilNoSession } from '../kit/faults/sessions.js';
import { primaryAddress, subjectOf, type Subject } from '../kit/faults/subject.js';
import { Harness } from '../kit/harness.js';
import { waitFor } from '../kit/servers/index.js';

describe('SIGTERM', () => {
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

  it('idle: nothing is left', async () => {
    expect(await controller.end('SIGTERM')).toBe(0);
    await expectNothingLeft();
  });

  it('while a heartbeat waits for a lock: nothing is left, and it does not register again', async () => {
    const locker = await h.cluster.coordinator.connect();
    await locker.query('BEGIN; LOCK TABLE mpp_controllers');
    await waitFor('the heartbeat to wait for the table', async () => {
      const { rowCount } = await h.db.query(
        "SELECT FROM pg_stat_activity WHERE application_name = 'mpp-controller control' AND wait_event_type = 'Lock'",
      );
      return rowCount === 1;
    });
    const ended = controller.end('SIGTERM');
    await waitFor('the controller to have ended its work', async () => {
      const { rowCount } = await h.db.query(
        "SELECT FROM pg_stat_activity WHERE application_name = 'mpp-controller listen'",
      );
      return rowCount === 0;
    });
    await locker.end();
    expect(await ended).toBe(0);
    await expectNothingLeft();
  });

  it.each(['SIGTERM', 'SIGINT'] as const)(
    'with a hold, by %s: rolled back and written down',
    async (signal) => {
      const demote = await h.request({ event: 'before_demote', groupid: 1, node: subject.node });
      const promote = await h.request({ event: 'before_promote', groupid: 1, node: subject.next });
      expect(await controller.end(signal)).toBe(0);
      for (const { id } of [demote, promote]) {
        expect(await h.task(id)).toMatchObject({
          status: 'rolled_back',
          reason: 'the controller was stopped',
        });
      }
      await expectNothingLeft();
      expect(await primaryAddress(h, 1)).toEqual(subject.node);
    },
  );

  it('while a hold waits for locks: rolled back and written down, without waiting for them', async () => {
    const barrier = await Barrier.beforeHold(h, subject.key);
    const demote = await h.report({
      event: 'before_demote',
      groupid: 1,
      node: subject.node,
      cooldown: '20s',
    });
    await barrier.reached();
    expect(await controller.end('SIGTERM')).toBe(0);
    expect(await h.task(demote)).toMatchObject({ status: 'rolled_back' });
    await barrier.lift();
    await expectNothingLeft();
  });

  it('during after_promote: it is given a moment to commit', async () => {
    const barrier = await Barrier.beforeUpdate(h);
    const after = await h.report({
      event: 'after_promote',
      groupid: 1,
      node: subject.next,
      cooldown: '20s',
    });
    await barrier.reached();
    const ended = controller.end('SIGTERM');
    await controller.logged('that it stops', ({ msg }) => msg.startsWith('stopping'));
    await barrier.lift();
    expect(await ended).toBe(0);
    expect((await h.task(after)).status).toBe('done');
    await expectNothingLeft();
    expect(await primaryAddress(h, 1)).toEqual(subject.next);
  });

  it('during an after_promote that cannot commit: it goes back to the queue for the next', async () => {
    const barrier = await Barrier.beforeUpdate(h);
    const after = await h.report({
      event: 'after_promote',
      groupid: 1,
      node: subject.next,
      cooldown: '20s',
    });
    await barrier.reached();
    expect(await controller.end('SIGTERM')).toBe(0);
    expect(await h.task(after)).toMatchObject({ status: 'pending' });
    await barrier.lift();
    expect(await primaryAddress(h, 1)).toEqual(subject.node);
    controller = await h.startController();
    expect((await h.ended(after)).status).toBe('done');
    await subject.settled();
  });

  it('a second one ends it at once, and the server ends what it held', async () => {
    const barrier = await Barrier.beforeUpdate(h);
    const after = await h.report({
      event: 'after_promote',
      groupid: 1,
      node: subject.next,
      cooldown: '20s',
    });
    await barrier.reached();
    const first = controller.end('SIGTERM');
    await controller.logged('that it stops', ({ msg }) => msg.startsWith('stopping'));
    controller.signal('SIGTERM');
    expect(await first).toBe(143);
    await barrier.lift();
    await waitUntilNoSession(h.db);
    expect((await h.task(after)).status).toBe('claimed');
    controller = await h.startController();
    expect((await h.ended(after)).status).toBe('done');
    await subject.settled();
  });

  it('is not needed when the reader of the log has gone: a hold is rolled back and written down', async () => {
    const demote = await h.request({ event: 'before_demote', groupid: 1, node: subject.node });
    controller.closeLog();
    // It finds out with the next line.
    const promote = await h.report({ event: 'before_promote', groupid: 1, node: subject.next });
    await waitFor('the controller to end', () => Promise.resolve(controller.exitCode !== null));
    expect(controller.exitCode).toBe(1);
    expect(await h.task(demote.id)).toMatchObject({
      status: 'rolled_back',
      reason: 'the controller was stopped',
    });
    expect(['pending', 'rolled_back']).toContain((await h.task(promote)).status);
    // No controller is left that would end it at its timeout.
    await h.db.query("SELECT mpp_cancel(id) FROM mpp_tasks WHERE id = $1 AND status = 'pending'", [
      promote,
    ]);
    await expectNothingLeft(
      controller,
      'mpp-controller: stopped: the reader of the log has gone\n',
    );
  });

  it('of a standby: it goes, and the active one goes on', async () => {
    const standby = h.spawnController();
    await standby.logged('that it stands by', ({ msg }) => msg.includes('stands by'));
    expect(await standby.end('SIGTERM')).toBe(0);
    await waitFor('its row to be gone', async () => !(await isPresent(standby)));
    const demote = await h.request({ event: 'before_demote', groupid: 1, node: subject.node });
    expect(demote.status).toBe('holding');
    await h.request({ event: 'after_promote', groupid: 1, node: subject.node });
    await subject.settled();
  });

  it('PostgreSQL cannot be reached at the start: it waits for it, and ends on a signal', async () => {
    await controller.end('SIGTERM');
    await h.cluster.coordinator.stop();
    controller = h.spawnController();
    await controller.logged('that it cannot connect', ({ msg }) =>
      msg.startsWith('cannot connect'),
    );
    expect(await controller.end('SIGTERM')).toBe(0);
    const patient = h.spawnController();
    await patient.logged('that it cannot connect', ({ msg }) => msg.startsWith('cannot connect'));
    await h.cluster.coordinator.start();
    await h.reconnect();
    await patient.active();
    expect(await patient.end('SIGTERM')).toBe(0);
    await expectNothingLeft(patient);
  });

  it('PostgreSQL has gone while it held a group: it ends all the same', async () => {
    const demote = await h.request({ event: 'before_demote', groupid: 1, node: subject.node });
    await h.cluster.coordinator.stop('immediate');
    expect(await controller.end('SIGTERM')).toBe(0);
    await h.cluster.coordinator.start();
    await h.reconnect();
    expect((await h.task(demote.id)).status).toBe('holding');
    controller = await h.startController();
    // Its status says holding until the sweep finds that nobody does.
    await waitFor('the hold to be taken up again', async () => (await h.holds()) === 1);
    await h.db.query('SELECT mpp_release(1)');
    await subject.settled();
  });

  it('the network swallows everything: it ends all the same, and does not say that all is well', async () => {
    await controller.end('SIGTERM');
    const proxy = await FaultProxy.start(h.cluster.coordinator);
    try {
      controller = await h.startController({
        DATABASE_URL: `postgres://postgres@127.0.0.1:${proxy.port}/postgres`,
      });
      const demote = await h.request({ event: 'before_demote', groupid: 1, node: subject.node });
      expect(demote.status).toBe('holding');
      proxy.swallowAll();
      expect(await controller.end('SIGTERM')).toBe(1);
    } finally {
      await proxy.stop();
    }
    controller = await h.startController();
    await h.db.query('SELECT mpp_release(1)');
    await subject.settled();
  });

  async function expectNothingLeft(ended = controller, stderr = ''): Promise<void> {
    await waitUntilNoSession(h.db);
    expect(await isPresent(ended)).toBe(false);
    expect(ended.stderr).toBe(stderr);
    await subject.settled();
  }

  async function isPresent({ pid }: ControllerProcess): Promise<boolean> {
    const { rowCount } = await h.db.query('SELECT FROM mpp_controllers WHERE pid = $1', [pid]);
    return rowCount !== 0;
  }
});
