import pg from 'pg';
import { afterAll, beforeAll, beforeEach, describe, expect, inject, it } from 'vitest';
import { sweep } from '../../src/tasks/claim.js';
import { ContractServer, FINE, refusal, insertStatement } from '../support/contract.js';
import type { ContractDatabase } from '../support/contract.js';
import { waitFor } from '../support/servers/index.js';

const SERIALIZATION_FAILURE = '40001';

describe('reporters of one group take turns', () => {
  let server: ContractServer;
  let contract: ContractDatabase;
  let db: pg.Client;

  beforeAll(async () => {
    server = await ContractServer.start(inject('template'), { track_commit_timestamp: true });
    contract = await server.database('order');
    db = contract.db;
  });
  beforeEach(async () => contract.clear());
  afterAll(async () => server.stop());

  async function pidOf(session: pg.Client): Promise<number> {
    const { rows } = await session.query<{ pid: number }>('SELECT pg_backend_pid() AS pid');
    return rows[0]?.pid ?? 0;
  }

  async function untilBlocked(pid: number, by: number): Promise<void> {
    await waitFor(`session ${pid} to wait for ${by}`, async () => {
      const { rows } = await db.query<{ blocked: boolean }>(
        'SELECT $2::integer = ANY (pg_blocking_pids($1)) AS blocked',
        [pid, by],
      );
      return rows[0]?.blocked;
    });
  }

  /** Reports in a transaction that has looked around before; again when it must give way. */
  async function reportLate(session: pg.Client, level: string, groupid: number): Promise<void> {
    for (;;) {
      await session.query(`BEGIN ISOLATION LEVEL ${level}`);
      try {
        await session.query('SELECT count(*) FROM mpp_tasks');
        await contract.report({ ...FINE, groupid }, session);
        await session.query('COMMIT');
        return;
      } catch (error) {
        await session.query('ROLLBACK');
        if (!(error instanceof pg.DatabaseError && error.code === SERIALIZATION_FAILURE))
          throw error;
      }
    }
  }

  it('gives ids in the order of commits, in every isolation level', async () => {
    const levels = ['READ COMMITTED', 'REPEATABLE READ', 'READ COMMITTED', 'SERIALIZABLE'];
    const sessions = await Promise.all([...levels, ...levels].map(() => contract.session()));
    await Promise.all(
      sessions.map(async (session, index) => {
        const level = levels[index % levels.length] ?? '';
        for (let round = 0; round < 25; round += 1) {
          await reportLate(session, level, 1 + (round % 2));
        }
      }),
    );
    // By the log: superseding gives a task's own row a newer transaction.
    const { rows } = await db.query<{ groupid: number; tasks: number; disorder: number }>(`
      SELECT o.groupid, count(*)::integer AS tasks,
             count(*) FILTER (WHERE o.committed < o.before)::integer AS disorder
      FROM (
        SELECT l.groupid, pg_xact_commit_timestamp(l.xmin) AS committed,
               lag(pg_xact_commit_timestamp(l.xmin)) OVER (PARTITION BY l.groupid ORDER BY l.task_id) AS before
        FROM mpp_task_log AS l
        WHERE l.status = 'pending'
      ) AS o
      GROUP BY o.groupid
      ORDER BY o.groupid`);
    expect(rows).toEqual([
      { groupid: 1, tasks: 104, disorder: 0 },
      { groupid: 2, tasks: 96, disorder: 0 },
    ]);
  });

  it('draws a number anew when others were drawn while it waited', async () => {
    const [first, second] = await Promise.all([contract.session(), contract.session()]);
    await first.query('BEGIN');
    const older = await contract.report(FINE, first);
    const [waiter, blocker] = [await pidOf(second), await pidOf(first)];
    const waiting = contract.report(FINE, second);
    await untilBlocked(waiter, blocker);
    const middle = await contract.report({ ...FINE, groupid: 2 });
    await first.query('COMMIT');
    const newer = await waiting;
    expect([older, middle, newer].map(Number)).toEqual(
      [older, middle, newer].map(Number).sort((a, b) => a - b),
    );
    expect((await contract.status(older)).status).toBe('superseded');
    expect((await contract.status(newer)).status).toBe('pending');
  });

  it('supersedes by the next sweep what a report with an old snapshot could not see', async () => {
    const blind = await contract.session();
    await blind.query('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM mpp_tasks');
    const older = await contract.report(FINE);
    const newer = await contract.report(FINE, blind);
    await blind.query('COMMIT');
    expect((await contract.status(older)).status).toBe('pending');
    await sweep(db, []);
    expect(await contract.status(older)).toEqual({
      status: 'superseded',
      reason: `superseded by task ${newer}`,
    });
    expect((await contract.status(newer)).status).toBe('pending');
  });

  it('lets those of other groups pass, and tells those of the group whom they wait for', async () => {
    const [first, second] = await Promise.all([contract.session(), contract.session()]);
    const pid = await pidOf(first);
    await first.query('BEGIN');
    await contract.report(FINE, first);
    await contract.report({ ...FINE, groupid: 2 });

    const { rows } = await db.query<{ bound: string }>(`
      SELECT setting AS bound FROM pg_proc, unnest(proconfig) AS setting
      WHERE oid = 'mpp_tasks_before_insert'::regproc AND setting LIKE 'lock_timeout=%'`);
    expect(rows).toEqual([{ bound: 'lock_timeout=10s' }]);
    await db.query("ALTER FUNCTION mpp_tasks_before_insert() SET lock_timeout = '50ms'");
    try {
      const error = await refusal(second, insertStatement(FINE));
      expect(error.code).toBe('55P03');
      expect(error.detail).toContain(String(pid));
      expect(error.hint).toMatch(/commit/);
    } finally {
      await db.query("ALTER FUNCTION mpp_tasks_before_insert() SET lock_timeout = '10s'");
    }
    await first.query('ROLLBACK');
    await contract.report(FINE, second);
    const { rows: tasks } = await db.query('SELECT groupid FROM mpp_tasks ORDER BY groupid');
    expect(tasks).toEqual([{ groupid: 1 }, { groupid: 2 }]);
  });
});
