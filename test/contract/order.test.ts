import type pg from 'pg';
import { afterAll, beforeAll, beforeEach, describe, expect, inject, it } from 'vitest';
import { claimTask } from '../../src/tasks/claim.js';
import { type ContractDatabase, ContractServer, FINE } from '../kit/contract.js';

const FACT = { ...FINE, event: 'after_promote' };

describe('a report', () => {
  let server: ContractServer;
  let contract: ContractDatabase;
  let db: pg.Client;
  let open: pg.Client;

  beforeAll(async () => {
    server = await ContractServer.start(inject('template'));
    contract = await server.database('order');
    db = contract.db;
    open = await contract.session();
  });
  beforeEach(async () => {
    await open.query('ROLLBACK');
    await contract.clear();
    // No statement of a test may wait for a lock.
    await db.query("SET lock_timeout = '100ms'");
  });
  afterAll(async () => server.stop());

  const claim = async (): Promise<string | undefined> => {
    const scope = { controller: 'c', busy: [], held: [], open: true };
    return (await claimTask(db, scope))?.task.id;
  };
  const status = async (id: string): Promise<string> => (await contract.status(id)).status;

  it.each(['READ COMMITTED', 'REPEATABLE READ', 'SERIALIZABLE'])(
    'that is not committed delays no other of its group (%s)',
    async (level) => {
      const older = await contract.report(FINE);
      await open.query(`BEGIN ISOLATION LEVEL ${level}`);
      await contract.report(FINE, open);
      const newer = await contract.report(FINE);
      expect(await status(older)).toBe('superseded');
      expect(await claim()).toBe(newer);
    },
  );

  it('that is committed after a newer one gives way to it', async () => {
    await open.query('BEGIN');
    const late = await contract.report(FINE, open);
    const newer = await contract.report(FINE);
    await open.query('COMMIT');
    expect(await claim()).toBe(newer);
    expect(await contract.status(late)).toEqual({
      status: 'superseded',
      reason: `superseded by task ${newer}, before_demote of worker-1:5432`,
    });
  });

  it('that is committed after a newer one is done never runs', async () => {
    await open.query('BEGIN');
    const late = await contract.report(FACT, open);
    const newer = await contract.report({ ...FACT, nodename: 'worker-2' });
    expect(await claim()).toBe(newer);
    await db.query("UPDATE mpp_tasks SET status = 'done' WHERE id = $1", [newer]);
    await open.query('COMMIT');
    expect(await claim()).toBeUndefined();
    expect(await status(late)).toBe('superseded');
  });

  it('that is committed while an older one goes back to the queue, and is done, supersedes it', async () => {
    const older = await contract.report(FACT);
    expect(await claim()).toBe(older);
    await open.query('BEGIN');
    const newer = await contract.report({ ...FACT, nodename: 'worker-2' }, open);
    // Neither sees the other: the retry of the older one is due later.
    await db.query('BEGIN');
    await db.query(
      "UPDATE mpp_tasks SET status = 'pending', not_before = now() + interval '1 h' WHERE id = $1",
      [older],
    );
    await open.query('COMMIT');
    await db.query('COMMIT');
    expect(await status(older)).toBe('pending');
    expect(await claim()).toBe(newer);
    await db.query("UPDATE mpp_tasks SET status = 'done' WHERE id = $1", [newer]);
    await db.query('UPDATE mpp_tasks SET not_before = NULL WHERE id = $1', [older]);
    expect(await claim()).toBeUndefined();
    expect(await contract.status(older)).toEqual({
      status: 'superseded',
      reason: `superseded by task ${newer}, after_promote of worker-2:5432`,
    });
  });

  it('that is committed after a newer one came to nothing runs', async () => {
    await open.query('BEGIN');
    const late = await contract.report(FACT, open);
    const newer = await contract.report({ ...FACT, nodename: 'worker-2' });
    await db.query('SELECT mpp_cancel($1)', [newer]);
    await open.query('COMMIT');
    expect(await claim()).toBe(late);
  });

  it('with an old snapshot is committed, and the claim ends what it supersedes', async () => {
    await open.query('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM mpp_tasks');
    const older = await contract.report(FINE);
    const newer = await contract.report(FINE, open);
    await open.query('COMMIT');
    expect(await status(older)).toBe('pending');
    expect(await claim()).toBe(newer);
    expect(await status(older)).toBe('superseded');
  });

  it('that forces its checks early and stays open keeps no other group waiting', async () => {
    await contract.report(FINE);
    await open.query('BEGIN; SET CONSTRAINTS ALL IMMEDIATE');
    await contract.report(FINE, open);
    const newer = await contract.report(FINE);
    const other = await contract.report({ ...FINE, groupid: 2 });
    expect(await claim()).toBe(newer);
    expect(await claim()).toBe(other);
  });

  it('is taken past an older one that an operator is cancelling', async () => {
    const older = await contract.report(FINE);
    await open.query('BEGIN');
    await open.query('SELECT mpp_cancel($1)', [older]);
    const newer = await contract.report(FINE);
    const other = await contract.report({ ...FINE, groupid: 2 });
    expect([await claim(), await claim()]).toEqual([newer, other]);
  });

  it('is refused with the pid of a session that has locked the table', async () => {
    await open.query('BEGIN; LOCK TABLE mpp_tasks IN SHARE MODE');
    const { rows } = await open.query<{ pid: number }>('SELECT pg_backend_pid() AS pid');
    await db.query("ALTER FUNCTION mpp_submit SET lock_timeout = '50ms'");
    await expect(db.query("SELECT mpp_submit('suspect', 1, 'w')")).rejects.toMatchObject({
      code: '55P03',
      message: 'nothing was reported: another session has locked a table of mpp-controller',
      detail: `Locked: mpp_tasks by the session with pid ${rows[0]?.pid}.`,
    });
    await db.query("ALTER FUNCTION mpp_submit SET lock_timeout = '10s'");
  });

  it('of ten thousand rows for one group reads each row a few times', async () => {
    const before = await rowsRead();
    await db.query(
      "INSERT INTO mpp_tasks (event, groupid, nodename) SELECT 'before_demote', 1, 'w' FROM generate_series(1, 10000)",
    );
    const { rows } = await db.query('SELECT status, count(*)::integer FROM mpp_tasks GROUP BY 1');
    expect(rows).toContainEqual({ status: 'superseded', count: 9_999 });
    expect((await rowsRead()) - before).toBeLessThan(200_000);
  });

  async function rowsRead(): Promise<number> {
    await db.query('SELECT pg_stat_force_next_flush()');
    const { rows } = await db.query<{ read: number }>(`
      SELECT (seq_tup_read + idx_tup_fetch)::integer AS read
      FROM pg_stat_user_tables
      WHERE relid = 'mpp_tasks'::regclass`);
    return rows[0]?.read ?? 0;
  }
});
