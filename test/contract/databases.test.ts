import { afterAll, beforeAll, beforeEach, describe, expect, inject, it } from 'vitest';
import { ContractServer, FINE, SCHEMAS, type ContractDatabase } from '../kit/contract.js';

/** A report made in another database, as its row of mpp_tasks. */
interface Original {
  readonly id: number;
  readonly event?: string;
  readonly status?: string;
  /** How long ago it was made. */
  readonly age?: string;
}

interface Copy {
  readonly id: string;
  readonly status: string;
  readonly reason: string | null;
  readonly source: string;
}

describe.each(SCHEMAS)(
  'reports to forward to other databases, in schema $schema',
  ({ schema, database }) => {
    let server: ContractServer;
    let contract: ContractDatabase;
    /** When each original was made: the same however often it is forwarded. */
    const made = new Map<number, string>();

    beforeAll(async () => {
      server = await ContractServer.start(inject('template'));
      contract = await server.database(database, schema);
    });
    beforeEach(async () => {
      await contract.clear();
      await contract.db.query('DELETE FROM mpp_databases');
      made.clear();
    });
    afterAll(async () => server.stop());

    async function follow(original: Original): Promise<boolean> {
      const { id, event = 'before_demote', status = 'pending', age = '0' } = original;
      const at = made.get(id) ?? (await timeAgo(age));
      made.set(id, at);
      const { rows } = await contract.db.query<{ followed: boolean }>(
        `SELECT mpp_follow('other', jsonb_build_object(
         'id', $1::bigint, 'event', $2::text, 'status', $3::text, 'groupid', 1, 'nodename', 'w',
         'nodeport', 5432, 'timeout', '30s', 'cooldown', '10s', 'pause', 'all',
         'finished_at', CASE WHEN $3::text NOT IN ('pending', 'claimed', 'holding') THEN now() END,
         'created_at', $4::timestamptz)) AS followed`,
        [id, event, status, at],
      );
      return rows[0]?.followed ?? false;
    }

    async function timeAgo(age: string): Promise<string> {
      const { rows } = await contract.db.query<{ at: string }>(
        'SELECT (clock_timestamp() - $1::interval)::text AS at',
        [age],
      );
      return rows[0]?.at ?? '';
    }

    async function copies(): Promise<Copy[]> {
      const { rows } = await contract.db.query<Copy>(
        'SELECT id, status, reason, source FROM mpp_tasks WHERE origin_id IS NOT NULL ORDER BY id',
      );
      return rows;
    }

    async function outbox(): Promise<object[]> {
      const { rows } = await contract.db.query<object>(
        'SELECT task_id, database FROM mpp_outbox ORDER BY id',
      );
      return rows;
    }

    async function addDatabases(): Promise<void> {
      await contract.db.query("INSERT INTO mpp_databases VALUES ('a'), ('b')");
    }

    it('get nothing while there are none', async () => {
      await contract.report(FINE);
      expect(await outbox()).toEqual([]);
    });

    it('get a report in its own commit', async () => {
      await addDatabases();
      await contract.db.query('BEGIN');
      await contract.report(FINE);
      await contract.db.query('ROLLBACK');
      expect(await outbox()).toEqual([]);
      const id = await contract.report(FINE);
      expect(await outbox()).toEqual([
        { task_id: id, database: 'a' },
        { task_id: id, database: 'b' },
      ]);
    });

    it('get no task that a controller made, nor a copy', async () => {
      await addDatabases();
      await contract.report({ ...FINE, source: 'probe' });
      await follow({ id: 7 });
      expect(await outbox()).toEqual([]);
    });

    it('get the end of a report that comes to nothing, and not of one that is superseded', async () => {
      await addDatabases();
      const cancelled = await contract.report(FINE);
      await contract.db.query('SELECT mpp_cancel($1)', [cancelled]);
      await contract.report(FINE);
      await contract.report(FINE);
      expect(
        (await outbox()).filter((row) => JSON.stringify(row).includes(cancelled)),
      ).toHaveLength(4);
      expect(await outbox()).toHaveLength(8);
    });

    it('wake the controller when a report comes to nothing', async () => {
      await addDatabases();
      const id = await contract.report(FINE);
      const listener = await contract.session();
      const heard: string[] = [];
      listener.on('notification', ({ channel }) => heard.push(channel));
      await listener.query('LISTEN mpp_tasks');
      await contract.db.query('SELECT mpp_cancel($1)', [id]);
      await listener.query('SELECT 1');
      expect(heard).toEqual(['mpp_tasks']);
    });

    it('are forgotten with what they had yet to get', async () => {
      await addDatabases();
      await contract.report(FINE);
      await contract.db.query("DELETE FROM mpp_databases WHERE database = 'a'");
      expect(await outbox()).toHaveLength(1);
    });

    it('make one copy of a report, however often they get it', async () => {
      expect(await follow({ id: 7, age: '3s' })).toBe(true);
      expect(await follow({ id: 7, age: '3s' })).toBe(true);
      expect(await copies()).toEqual([
        expect.objectContaining({ status: 'pending', source: 'client' }),
      ]);
      const { rows } = await contract.db.query(
        `SELECT origin_database, origin_id, pause, timeout::text,
              clock_timestamp() - created_at > interval '2s' AS "old"
       FROM mpp_tasks`,
      );
      // Its timeout runs since it was reported.
      expect(rows).toEqual([
        { origin_database: 'other', origin_id: '7', pause: 'all', timeout: '00:00:30', old: true },
      ]);
    });

    it('make a copy of a report that has the number of another: its database was made again', async () => {
      await follow({ id: 7, event: 'after_promote', status: 'done', age: '1 day' });
      made.clear();
      await follow({ id: 7, event: 'after_promote' });
      expect(await copies()).toHaveLength(2);
    });

    it.each([
      { id: 7, event: 'before_demote', age: '31s' },
      { id: 7, event: 'before_demote', status: 'done' },
      { id: 7, event: 'after_promote', status: 'superseded' },
      { id: 7, event: 'after_promote', status: 'cancelled' },
      { id: 7, event: 'before_promote', status: 'rolled_back' },
    ])('make no copy of what is over: $event $status $age', async (original) => {
      expect(await follow(original)).toBe(true);
      expect(await copies()).toEqual([]);
    });

    it.each(['done', 'failed', 'claimed', 'pending'])(
      'make a copy of a fact that is %s where it was made, however old',
      async (status) => {
        expect(await follow({ id: 7, event: 'after_promote', status, age: '1 day' })).toBe(true);
        expect(await copies()).toHaveLength(1);
      },
    );

    it('make no copy of what a newer report here supersedes', async () => {
      await contract.report({ ...FINE, event: 'after_promote' });
      expect(await follow({ id: 7, event: 'after_promote', age: '1s' })).toBe(true);
      expect(await follow({ id: 8, event: 'before_demote', age: '1s' })).toBe(true);
      expect(await copies()).toEqual([]);
    });

    it('supersede by a copy what was reported before', async () => {
      const older = await contract.report(FINE);
      expect(await follow({ id: 7 })).toBe(true);
      expect((await contract.status(older)).status).toBe('superseded');
    });

    it('cancel a copy that has not begun when its original came to nothing', async () => {
      await follow({ id: 7 });
      await follow({ id: 7, status: 'cancelled' });
      expect(await copies()).toEqual([
        expect.objectContaining({
          status: 'cancelled',
          reason: 'task 7 of database other was cancelled',
        }),
      ]);
      // And say so any number of times.
      expect(await follow({ id: 7, status: 'cancelled' })).toBe(true);
    });

    it('end the hold of a copy when its original came to nothing', async () => {
      await follow({ id: 7 });
      await contract.db.query("UPDATE mpp_tasks SET status = 'holding', deadline = now() + '30s'");
      await follow({ id: 7, status: 'rolled_back' });
      expect((await copies())[0]?.status).toBe('rolled_back');
    });

    it.each(['done', 'superseded'])(
      'keep the hold of a copy when they get again an original that is %s by now',
      async (status) => {
        await follow({ id: 7 });
        await contract.db.query(
          "UPDATE mpp_tasks SET status = 'holding', deadline = now() + '30s'",
        );
        expect(await follow({ id: 7, status })).toBe(true);
        expect((await copies())[0]?.status).toBe('holding');
      },
    );

    it('let a fact go on that failed where it was made', async () => {
      await follow({ id: 7, event: 'after_promote' });
      await follow({ id: 7, event: 'after_promote', status: 'failed' });
      expect((await copies())[0]?.status).toBe('pending');
    });

    it('do not wait for an uncommitted report of the group', async () => {
      const reporter = await contract.session();
      await reporter.query('BEGIN');
      await contract.report(FINE, reporter);
      expect(await follow({ id: 7 })).toBe(true);
      await reporter.query('ROLLBACK');
    });

    it('get an end again while another session has locked the copy', async () => {
      const operator = await contract.session();
      expect(await follow({ id: 8 })).toBe(true);
      await operator.query('BEGIN');
      await operator.query('SELECT FROM mpp_tasks WHERE origin_id = 8 FOR UPDATE');
      expect(await follow({ id: 8, status: 'cancelled' })).toBe(false);
      await operator.query('ROLLBACK');
      expect(await follow({ id: 8, status: 'cancelled' })).toBe(true);
    });
  },
);
