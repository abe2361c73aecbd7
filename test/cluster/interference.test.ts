import type { Client } from 'pg';
import { afterAll, afterEach, beforeAll, describe, expect, inject, it } from 'vitest';
import type { ControllerProcess } from '../kit/controller-process.js';
import { primaryAddress, subjectOf } from '../kit/faults/subject.js';
import { backendPid, waitUntilBlocked, waitUntilSynced } from '../kit/standin/observe.js';
import { waitFor } from '../kit/servers/index.js';
import { Harness } from '../kit/harness.js';

/** What an operator does to the rows between a controller's decision and its commit. */
describe('another session changes the group while a task of it runs', () => {
  let h: Harness;
  let controller: ControllerProcess;
  let operator: Client;

  beforeAll(async () => {
    h = await Harness.start({ template: inject('template'), groups: 4 });
    controller = await h.startController({ MPP_VERIFY: 'off' });
    operator = await h.cluster.coordinator.connect();
  });
  afterEach(async () => {
    await operator.query('ROLLBACK').catch(() => undefined);
    controller.signal('SIGCONT');
  });
  afterAll(async () => {
    await operator.end();
    await h.stop();
  });

  /** Waits until a session of the controller waits for the operator's. */
  async function controllerWaits(): Promise<void> {
    const blocker = await backendPid(operator);
    await waitFor('the controller to wait for the operator', async () => {
      const { rowCount } = await h.db.query(
        `SELECT FROM pg_stat_activity
         WHERE application_name LIKE 'mpp-controller group%' AND $1 = ANY (pg_blocking_pids(pid))`,
        [blocker],
      );
      return rowCount !== 0;
    });
  }

  it.each([
    { title: 'under a hold', groupid: 1, hold: true },
    { title: 'without one', groupid: 2, hold: false },
  ])('the new primary is registered as a secondary meanwhile, $title', async (row) => {
    const { groupid, hold } = row;
    const { primary: node, standby } = h.cluster.group(groupid);
    const demote = hold ? await h.request({ event: 'before_demote', groupid, node }) : undefined;
    await waitUntilSynced(h.db);
    await operator.query('BEGIN');
    await operator.query("SELECT citus_add_node($1, $2, $3, 'secondary')", [
      standby.host,
      standby.port,
      groupid,
    ]);
    const id = await h.report({ event: 'after_promote', groupid, node: standby, cooldown: '30s' });
    await controllerWaits();
    await operator.query('COMMIT');
    expect((await h.ended(id)).status).toBe('done');
    expect(await h.nodes(groupid)).toEqual([
      expect.objectContaining({ node: standby.address, role: 'primary' }),
      expect.objectContaining({ node: node.address, role: 'secondary' }),
    ]);
    if (demote) expect((await h.task(demote.id)).status).toBe('done');
    const { rows } = await h.db.query<{ changed: boolean }>(
      'SELECT node_after IS NOT NULL AS changed FROM mpp_task_log WHERE task_id = $1 AND status = $2',
      [id, 'done'],
    );
    expect(rows).toEqual([{ changed: true }]);
    expect(await h.holds()).toBe(0);
    // A node in recovery takes no metadata, and the next test wants all in sync.
    await h.cluster.group(groupid).promoteStandby();
  });

  it('a stale report leaves the deadline of a hold alone, and what the server makes of it', async () => {
    const subject = await subjectOf(h, 3);
    const { node, next } = subject;
    const held = await h.request({ event: 'before_demote', groupid: 3, node, timeout: '2s' });
    expect(held.status).toBe('holding');
    const stale = await h.request({
      event: 'before_demote',
      groupid: 3,
      node: next,
      timeout: '1h',
    });
    expect(stale.status).toBe('discarded');
    controller.signal('SIGSTOP');
    await waitFor(
      'the server to end the hold',
      async () => (await h.holds()) === 0,
      // Two seconds, and one of grace; far from an hour on the slowest machine.
      { timeoutMs: 15_000 },
    );
    controller.signal('SIGCONT');
    expect((await h.ended(held.id)).status).toBe('rolled_back');
    await subject.settled();
  });

  it('a report that asks for a pause gets one, though the hold was opened without', async () => {
    const subject = await subjectOf(h, 3);
    const { node, key } = subject;
    const first = await h.request({ event: 'before_demote', groupid: 3, node, pause: 'none' });
    expect(first.status).toBe('holding');
    await h.db.query('INSERT INTO notes VALUES ($1, 0)', [key]);
    const second = await h.request({ event: 'before_demote', groupid: 3, node, pause: 'writes' });
    expect(second.status).toBe('holding');
    const writer = await h.cluster.coordinator.connect();
    const holder = await h.db.query<{ pid: number }>('SELECT pid FROM mpp_holds WHERE groupid = 3');
    const writerPid = await backendPid(writer);
    const writing = writer.query('UPDATE notes SET v = v + 1 WHERE id = $1', [key]);
    await waitUntilBlocked(h.db, writerPid, holder.rows[0]?.pid ?? 0);
    await h.db.query('SELECT mpp_release(3)');
    await writing;
    await writer.query('DELETE FROM notes WHERE id = $1', [key]);
    await writer.end();
    await subject.settled();
  });

  it('after_promote of the old primary is no "nothing to do" when the row was moved meanwhile', async () => {
    const { node, next } = await subjectOf(h, 3);
    const held = await h.request({ event: 'before_demote', groupid: 3, node, pause: 'none' });
    expect(held.status).toBe('holding');
    const [row] = await h.nodes(3);
    await operator.query('SELECT citus_update_node($1, $2, $3)', [
      row?.nodeid,
      next.host,
      next.port,
    ]);
    const after = await h.request({ event: 'after_promote', groupid: 3, node });
    expect(after.status).toBe('done');
    expect(await primaryAddress(h, 3)).toEqual(node);
  });

  it('a secondary that cannot be does not keep the primary from moving', async () => {
    const { node, next } = await subjectOf(h, 4);
    const held = await h.request({ event: 'before_demote', groupid: 4, node });
    expect(held.status).toBe('holding');
    const elsewhere = h.cluster.group(1).primary.address;
    const id = await h.report({
      event: 'after_promote',
      groupid: 4,
      node: next,
      secondaries: [elsewhere],
    });
    expect((await h.ended(id)).status).toBe('done');
    expect(await primaryAddress(h, 4)).toEqual(next);
    const { rows } = await h.db.query<{ id: string }>(
      "SELECT max(id) AS id FROM mpp_tasks WHERE groupid = 4 AND source = 'sync'",
    );
    const followUp = await h.ended(rows[0]?.id ?? '');
    expect(followUp).toMatchObject({ status: 'failed' });
    expect(followUp.reason).toContain('belongs to group 1');
  });
});
