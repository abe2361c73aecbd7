import type { Client } from 'pg';
import { afterAll, beforeAll, beforeEach, describe, expect, inject, it } from 'vitest';
import { claimTask } from '../../src/tasks/claim.js';
import { endTasks, markHolding } from '../../src/tasks/finish.js';
import {
  type ContractDatabase,
  ContractServer,
  FINE,
  SCHEMAS,
  sqlstateOf,
} from '../kit/contract.js';
import { waitFor } from '../kit/servers/index.js';

describe.each(SCHEMAS)('who waits, in schema $schema', ({ schema, database }) => {
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

  /** Does a controller's part for the one task there is, once it has been reported. */
  async function acknowledge(): Promise<string> {
    const task = await waitFor('a task to claim', async () => {
      const scope = { controller: 'c', busy: [], held: [], open: true };
      return (await claimTask(db, scope))?.task;
    });
    await markHolding(db, { controller: 'c', id: task.id, attempt: 1 }, 7, null);
    return task.id;
  }

  interface Waiter {
    readonly pid: number;
    readonly answer: Promise<{ id?: string; status: string }>;
  }

  /** Starts a CALL in a session of its own; its answer comes when it comes. */
  async function call(text: string, parameters: unknown[] = []): Promise<Waiter> {
    const session = await contract.session();
    const { rows } = await session.query<{ pid: number }>('SELECT pg_backend_pid() AS pid');
    const answer = session
      .query<{ id?: string; status: string }>(text, parameters)
      .then((result) => result.rows[0] ?? { status: 'no row' })
      .finally(() => session.end());
    return { pid: rows[0]?.pid ?? 0, answer };
  }

  const WAIT = 'CALL mpp_wait($1, $2::interval, NULL)';
  const REQUEST = "CALL mpp_request('before_demote', 1, 'worker-1', id => NULL, status => NULL)";

  it('mpp_request submits, commits, and answers with the hold', async () => {
    const { answer } = await call(REQUEST);
    const id = await acknowledge();
    expect(await answer).toEqual({ id, status: 'holding' });
  });

  it.each(['done', 'discarded', 'failed'] as const)('mpp_wait answers %s at once', async (end) => {
    const id = await contract.report(FINE);
    const { answer } = await call(WAIT, [id, '1 min']);
    await claimTask(db, { controller: 'c', busy: [], held: [], open: true });
    await endTasks(db, [{ controller: 'c', id, attempt: 1 }], { status: end, reason: 'so' });
    expect(await answer).toEqual({ status: end });
    expect((await (await call(WAIT, [id, '1 min'])).answer).status).toBe(end);
  });

  it('answers the caller of a task that is superseded, and of one that is cancelled', async () => {
    const first = await call(REQUEST);
    const older = await waitFor('the first report', async () => {
      const { rows } = await db.query<{ id: string }>('SELECT id FROM mpp_tasks');
      return rows[0]?.id;
    });
    const second = await call(WAIT, [await contract.report(FINE), '1 min']);
    expect(await first.answer).toEqual({ id: older, status: 'superseded' });
    const { rows } = await db.query<{ answer: string }>(
      "SELECT mpp_cancel(id) AS answer FROM mpp_tasks WHERE status = 'pending'",
    );
    expect(rows).toEqual([{ answer: 'cancelled' }]);
    expect(await second.answer).toEqual({ status: 'cancelled' });
  });

  it('gives the status as it is when the time is over, and leaves the task', async () => {
    const id = await contract.report(FINE);
    expect(await (await call(WAIT, [id, '10 ms'])).answer).toEqual({ status: 'pending' });
    await claimTask(db, { controller: 'c', busy: [], held: [], open: true });
    expect(await (await call(WAIT, [id, '0'])).answer).toEqual({ status: 'claimed' });
    const request = await call(
      "CALL mpp_request('suspect', 2, 'w', timeout => '10 ms', id => NULL, status => NULL)",
    );
    expect((await request.answer).status).toBe('pending');
  });

  it('waits as long as by default when the time is NULL, not for ever', async () => {
    const { rows } = await db.query<{ text: string }>(
      "SELECT pg_get_functiondef('mpp_wait'::regproc) AS text",
    );
    const original = rows[0]?.text ?? '';
    // A default that a test can wait for.
    await db.query(original.replaceAll('30 seconds', '30 ms'));
    try {
      const id = await contract.report(FINE);
      expect(await (await call(WAIT, [id, null])).answer).toEqual({ status: 'pending' });
    } finally {
      await db.query(original);
    }
  }, 10_000);

  it('pins no snapshot: what it holds back moves on while it waits', async () => {
    const id = await contract.report(FINE);
    const { pid, answer } = await call(WAIT, [id, '1 min']);
    const { rows } = await db.query<{ xid: string }>('SELECT txid_current() AS xid');
    await waitFor('the waiter to see a newer snapshot', async () => {
      const seen = await db.query<{ newer: boolean }>(
        `SELECT wait_event = 'PgSleep' AND backend_xmin::text::bigint > $2::bigint AS newer
         FROM pg_stat_activity WHERE pid = $1`,
        [pid, rows[0]?.xid],
      );
      return seen.rows[0]?.newer;
    });
    await db.query('SELECT mpp_cancel($1)', [id]);
    expect((await answer).status).toBe('cancelled');
  });

  it('refuses to wait for a task that is not there, or inside a transaction block', async () => {
    expect(await sqlstateOf(db, WAIT, ['999999999', '1 s'])).toBe('P0002');
    const id = await contract.report(FINE);
    await db.query('BEGIN');
    expect(await sqlstateOf(db, WAIT, [id, '1 s'])).toBe('2D000');
    await db.query('ROLLBACK; BEGIN');
    expect(await sqlstateOf(db, REQUEST)).toBe('2D000');
    await db.query('ROLLBACK');
    const { rows } = await db.query('SELECT id FROM mpp_tasks');
    expect(rows).toEqual([{ id }]);
  });

  it('mpp_task_status tells status and reason, and NULL for a task that is not there', async () => {
    const id = await contract.report(FINE);
    const STATUS = 'SELECT * FROM mpp_task_status($1)';
    expect((await db.query(STATUS, [id])).rows).toEqual([{ status: 'pending', reason: null }]);
    expect((await db.query(STATUS, ['999999999'])).rows).toEqual([{ status: null, reason: null }]);
  });

  it('mpp_cancel refuses what runs, what has ended and what is not there', async () => {
    const id = await contract.report(FINE);
    await claimTask(db, { controller: 'c', busy: [], held: [], open: true });
    const CANCEL = 'SELECT mpp_cancel($1)';
    expect(await sqlstateOf(db, CANCEL, [id])).toBe('55000');
    await markHolding(db, { controller: 'c', id, attempt: 1 }, 7, null);
    expect(await sqlstateOf(db, CANCEL, [id])).toBe('55000');
    await db.query('SELECT mpp_release(1)');
    expect(await sqlstateOf(db, CANCEL, [id])).toBe('55000');
    expect(await sqlstateOf(db, CANCEL, ['999999999'])).toBe('P0002');
  });

  it('mpp_release ends the session of the hold and its tasks, of that group alone', async () => {
    const [holder, other] = [await contract.session(), await contract.session()];
    const ended = new Promise((resolve) => holder.once('end', resolve));
    for (const [session, groupid] of [[holder, 1] as const, [other, 2] as const]) {
      await contract.report({ ...FINE, groupid });
      await acknowledge();
      await contract.lockGroup(groupid, session);
    }
    const waiting = await contract.report({ ...FINE, event: 'after_promote' });
    const RELEASE = 'SELECT mpp_release($1) AS released';
    expect((await db.query(RELEASE, [1])).rows).toEqual([{ released: true }]);
    await ended;
    expect((await contract.status(waiting)).status).toBe('pending');
    const { rows } = await db.query(
      "SELECT groupid, status, reason FROM mpp_tasks WHERE event = 'before_demote' ORDER BY groupid",
    );
    expect(rows).toEqual([
      { groupid: 1, status: 'rolled_back', reason: 'released by postgres' },
      { groupid: 2, status: 'holding', reason: null },
    ]);
    expect((await db.query(RELEASE, [1])).rows).toEqual([{ released: false }]);
    await other.query('ROLLBACK');
  });

  it('mpp_rebuild_cache reaches a controller with its next claim', async () => {
    await db.query(
      "INSERT INTO mpp_controllers (id, host, pid, backend_pid, version) VALUES ('c', 'h', 1, 1, '0')",
    );
    const scope = { controller: 'c', busy: [], held: [], open: true };
    await contract.report(FINE);
    expect((await claimTask(db, scope))?.rebuildAt).toBeNull();
    await db.query('SELECT mpp_rebuild_cache()');
    await contract.report({ ...FINE, groupid: 2 });
    expect((await claimTask(db, scope))?.rebuildAt).toMatch(/^\d+\.\d+$/);
  });

  it.each([
    ['citus_shard_move_slot_2_10_16384', 'logical', database, 'pgoutput', true],
    ['citus_shard_split_slot_1_10_16384', 'logical', database, 'citus', true],
    ['citus_shard_move_slot_1_10', 'logical', database, 'pgoutput', true],
    ['citus_shard_move_slot_2_10_16384', 'physical', database, 'pgoutput', false],
    ['citus_shard_move_slot_2_10_16384', 'logical', 'another', 'pgoutput', false],
    ['citus_shard_move_slot_2_10_16384', 'logical', database, 'citus', false],
    ['citus_shard_split_slot_1_10_16384', 'logical', database, 'pgoutput', false],
    ['my_citus_shard_move_slot_2_10', 'logical', database, 'pgoutput', false],
    ['citus_shard_move_slot_2_10_x', 'logical', database, 'pgoutput', false],
    ['citus_shard_move_slot_2_10_16384', 'logical', database, null, false],
    [null, null, null, null, false],
  ])('mpp_ignore_replication_slot(%s, %s, %s, %s) is %s', async (...row) => {
    const { rows } = await db.query(
      'SELECT mpp_ignore_replication_slot($1, $2, $3, $4) AS ignored',
      row.slice(0, 4),
    );
    expect(rows).toEqual([{ ignored: row[4] }]);
  });
});
