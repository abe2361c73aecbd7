import type pg from 'pg';
import { afterAll, beforeAll, beforeEach, describe, expect, inject, it } from 'vitest';
import { claimTask } from '../../src/tasks/claim.js';
import { addFollowUp, completeTasks, markHolding, requeueTasks } from '../../src/tasks/finish.js';
import { takeBack } from '../../src/tasks/sweep.js';
import { ContractServer, FINE, SCHEMAS, type ContractDatabase } from '../kit/contract.js';
import { waitFor } from '../kit/servers/index.js';

const CLIENT_REPORTS = ['before_demote', 'before_promote'] as const;

/** An older pending task, a newer one, and whether the older one is superseded. */
const SUPERSEDING: readonly (readonly [string, string, string, string, boolean])[] = [
  ...CLIENT_REPORTS.flatMap((older) => [
    [older, 'client', 'before_demote', 'client', true] as const,
    [older, 'client', 'before_promote', 'client', true] as const,
    [older, 'client', 'after_promote', 'client', true] as const,
    [older, 'client', 'suspect', 'client', false] as const,
    [older, 'client', 'after_promote', 'sync', false] as const,
    [older, 'client', 'suspect', 'probe', false] as const,
  ]),
  ['after_promote', 'client', 'before_demote', 'client', false],
  ['after_promote', 'client', 'before_promote', 'client', false],
  ['after_promote', 'client', 'after_promote', 'client', true],
  ['after_promote', 'client', 'suspect', 'client', false],
  ['after_promote', 'client', 'after_promote', 'sync', false],
  ['suspect', 'client', 'before_demote', 'client', true],
  ['suspect', 'client', 'suspect', 'client', false],
  ['suspect', 'client', 'suspect', 'probe', false],
  ['suspect', 'probe', 'suspect', 'client', true],
  ['suspect', 'probe', 'suspect', 'probe', true],
  ['suspect', 'probe', 'after_promote', 'sync', true],
  ['after_promote', 'sync', 'after_promote', 'sync', true],
  ['after_promote', 'sync', 'after_promote', 'client', true],
  ['after_promote', 'sync', 'before_demote', 'client', false],
];

describe.each(SCHEMAS)('the queue, in schema $schema', ({ schema, database }) => {
  let server: ContractServer;
  let contract: ContractDatabase;
  let db: pg.Client;

  beforeAll(async () => {
    server = await ContractServer.start(inject('template'));
    contract = await server.database(database, schema);
    db = contract.db;
  });
  beforeEach(async () => contract.clear());
  afterAll(async () => server.stop());

  /** What arrives on a channel because of `work`, told by a mark that is sent after it. */
  async function notifications(channel: string, work: () => Promise<unknown>): Promise<string[]> {
    const listener = await contract.session();
    await listener.query(`LISTEN ${channel}`);
    await listener.query('LISTEN mark');
    const heard: pg.Notification[] = [];
    const marked = new Promise<void>((resolve) => {
      listener.on('notification', (message) => {
        if (message.channel === 'mark') resolve();
        else heard.push(message);
      });
    });
    await work();
    await db.query('NOTIFY mark');
    await marked;
    await listener.end();
    return heard.map(({ payload }) => payload ?? '');
  }

  const claim = async (held: number[] = []) => {
    const scope = { controller: 'c', busy: [], held, open: true };
    return (await claimTask(db, scope))?.task;
  };
  const attempt = (id: string, attempt = 1) => ({ controller: 'c', id, attempt });

  describe('notifications', () => {
    const several =
      "INSERT INTO mpp_tasks (event, groupid, nodename) SELECT 'suspect', g, 'w' FROM";

    it('sends one wake-up a statement, with an empty payload, however many rows it has', async () => {
      const heard = await notifications('mpp_tasks', () =>
        db.query(`${several} generate_series(1, 7) AS g`),
      );
      expect(heard).toEqual(['']);
    });

    it('sends one a transaction, and none when it is rolled back', async () => {
      const heard = await notifications('mpp_tasks', async () => {
        await db.query(`BEGIN; ${several} (VALUES (1)) AS v (g); ${several} (VALUES (2)) AS v (g)`);
        await db.query('COMMIT');
        await db.query(`BEGIN; ${several} (VALUES (3)) AS v (g); ROLLBACK`);
      });
      expect(heard).toEqual(['']);
    });

    it('acknowledges what a client may wait for, holding and every end, as JSON', async () => {
      const ids: string[] = [];
      const heard = await notifications('mpp_task_status', async () => {
        ids.push(await contract.report(FINE), await contract.report(FINE));
        await claim();
        await markHolding(db, attempt(ids[1] ?? ''), 7, null);
        await db.query('SELECT mpp_release(1)');
      });
      const [older, newer] = ids.map(Number);
      const about = { groupid: 1, event: 'before_demote' };
      expect(heard.map((payload): unknown => JSON.parse(payload))).toEqual([
        { ...about, id: older, status: 'superseded' },
        { ...about, id: newer, status: 'holding' },
        { ...about, id: newer, status: 'rolled_back' },
      ]);
    });
  });

  describe('the newest report wins', () => {
    it.each(SUPERSEDING)('%s of a %s, then %s of a %s: %s', async (...row) => {
      const [event, source, newEvent, newSource, superseded] = row;
      const older = await contract.report({ ...FINE, event, source });
      const elsewhere = await contract.report({ ...FINE, event, source, groupid: 2 });
      const newer = await contract.report({ ...FINE, event: newEvent, source: newSource });
      expect((await contract.status(older)).status).toBe(superseded ? 'superseded' : 'pending');
      expect((await contract.status(elsewhere)).status).toBe('pending');
      if (superseded) expect((await contract.status(older)).reason).toContain(`task ${newer}`);
    });

    it('leaves what runs alone', async () => {
      const older = await contract.report(FINE);
      await claim();
      await contract.report(FINE);
      expect((await contract.status(older)).status).toBe('claimed');
    });

    it('supersedes what failed meanwhile and comes back: an old fact never blocks a new one', async () => {
      const older = await contract.report({ ...FINE, event: 'after_promote' });
      await claim();
      const newer = await contract.report({ ...FINE, event: 'after_promote', nodename: 'w2' });
      await requeueTasks(db, [attempt(older)], 'it failed', 3_600_000);
      expect((await contract.status(older)).status).toBe('superseded');
      expect((await claim())?.id).toBe(newer);
    });

    it('makes a retry due at once when a report comes', async () => {
      const fact = await contract.report({ ...FINE, event: 'after_promote' });
      await claim();
      await requeueTasks(db, [attempt(fact)], 'it failed', 3_600_000);
      expect(await claim()).toBeUndefined();
      await contract.report(FINE);
      expect(await claim()).toMatchObject({ id: fact, attempt: 2 });
    });
  });

  describe('the rest of a change', () => {
    /** An after_promote that is being carried out, and `newer`, which came meanwhile. */
    async function changeWith(newer: string | null): Promise<{ rest: string; newer: string }> {
      await contract.report({ ...FINE, event: 'after_promote', secondaries: ['w2:5432'] });
      const task = await claim();
      if (!task) throw new Error('the task was not claimed');
      const came = newer === null ? '' : await contract.report({ ...FINE, event: newer });
      await db.query('BEGIN');
      await addFollowUp(db, task);
      await completeTasks(db, [attempt(task.id)], { nodeid: 7, reason: null });
      await db.query('COMMIT');
      const { rows } = await db.query<{ id: string }>(
        "SELECT max(id) AS id FROM mpp_tasks WHERE source = 'sync'",
      );
      return { rest: rows[0]?.id ?? '', newer: came };
    }

    it('is a task that comes next', async () => {
      const { rest } = await changeWith(null);
      expect(await claim()).toMatchObject({ id: rest, event: 'after_promote', source: 'sync' });
    });

    it('gives way to a newer fact, which it would undo', async () => {
      const { rest, newer } = await changeWith('after_promote');
      expect((await contract.status(rest)).status).toBe('superseded');
      expect((await claim())?.id).toBe(newer);
    });

    it('does not commit a hold that opens meanwhile, and comes after it', async () => {
      const { rest, newer } = await changeWith('before_demote');
      expect((await claim())?.id).toBe(newer);
      await markHolding(db, attempt(newer), 7, null);
      expect(await claim([1])).toBeUndefined();
      const promote = await contract.report({ ...FINE, event: 'before_promote' });
      expect((await claim([1]))?.id).toBe(promote);
      await db.query('SELECT mpp_release(1)');
      expect((await claim())?.id).toBe(rest);
    });
  });

  it.each(['done', 'superseded', 'discarded', 'expired', 'rolled_back', 'failed', 'cancelled'])(
    'lets no role change a task that is %s',
    async (status) => {
      const id = await contract.report(FINE);
      await db.query('UPDATE mpp_tasks SET status = $2 WHERE id = $1', [id, status]);
      for (const change of ["status = 'pending'", 'status = status', "reason = 'other'"]) {
        const changed = db.query(`UPDATE mpp_tasks SET ${change} WHERE id = $1`, [id]);
        await expect(changed).rejects.toMatchObject({ code: '55000' });
      }
      const { rows } = await db.query('SELECT finished_at FROM mpp_tasks WHERE id = $1', [id]);
      expect(rows).toEqual([{ finished_at: expect.any(Date) as Date }]);
      await expect(db.query('SELECT mpp_cancel($1)', [id])).rejects.toMatchObject({
        code: '55000',
      });
    },
  );

  it('ends a task of a lost controller by what its row says once that is locked', async () => {
    const [held, other] = [
      await contract.report({ ...FINE, groupid: 1, timeout: '1 ms' }),
      await contract.report({ ...FINE, groupid: 2 }),
    ];
    await db.query("UPDATE mpp_tasks SET status = 'claimed', claimed_by = 'gone', attempt = 1");
    await db.query('DELETE FROM mpp_groups');
    await db.query('INSERT INTO mpp_groups VALUES (1)');
    // The sweep has begun, and waits for the row of group 2, which it needs as well.
    const blocker = await contract.session();
    await blocker.query('BEGIN; INSERT INTO mpp_groups VALUES (2)');
    const sweeper = await contract.session();
    const { rows } = await sweeper.query<{ pid: number }>('SELECT pg_backend_pid() AS pid');
    const sweep = takeBack(sweeper, { busy: [], held: [] });
    await waitFor('the sweep to wait', async () => {
      const { rowCount } = await db.query('SELECT FROM pg_locks WHERE NOT granted AND pid = $1', [
        rows[0]?.pid,
      ]);
      return rowCount === 1;
    });

    await db.query(
      "UPDATE mpp_tasks SET status = 'holding', held_at = now(), deadline = now() WHERE id = $1",
      [held],
    );
    await blocker.query('ROLLBACK');

    expect((await sweep).map(({ id, status }) => [id, status])).toEqual([
      [held, 'rolled_back'],
      [other, 'pending'],
    ]);
  });
});
