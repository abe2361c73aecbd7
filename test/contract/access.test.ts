import type { Client } from 'pg';
import { afterAll, beforeAll, beforeEach, describe, expect, inject, it } from 'vitest';
import { claimTask } from '../../src/tasks/claim.js';
import { completeTasks, endTasks, markHolding } from '../../src/tasks/finish.js';
import { keepLimits } from '../../src/tasks/sweep.js';
import {
  type ContractDatabase,
  ContractServer,
  FINE,
  refusal,
  SCHEMAS,
  sqlstateOf,
} from '../kit/contract.js';

const DENIED = '42501';
const DEFAULTS = { maxTimeoutMs: 300_000, minCooldownMs: 1_000 };

describe.each(SCHEMAS)('what a client may ask for, in schema $schema', ({ schema, database }) => {
  let server: ContractServer;
  let contract: ContractDatabase;
  let client: Client;
  let other: Client;
  let operator: Client;
  let controller: Client;

  beforeAll(async () => {
    server = await ContractServer.start(inject('template'));
    contract = await server.database(database, schema);
    const login = async (user: string, role: string): Promise<Client> => {
      await contract.db.query(`CREATE ROLE ${user} LOGIN IN ROLE ${role}`);
      return contract.session({ user });
    };
    client = await login('the_client', 'mpp_client');
    other = await login('another_client', 'mpp_client');
    operator = await login('the_operator', 'mpp_operator');
    controller = await login('the_controller', 'mpp_controller');
  });
  beforeEach(async () => {
    await contract.clear();
    await keepLimits(contract.db, 'c', DEFAULTS);
  });
  afterAll(async () => server.stop());

  const claim = () => claimTask(controller, { controller: 'c', busy: [], held: [], open: true });
  const first = (id: string) => ({ controller: 'c', id, attempt: 1 });

  async function stored(id: string): Promise<object | undefined> {
    const { rows } = await contract.db.query<object>(
      `SELECT extract(epoch FROM timeout)::float8 AS timeout,
              extract(epoch FROM cooldown)::float8 AS cooldown, reason
       FROM mpp_tasks WHERE id = $1`,
      [id],
    );
    return rows[0];
  }

  describe('the source of a task', () => {
    it.each(['sync', 'probe'])(
      'can be %s for a controller and a superuser alone',
      async (source) => {
        for (const session of [client, operator]) {
          const values = [source];
          for (const text of [
            "INSERT INTO mpp_tasks (event, groupid, nodename, source) VALUES ('suspect', 1, 'w', $1)",
            "SELECT mpp_submit('suspect', 1, 'w', source => $1)",
            "INSERT INTO mpp_tasks (event, groupid, nodename, source) SELECT 'suspect', 1, 'w', $1",
          ]) {
            const error = await refusal(session, { text, parameters: values });
            expect(error).toMatchObject({
              code: DENIED,
              column: 'source',
              hint: 'Leave source out.',
            });
            expect(error.message).toContain('no member of mpp_controller');
          }
        }
        await contract.report({ ...FINE, source }, controller);
        await contract.report({ ...FINE, source });
      },
    );

    it('is not taken from a role that the session has only put on', async () => {
      await contract.db.query('GRANT mpp_client TO the_controller');
      await controller.query('SET ROLE mpp_client');
      await controller.query("SELECT mpp_submit('suspect', 1, 'w', source => 'probe')");
      await controller.query('RESET ROLE');
      await contract.db.query('REVOKE mpp_client FROM the_controller');
    });
  });

  describe('the rows of pg_dist_node in the log', () => {
    const SET = `SELECT set_config('mpp.node_before', $1, false), set_config('mpp.node_after', $1, false)`;
    const logged = async (): Promise<object[]> => {
      const { rows } = await contract.db.query<object>(
        'SELECT node_before, node_after FROM mpp_task_log WHERE node_before IS NOT NULL OR node_after IS NOT NULL',
      );
      return rows;
    };

    it.each(['[{"nodeid": 666}]', 'no JSON', '"\\u0000"'])(
      'are not what a client or an operator says: %s',
      async (said) => {
        for (const session of [client, operator]) {
          await session.query(SET, [said]);
          await contract.report(FINE, session);
          await contract.report(FINE, session);
        }
        const id = await contract.report(FINE, operator);
        await operator.query('SELECT mpp_cancel($1)', [id]);
        await operator.query('SELECT mpp_release(1)');
        expect(await logged()).toEqual([]);
        for (const session of [client, operator]) await session.query('RESET ALL');
        await operator.query(`SET search_path = ${contract.quotedSchema}`);
        await client.query(`SET search_path = ${contract.quotedSchema}`);
      },
    );

    it('are what the controller says', async () => {
      const id = await contract.report(FINE, client);
      await claim();
      await controller.query('BEGIN');
      await controller.query(SET, ['[{"nodeid": 7}]']);
      await completeTasks(controller, [first(id)], { nodeid: 7, reason: null });
      await controller.query('ROLLBACK; BEGIN');
      await controller.query("SELECT set_config('mpp.node_before', '[7]', true)");
      await completeTasks(controller, [first(id)], { nodeid: 7, reason: null });
      await controller.query('COMMIT');
      expect(await logged()).toEqual([{ node_before: [7], node_after: null }]);
    });
  });

  describe('timeout and cooldown', () => {
    const CASES = [
      [{ timeout: '5 min', cooldown: '1 s' }, 300, 1, null],
      [{ timeout: '1 day' }, 300, 10, 'timeout cut from 1 day to 5 minutes (MPP_MAX_TIMEOUT)'],
      [
        { timeout: '5 min 1 ms' },
        300,
        10,
        'timeout cut from 300001 ms to 5 minutes (MPP_MAX_TIMEOUT)',
      ],
      [{ cooldown: '0' }, 30, 1, 'cooldown raised from 0 seconds to 1 second (MPP_MIN_COOLDOWN)'],
      [{ cooldown: '999 ms' }, 30, 1, 'cooldown raised from 999 ms to 1 second (MPP_MIN_COOLDOWN)'],
      [
        { timeout: '90 min', cooldown: '1 us' },
        300,
        1,
        'timeout cut from 90 minutes to 5 minutes (MPP_MAX_TIMEOUT); ' +
          'cooldown raised from 0.001 ms to 1 second (MPP_MIN_COOLDOWN)',
      ],
      // A default is no wish, so there is nothing to say of it.
      [{ timeout: '1 s' }, 1, 1, null],
      [{}, 30, 10, null],
      [{ event: 'suspect' }, 10, 5, null],
    ] as const;

    it.each(CASES)('of a client: %j', async (asked, timeout, cooldown, reason) => {
      const id = await contract.report({ ...FINE, ...asked }, client);
      expect(await stored(id)).toEqual({ timeout, cooldown, reason });
    });

    it('are as an operator, a controller or a superuser asks', async () => {
      for (const session of [operator, controller, contract.db]) {
        const id = await contract.report({ ...FINE, timeout: '1 day', cooldown: '0' }, session);
        expect(await stored(id)).toEqual({ timeout: 86_400, cooldown: 0, reason: null });
      }
    });

    it('follow the settings of the active controller, defaults too', async () => {
      await keepLimits(controller, 'c', { maxTimeoutMs: 8_000, minCooldownMs: 5_000 });
      const by_default = await contract.report(FINE, client);
      expect(await stored(by_default)).toEqual({ timeout: 8, cooldown: 5, reason: null });
      const { rows } = await operator.query('SELECT set_by FROM mpp_limits');
      expect(rows).toEqual([{ set_by: 'c' }]);
      for (const session of [client, operator]) {
        expect(await sqlstateOf(session, "UPDATE mpp_limits SET max_timeout = '1 day'")).toBe(
          DENIED,
        );
        const keep = "SELECT mpp_keep_limits('x', '1 day', '0')";
        expect(await sqlstateOf(session, keep)).toBe(DENIED);
      }
    });

    it('out of range are refused, not cut', async () => {
      const months = '12 months -359 days -23:59:59';
      const asked_for = [
        ...[{ timeout: '2 days' }, { timeout: '-1 s' }, { cooldown: '-1 s' }],
        ...[{ timeout: months }, { cooldown: months }, { timeout: '1 month -30 days 1 s' }],
        ...[{ timeout: '-1 year 360 days 1 s' }],
      ];
      for (const asked of asked_for) {
        const columns = { ...FINE, ...asked };
        const text = `INSERT INTO mpp_tasks (${Object.keys(columns).join()}) VALUES ($1, $2, $3, $4)`;
        expect(await sqlstateOf(client, text, Object.values(columns))).toBe('22023');
      }
    });

    it('that were cut are in reason until the end, and in the log', async () => {
      const cut = 'timeout cut from 10 minutes to 5 minutes (MPP_MAX_TIMEOUT)';
      const id = await contract.report({ ...FINE, timeout: '10 min' }, client);
      await claim();
      expect(await contract.status(id)).toMatchObject({ status: 'claimed', reason: cut });
      await markHolding(controller, first(id), 7, 'only writes are paused');
      await markHolding(controller, first(id), 7, 'only writes are paused');
      const reason = `${cut}; only writes are paused`;
      expect(await contract.status(id)).toEqual({ status: 'holding', reason });
      await endTasks(controller, [first(id)], { status: 'done', reason: null });
      expect(await contract.status(id)).toEqual({ status: 'done', reason: cut });
      const { rows } = await contract.db.query(
        'SELECT reason FROM mpp_task_log WHERE task_id = $1 ORDER BY id',
        [id],
      );
      expect(rows).toEqual([cut, cut, reason, cut].map((text) => ({ reason: text })));
    });

    it('are kept while a transaction has the row of the limits', async () => {
      await contract.db.query('BEGIN');
      await contract.db.query('SELECT FROM mpp_limits FOR UPDATE');
      await contract.report(FINE, client);
      await keepLimits(controller, 'c', { maxTimeoutMs: 8_000, minCooldownMs: 5_000 });
      await contract.db.query('COMMIT');
    });
  });

  describe('a client and its own tasks', () => {
    it('gets the id of what it inserts, and sees how that stands', async () => {
      const id = await contract.report(FINE, client);
      await contract.report({ ...FINE, groupid: 2 }, other);
      const { rows } = await client.query('SELECT id, event, groupid, status FROM mpp_my_tasks');
      expect(rows).toEqual([{ id, event: 'before_demote', groupid: 1, status: 'pending' }]);
      expect((await client.query('SELECT id FROM mpp_tasks')).rows).toHaveLength(2);
      for (const column of ['status', 'nodename', 'created_by', '*', 'xmin', 'ctid']) {
        expect(await sqlstateOf(client, `SELECT ${column} FROM mpp_tasks`)).toBe(DENIED);
      }
      const lock = 'DO $$ BEGIN LOCK TABLE mpp_tasks IN ACCESS SHARE MODE; END $$';
      expect(await sqlstateOf(client, lock)).toBe(DENIED);
      expect(await sqlstateOf(client, 'SELECT id FROM mpp_tasks FOR KEY SHARE')).toBe(DENIED);
      expect(await sqlstateOf(client, "UPDATE mpp_my_tasks SET status = 'done'")).toBe('55000');
    });

    it('learns nothing of the tasks of others by a function that sees each row', async () => {
      await contract.report({ ...FINE, nodename: 'secret' }, other);
      await client.query(`
        CREATE FUNCTION pg_temp.leak(text) RETURNS boolean LANGUAGE plpgsql COST 0.0001
        AS $$ BEGIN RAISE NOTICE 'seen %', $1; RETURN true; END $$`);
      const seen: (string | undefined)[] = [];
      client.on('notice', (notice) => seen.push(notice.message));
      await client.query('SELECT * FROM mpp_my_tasks WHERE pg_temp.leak(nodename)');
      expect(seen).toEqual([]);
    });

    it('asks for the status of its own tasks alone; an operator for that of all', async () => {
      const id = await contract.report(FINE, client);
      const ask = 'SELECT status FROM mpp_task_status($1)';
      for (const session of [client, operator, controller]) {
        expect((await session.query(ask, [id])).rows).toEqual([{ status: 'pending' }]);
      }
      for (const text of [ask, "CALL mpp_wait($1, '1 ms', NULL)"]) {
        const error = await refusal(other, { text, parameters: [id] });
        expect(error).toMatchObject({
          code: DENIED,
          message: `task ${id} was reported by another role`,
        });
      }
    });

    it('sees all that are open and the last 1000 that have ended, without reading the others', async () => {
      await contract.db.query(`
        ALTER TABLE mpp_tasks DISABLE TRIGGER USER;
        INSERT INTO mpp_tasks (event, groupid, nodename, timeout, cooldown, status, finished_at, created_by)
        SELECT 'suspect', 1, 'w', '1 s', '1 s', 'done', now(), CASE WHEN n % 15 = 0 THEN 'the_client' ELSE 'x' END
        FROM generate_series(1, 20000) AS n;
        ALTER TABLE mpp_tasks ENABLE TRIGGER USER;
        ANALYZE mpp_tasks`);
      await contract.report(FINE, client);
      const { rows } = await client.query<{ status: string }>('SELECT status FROM mpp_my_tasks');
      expect(rows.filter(({ status }) => status === 'pending')).toHaveLength(1);
      expect(rows.filter(({ status }) => status === 'done')).toHaveLength(1_000);
      const explained = await client.query('EXPLAIN TABLE mpp_my_tasks');
      const plan = JSON.stringify(explained.rows);
      expect(plan).not.toContain('Seq Scan');
      expect(plan).toContain('mpp_tasks_created_by');
    });
  });
});
