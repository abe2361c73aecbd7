import type { Client } from 'pg';
import { afterAll, afterEach, beforeAll, describe, expect, inject, it } from 'vitest';
import type { ControllerProcess } from '../kit/controller-process.js';
import { Barrier } from '../kit/faults/barrier.js';
import { primaryAddress, subjectOf, type Subject } from '../kit/faults/subject.js';
import { Harness, type ReportInput } from '../kit/harness.js';
import { waitFor } from '../kit/servers/index.js';

const UPDATE_NODE = 'SELECT citus_update_node($1, $2, $3, $4, $5)';

describe("an operator's own hand", () => {
  let h: Harness;
  let controller: ControllerProcess;
  let operator: Client;

  beforeAll(async () => {
    h = await Harness.start({ template: inject('template'), secondaries: true });
    // What an operator does to the catalog is the subject here, not whether a node is what is reported.
    controller = await h.startController({ MPP_VERIFY: 'off' });
    operator = await h.cluster.coordinator.connect('operator');
  });
  afterAll(async () => {
    await operator.end();
    await h.stop();
  });

  afterEach(async () => Barrier.liftAll(h));

  it('citus_update_node without force waits for the hold, then has its way', async () => {
    const subject = await subjectOf(h, 1);
    await request('before_demote', subject, subject.node);
    const update = operatorMoves(subject, 'operators-choice', false);
    await waitUntilOperatorWaits();
    expect((await request('after_promote', subject, subject.next)).status).toBe('done');
    await update;
    expect((await primaryAddress(h, 1)).host).toBe('operators-choice');
    await restore(subject);
  });

  it('citus_update_node with force ends the hold: the row is as the operator left it', async () => {
    const subject = await subjectOf(h, 1);
    const task = await request('before_demote', subject, subject.node);
    await operatorMoves(subject, 'operators-choice', true);
    expect(await h.ended(task.id)).toMatchObject({ status: 'discarded' });
    expect((await primaryAddress(h, 1)).host).toBe('operators-choice');
    await restore(subject);
  });

  it("after_promote waits for an operator's open change, and goes by what it left", async () => {
    const subject = await subjectOf(h, 1);
    const standby = h.cluster.group(1).standby;
    await operator.query('BEGIN');
    await operatorMoves(subject, 'operators-choice', false);
    const after = await h.report({
      event: 'after_promote',
      groupid: 1,
      node: standby,
      cooldown: '20s',
    });
    await waitUntilOperatorIsWaitedFor();
    await operator.query('COMMIT');
    expect((await h.ended(after)).status).toBe('done');
    // The swap gives the secondary's row the address that the primary's had at that moment.
    expect(await h.nodes(1)).toEqual([
      expect.objectContaining({ role: 'primary', node: standby.address }),
      expect.objectContaining({ role: 'secondary', node: `operators-choice:${subject.node.port}` }),
    ]);
    expect((await request('after_promote', subject, subject.node)).status).toBe('done');
    await h.db.query(UPDATE_NODE, [await secondaryId(), standby.host, standby.port, false, 0]);
  });

  it("after_promote and an operator's change that is rolled back: the report alone counts", async () => {
    const subject = await subjectOf(h, 1);
    await operator.query('BEGIN');
    await operatorMoves(subject, 'operators-choice', false);
    const after = await h.report({
      event: 'after_promote',
      groupid: 1,
      node: subject.next,
      cooldown: '20s',
    });
    await waitUntilOperatorIsWaitedFor();
    await operator.query('ROLLBACK');
    expect((await h.ended(after)).status).toBe('done');
    expect(await primaryAddress(h, 1)).toEqual(subject.next);
    await subject.settled();
  });

  it('mpp_release ends a hold: its tasks are rolled back, the traffic goes on', async () => {
    const subject = await subjectOf(h, 2);
    const demote = await request('before_demote', subject, subject.node);
    const promote = await request('before_promote', subject, subject.next);
    expect(await released(2)).toBe(true);
    expect(await h.ended(demote.id)).toMatchObject({ status: 'rolled_back' });
    expect((await h.ended(promote.id)).reason).toBe('released by postgres');
    await subject.settled();
    const line = await controller.logged('who ended the hold', ({ groupid, msg }) => {
      return groupid === 2 && /^hold (lost|ended)/.test(msg);
    });
    expect(line).toMatchObject({
      level: 'info',
      msg: 'hold ended by an operator',
      reason: 'released by postgres',
    });
    expect(await released(2)).toBe(false);
    expect(await primaryAddress(h, 2)).toEqual(subject.node);
  });

  it('VACUUM FULL that waits for a hold does not keep the hold from being committed', async () => {
    const subject = await subjectOf(h, 2);
    expect(await request('before_demote', subject, subject.node)).toMatchObject({
      status: 'holding',
    });
    const tidy = await h.cluster.coordinator.connect('tidy');
    const tidied = tidy.query('VACUUM FULL mpp_groups');
    try {
      await waitFor('VACUUM to wait for the hold', async () => {
        const { rowCount } = await h.db.query(
          "SELECT FROM pg_locks WHERE NOT granted AND relation = 'mpp_groups'::regclass",
        );
        return rowCount === 1;
      });
      // As long as the hold: the report must not have to wait for its end.
      const after = await request('after_promote', subject, subject.next);
      expect(after).toMatchObject({ status: 'done', attempt: 1 });
      await tidied;
    } finally {
      await tidy.end();
    }
    expect(await primaryAddress(h, 2)).toEqual(subject.next);
    await subject.settled();
  });

  it('mpp_release while the hold waits for its locks', async () => {
    const subject = await subjectOf(h, 2);
    const barrier = await Barrier.beforeHold(h, subject.key);
    const task = await h.report({
      event: 'before_demote',
      groupid: 2,
      node: subject.node,
      cooldown: '20s',
    });
    await barrier.reached();
    expect(await released(2)).toBe(true);
    expect(await h.ended(task)).toMatchObject({ status: 'rolled_back' });
    await barrier.lift();
    await subject.settled();
  });

  it('mpp_release before after_promote is committed: the report itself is carried out', async () => {
    const subject = await subjectOf(h, 2);
    const demote = await request('before_demote', subject, subject.node);
    const barrier = await Barrier.beforeUpdate(h);
    const after = await h.report({
      event: 'after_promote',
      groupid: 2,
      node: subject.next,
      cooldown: '20s',
    });
    await barrier.reached();
    expect(await released(2)).toBe(true);
    await barrier.lift();
    expect(await h.ended(demote.id)).toMatchObject({ status: 'rolled_back' });
    expect((await h.ended(after)).status).toBe('done');
    expect(await primaryAddress(h, 2)).toEqual(subject.next);
    await subject.settled();
  });

  it('an UPDATE that ends the task of a hold ends the hold', async () => {
    const subject = await subjectOf(h, 2);
    const demote = await request('before_demote', subject, subject.node);
    await h.db.query("UPDATE mpp_tasks SET status = 'cancelled' WHERE id = $1", [demote.id]);
    expect((await h.task(demote.id)).status).toBe('cancelled');
    await subject.settled();
    expect(await primaryAddress(h, 2)).toEqual(subject.node);
  });

  it('an UPDATE that ends an after_promote while it runs undoes its change', async () => {
    const subject = await subjectOf(h, 2);
    const barrier = await Barrier.afterClaim(h);
    const after = await h.report({ event: 'after_promote', groupid: 2, node: subject.next });
    await barrier.reached();
    await h.db.query("UPDATE mpp_tasks SET status = 'cancelled' WHERE id = $1", [after]);
    await barrier.lift();
    await subject.settled();
    expect((await h.task(after)).status).toBe('cancelled');
    expect(await primaryAddress(h, 2)).toEqual(subject.node);
  });

  it('mpp_cancel takes a pending task away, and no other', async () => {
    const subject = await subjectOf(h, 2);
    const barrier = await Barrier.beforeClaim(h);
    const pending = await h.report({ event: 'before_demote', groupid: 2, node: subject.node });
    await barrier.reached();
    await h.db.query('SELECT mpp_cancel($1)', [pending]);
    await barrier.lift();
    expect(await h.ended(pending)).toMatchObject({
      status: 'cancelled',
      reason: 'cancelled by postgres',
    });
    expect(await h.history(pending)).toEqual(['pending', 'cancelled']);
    const held = await request('before_demote', subject, subject.node);
    await expect(h.db.query('SELECT mpp_cancel($1)', [held.id])).rejects.toMatchObject({
      code: '55000',
    });
    expect((await h.task(held.id)).status).toBe('holding');
    await released(2);
    await subject.settled();
    await expect(h.db.query('SELECT mpp_cancel($1)', [pending])).rejects.toMatchObject({
      code: '55000',
    });
  });

  async function request(event: ReportInput['event'], { groupid }: Subject, node: Subject['node']) {
    return h.request({ event, groupid, node });
  }

  async function released(groupid: number): Promise<boolean> {
    const { rows } = await h.db.query<{ held: boolean }>('SELECT mpp_release($1) AS held', [
      groupid,
    ]);
    return rows[0]?.held ?? false;
  }

  async function operatorMoves(subject: Subject, host: string, force: boolean): Promise<void> {
    const [primary] = (await h.nodes(subject.groupid)).filter(({ role }) => role === 'primary');
    await operator.query(UPDATE_NODE, [primary?.nodeid, host, subject.node.port, force, 100]);
  }

  async function secondaryId(): Promise<number | undefined> {
    return (await h.nodes(1)).find(({ role }) => role === 'secondary')?.nodeid;
  }

  /** Back to the name that leads to the server. */
  async function restore(subject: Subject): Promise<void> {
    expect((await request('after_promote', subject, subject.node)).status).toBe('done');
  }

  async function waitUntilOperatorWaits(): Promise<void> {
    await waitFor('the operator to wait', async () => {
      const { rowCount } = await h.db.query(
        "SELECT FROM pg_stat_activity WHERE application_name = 'mpp-controller operator' AND wait_event_type = 'Lock'",
      );
      return rowCount === 1;
    });
  }

  async function waitUntilOperatorIsWaitedFor(): Promise<void> {
    await waitFor('the controller to wait for the operator', async () => {
      const { rowCount } = await h.db.query(`
        SELECT FROM pg_stat_activity AS us, pg_stat_activity AS them
        WHERE us.application_name LIKE 'mpp-controller group%'
          AND them.application_name = 'mpp-controller operator'
          AND them.pid = ANY (pg_blocking_pids(us.pid))`);
      return rowCount === 1;
    });
  }
});
