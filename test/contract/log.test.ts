import type { Client } from 'pg';
import { afterAll, beforeAll, beforeEach, describe, expect, inject, it } from 'vitest';
import { forgetGone } from '../../src/controller/presence.js';
import { applicationName } from '../../src/postgres/session.js';
import { claimTask } from '../../src/tasks/claim.js';
import { takeBack } from '../../src/tasks/sweep.js';
import {
  completeTasks,
  endTasks,
  markHolding,
  pruneTasks,
  recordChange,
  requeueTasks,
} from '../../src/tasks/finish.js';
import {
  type ContractDatabase,
  ContractServer,
  FINE,
  SCHEMAS,
  sqlstateOf,
} from '../kit/contract.js';
import { waitFor } from '../kit/servers/index.js';

const FACT = { ...FINE, event: 'after_promote' };

describe.each(SCHEMAS)('the log and the views, in schema $schema', ({ schema, database }) => {
  let server: ContractServer;
  let contract: ContractDatabase;
  let db: Client;

  beforeAll(async () => {
    server = await ContractServer.start(inject('template'));
    contract = await server.database(database, schema);
    db = contract.db;
  });
  beforeEach(async () => contract.clear());
  afterAll(async () => server.stop());

  const claim = async (held: number[] = []) => {
    const scope = { controller: 'c', busy: [], held, open: true };
    return (await claimTask(db, scope))?.task;
  };
  const attempt = (id: string, attempt = 1) => ({ controller: 'c', id, attempt });

  async function rowsOf(text: string, parameters: unknown[] = []): Promise<object[]> {
    const { rows } = await db.query<object>(text, parameters);
    return rows;
  }

  async function hold(groupid: number): Promise<string> {
    const id = await contract.report({ ...FINE, groupid, timeout: '1h' });
    await claim();
    await markHolding(db, attempt(id), 7, null);
    return id;
  }

  describe('mpp_task_log', () => {
    const LOG = `SELECT status, reason, attempt, controller, node_before, node_after
                 FROM mpp_task_log WHERE task_id = $1 ORDER BY id`;

    it('has every change of status, with attempt, controller and the rows it changed', async () => {
      const demote = await hold(1);
      const fact = await contract.report(FACT);
      await claim([1]);
      await requeueTasks(db, [attempt(fact)], 'it failed', 0);
      await claim([1]);
      await db.query('BEGIN');
      await recordChange(db, {
        ...{ before: [{ nodeid: 7 }], after: [{ nodeid: 7, new: true }] },
        summary: undefined,
      });
      await completeTasks(db, [attempt(demote), attempt(fact, 2)], { nodeid: 7, reason: null });
      await db.query('COMMIT');

      const none = { node_before: null, node_after: null };
      const rows = { node_before: [{ nodeid: 7 }], node_after: [{ nodeid: 7, new: true }] };
      const [c, reason] = ['c', null];
      expect(await rowsOf(LOG, [demote])).toEqual([
        { status: 'pending', reason, attempt: 0, controller: null, ...none },
        { status: 'claimed', reason, attempt: 1, controller: c, ...none },
        { status: 'holding', reason, attempt: 1, controller: c, ...none },
        { status: 'done', reason, attempt: 1, controller: c, ...rows },
      ]);
      expect(await rowsOf(LOG, [fact])).toEqual([
        { status: 'pending', reason, attempt: 0, controller: null, ...none },
        { status: 'claimed', reason, attempt: 1, controller: c, ...none },
        { status: 'pending', reason: 'it failed', attempt: 1, controller: c, ...none },
        { status: 'claimed', reason, attempt: 2, controller: c, ...none },
        { status: 'done', reason, attempt: 2, controller: c, ...rows },
      ]);
      // The rows belong to that transaction alone.
      await contract.report(FACT);
      const later = await claim();
      await completeTasks(db, [attempt(later?.id ?? '')], { nodeid: 7, reason: null });
      const [end] = (await rowsOf(LOG, [later?.id])).slice(-1);
      expect(end).toMatchObject({ status: 'done', ...none });
    });

    it('can be added to and pruned, never changed', async () => {
      await contract.report(FINE);
      const changes = ["UPDATE mpp_task_log SET reason = 'other'", 'TRUNCATE mpp_task_log'];
      for (const text of changes) expect(await sqlstateOf(db, text)).toBe('55000');
    });

    it('goes with its task after the retention, in batches, and not before', async () => {
      const open = await contract.report(FINE);
      for (let groupid = 2; groupid <= 6; groupid += 1) {
        const id = await contract.report({ ...FINE, groupid });
        await db.query('SELECT mpp_cancel($1)', [id]);
      }
      expect(await pruneTasks(db, 3_600_000)).toBe(0);
      // A retention that lies in the future stands for one that has passed.
      expect(await pruneTasks(db, -60_000, 2)).toBe(2);
      expect(await pruneTasks(db, -60_000)).toBe(3);
      expect(await rowsOf('SELECT id FROM mpp_tasks')).toEqual([{ id: open }]);
      expect(await rowsOf('SELECT task_id FROM mpp_task_log')).toEqual([{ task_id: open }]);
    });

    it('is bound to its commit: a rollback leaves neither status nor log', async () => {
      const id = await contract.report(FACT);
      await claim();
      await db.query('BEGIN');
      await completeTasks(db, [attempt(id)], { nodeid: 7, reason: null });
      await db.query('ROLLBACK');
      expect((await contract.status(id)).status).toBe('claimed');
      expect((await rowsOf(LOG, [id])).slice(-1)).toMatchObject([{ status: 'claimed' }]);
    });
  });

  it('only the attempt that was claimed can finish a task', async () => {
    const id = await contract.report({ ...FACT, timeout: '1h' });
    await claim();
    await takeBack(db, { busy: [], held: [] });
    await claim();
    const stale = attempt(id);
    expect(await completeTasks(db, [stale], { nodeid: 7, reason: null })).toBe(false);
    expect(await markHolding(db, stale, 7, null)).toBeUndefined();
    await endTasks(db, [stale], { status: 'failed', reason: 'late' });
    await requeueTasks(db, [stale], 'late', 0);
    await endTasks(db, [{ ...attempt(id, 2), controller: 'other' }], {
      status: 'failed',
      reason: 'not mine',
    });
    expect((await contract.status(id)).status).toBe('claimed');
    expect(await completeTasks(db, [attempt(id, 2)], { nodeid: 7, reason: null })).toBe(true);
  });

  describe('mpp_queue', () => {
    async function why(): Promise<Record<string, string>> {
      const { rows } = await db.query<{ id: string; why: string }>('SELECT id, why FROM mpp_queue');
      return Object.fromEntries(rows.map((row) => [row.id, row.why]));
    }

    it('says why each task stands where it does', async () => {
      const frozen = await contract.report({ ...FACT, groupid: 1 });
      await claim();
      // While it ran, the next report came; its retry is not due, so that one goes first.
      const holding = await contract.report({ ...FINE, groupid: 1, timeout: '1h' });
      await requeueTasks(db, [attempt(frozen)], 'it failed', 3_600_000);
      expect((await claim())?.id).toBe(holding);
      await markHolding(db, attempt(holding), 7, null);
      const next = await contract.report({ ...FINE, groupid: 1, event: 'before_promote' });
      const coordinator = await contract.report({ ...FACT, groupid: 0 });
      const behind = await contract.report({ ...FINE, groupid: 0 });
      const running = await contract.report({ ...FACT, groupid: 2 });
      const byAge = await contract.report({ ...FINE, groupid: 3 });
      const delayed = await contract.report({ ...FACT, groupid: 4 });
      const late = await contract.report({ ...FINE, groupid: 5, timeout: '1us' });
      await db.query("UPDATE mpp_tasks SET status = 'claimed', claimed_at = now() WHERE id = $1", [
        running,
      ]);
      await db.query("UPDATE mpp_tasks SET not_before = clock_timestamp() + '1h' WHERE id = $1", [
        delayed,
      ]);
      const waits = await contract.report({ ...FINE, groupid: 2 });

      expect(await why()).toEqual({
        [holding]: expect.stringMatching(/^the traffic of group 1 waits\b/) as string,
        [running]: expect.stringMatching(/^running since /) as string,
        [frozen]: `waits for the hold of its group, task ${holding}, to end`,
        [next]: 'its group is held',
        [coordinator]: 'group 0 comes before the others',
        [behind]: `waits for task ${coordinator} of its group`,
        [byAge]: 'by age',
        [delayed]: expect.stringMatching(/^attempt 1 is due at /) as string,
        [late]: 'too late: it will be ended',
        [waits]: `waits for task ${running} of its group`,
      });
      await db.query(
        `INSERT INTO mpp_controllers (id, host, pid, backend_pid, version, max_holds)
         VALUES ('c', 'h', 1, pg_backend_pid(), '0', 1)`,
      );
      expect((await why())[byAge]).toBe('by age');
      // Only the active controller's limit counts.
      await db.query('SELECT pg_advisory_lock(1297109066, 0)');
      expect((await why())[byAge]).toBe('waits for the hold of another group to end');
      await db.query('SELECT pg_advisory_unlock(1297109066, 0)');
    });
  });

  it('mpp_holds shows since when, until when, by whom, and how many wait', async () => {
    const [holder, waiter] = [await contract.session(), await contract.session()];
    const id = await hold(3);
    const HOLDS = 'SELECT *, deadline - held_since AS span FROM mpp_holds';
    expect(await rowsOf(HOLDS)).toMatchObject([{ groupid: 3, pid: null, sessions_waiting: '0' }]);

    const { rows } = await holder.query<{ pid: number }>('SELECT pg_backend_pid() AS pid');
    await contract.lockGroup(3, holder);
    await holder.query('LOCK TABLE mpp_controllers');
    const waiting = waiter.query('SELECT count(*) FROM mpp_controllers');
    await waitFor('the waiter to be counted', async () => {
      const seen = await db.query<{ count: number }>(
        'SELECT sessions_waiting::integer AS count FROM mpp_holds',
      );
      return seen.rows[0]?.count === 1;
    });
    expect(await rowsOf(HOLDS)).toMatchObject([
      { groupid: 3, controller: 'c', tasks: [id], pid: rows[0]?.pid, span: { hours: 1 } },
    ]);
    await holder.query('ROLLBACK');
    await waiting;
    await db.query('SELECT mpp_release(3)');
    expect(await rowsOf(HOLDS)).toEqual([]);
  });

  describe('mpp_status', () => {
    const STATUS = 'SELECT controller, state FROM mpp_status ORDER BY controller';

    /** Registers a controller, with a session of its own as a controller's unless told otherwise. */
    async function register(id: string, name = applicationName('control')): Promise<Client> {
      const session = await contract.session();
      await session.query("SELECT set_config('application_name', $1, false)", [name]);
      await session.query(REGISTER, [id, null, '0']);
      return session;
    }

    it('shows who is active, who stands by, who is gone, and the backlog', async () => {
      const QUEUE = `SELECT controller, state, backlog::integer, holds::integer,
                            oldest_pending > '0' AS waits FROM mpp_status ORDER BY controller`;
      expect(await rowsOf(QUEUE)).toEqual([
        { controller: null, state: 'none', backlog: 0, holds: 0, waits: null },
      ]);
      await register('c0');
      const active = await register('c1');
      await db.query(REGISTER, ['c2', 2147483647, '0']);
      await active.query('SELECT pg_advisory_lock(1297109066, 0)');
      await hold(1);
      await contract.report({ ...FINE, groupid: 2 });
      const queue = { backlog: 1, holds: 1, waits: true };
      expect(await rowsOf(QUEUE)).toEqual([
        { controller: 'c0', state: 'standby', ...queue },
        { controller: 'c1', state: 'active', ...queue },
        { controller: 'c2', state: 'gone', ...queue },
      ]);
      await active.end();
    });

    it('takes no controller for alive whose pid the server has given to another session', async () => {
      await register('old', 'psql');
      const { rows } = await db.query('SELECT pid FROM pg_stat_activity WHERE datid IS NULL');
      expect(rows).not.toEqual([]);
      await db.query(REGISTER, ['older', (rows[0] as { pid: number }).pid, '1 day']);
      expect(await rowsOf(STATUS)).toEqual([
        { controller: 'old', state: 'gone' },
        { controller: 'older', state: 'gone' },
      ]);
      await forgetGone(db);
      expect(await rowsOf(STATUS)).toEqual([{ controller: 'old', state: 'gone' }]);
    });

    it('takes no controller for active or standby whose pid another controller has now', async () => {
      const session = await register('new');
      const { rows } = await session.query<{ pid: number }>('SELECT pg_backend_pid() AS pid');
      await db.query(REGISTER, ['old', rows[0]?.pid, '1 day']);
      const states = (state: string) => [
        { controller: 'new', state },
        { controller: 'old', state: 'gone' },
      ];
      expect(await rowsOf(STATUS)).toEqual(states('standby'));
      await session.query('SELECT pg_advisory_lock(1297109066, 0)');
      expect(await rowsOf(STATUS)).toEqual(states('active'));
      await forgetGone(db);
      expect(await rowsOf(STATUS)).toEqual([{ controller: 'new', state: 'active' }]);
      await session.end();
    });

    it('tells an operator who is no superuser the same', async () => {
      await register('c0');
      const user = `the_operator_of_${database}`;
      await db.query(`CREATE ROLE ${user} LOGIN IN ROLE mpp_operator`);
      const operator = await contract.session({ user });
      expect((await operator.query(STATUS)).rows).toEqual([{ controller: 'c0', state: 'standby' }]);
    });
  });
});

/** With a NULL as pid, the session that registers; the mark is as old as the last parameter says. */
const REGISTER = `
  INSERT INTO mpp_controllers (id, host, pid, backend_pid, version, heartbeat_at)
  VALUES ($1, 'h', 1, coalesce($2, pg_backend_pid()), '0', clock_timestamp() - $3::interval)`;
