import type { Client } from 'pg';
import { afterAll, beforeAll, describe, expect, inject, it } from 'vitest';
import { installWrappers } from '../../src/mpp/citus/rights.js';
import {
  type ContractDatabase,
  ContractServer,
  FINE,
  SCHEMAS,
  sqlstateOf,
} from '../kit/contract.js';
import { LONGEST_HOST } from '../kit/host-cases.js';

const DENIED = '42501';

describe.each(SCHEMAS)('what each role can do at worst, in schema $schema', (place) => {
  let server: ContractServer;
  let contract: ContractDatabase;
  let db: Client;
  let controller: Client;
  let client: Client;

  beforeAll(async () => {
    server = await ContractServer.start(inject('template'));
    contract = await server.database(place.database, place.schema);
    db = contract.db;
    await db.query('CREATE ROLE the_client LOGIN IN ROLE mpp_client');
    await db.query('CREATE ROLE the_controller LOGIN IN ROLE mpp_controller');
    client = await contract.session({ user: 'the_client' });
    controller = await contract.session({
      user: 'the_controller',
      searchPath: 'pg_catalog, pg_temp',
    });
  });
  afterAll(async () => server.stop());

  it('a login role without rights wakes the controller and hears of ends, no more', async () => {
    await db.query('CREATE ROLE nobody LOGIN');
    const nobody = await contract.session({ user: 'nobody' });
    const heard: (string | undefined)[] = [];
    nobody.on('notification', ({ payload }) => heard.push(payload));
    await nobody.query('LISTEN mpp_task_status');
    await nobody.query('NOTIFY mpp_tasks');
    const id = await contract.report({ ...FINE, nodename: 'secret' });
    await db.query('SELECT mpp_cancel($1)', [id]);
    await nobody.query('SELECT');
    expect(heard.join()).toContain(`"id" : ${id}`);
    expect(heard.join()).not.toContain('secret');
    const { rows } = await db.query<{ relation: string; open: boolean }>(
      `SELECT c.relname AS relation FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
       WHERE n.nspname = $1 AND c.relname LIKE 'mpp%' AND c.relkind IN ('r', 'v', 'S')
         AND has_table_privilege('nobody', c.oid, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE, TRIGGER')
       UNION ALL
       SELECT p.proname FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace
       WHERE n.nspname = $1 AND p.proname LIKE 'mpp%' AND p.proowner = 10
         AND has_function_privilege('nobody', p.oid, 'EXECUTE')`,
      [place.schema],
    );
    expect(rows).toEqual([]);
  });

  it('the owner of the schema is not made a superuser by what bootstrap installs', async () => {
    await db.query('CREATE ROLE the_owner LOGIN');
    await db.query(`ALTER SCHEMA ${contract.quotedSchema} OWNER TO the_owner`);
    await installWrappers(db, place.schema);
    const owner = await contract.session({ user: 'the_owner' });
    const change = 'ALTER FUNCTION mpp_add_node(text, integer, integer, text) SECURITY INVOKER';
    expect(await sqlstateOf(owner, change)).toBe(DENIED);
    // It may drop what is in its schema, and put its own in its place.
    await owner.query(`
      DROP FUNCTION mpp_add_node(text, integer, integer, text);
      CREATE FUNCTION mpp_add_node(text, integer, integer, text) RETURNS integer
      LANGUAGE sql SECURITY DEFINER AS 'SELECT 1'`);
    const ask = `SELECT @mpp.mpp_is_installed('mpp_add_node'::name, 'text, integer, integer, text'::text) AS installed`;
    expect((await controller.query(ask)).rows).toEqual([{ installed: false }]);
    const { rows } = await db.query<{ body: string }>(
      "SELECT prosrc AS body FROM pg_proc WHERE proname IN ('mpp_remove_node', 'mpp_set_coordinator_host')",
    );
    for (const { body } of rows) expect(body).not.toMatch(/mpp_/);
    await db.query(`ALTER SCHEMA ${contract.quotedSchema} OWNER TO postgres`);
  });

  describe('a client', () => {
    it.each([
      ['role', 'mpp_client'],
      ['search_path', 'pg_temp'],
      ['mpp.node_before', '[1]'],
      ['mpp.objects_path', 'evil'],
      ['citus.enable_ddl_propagation', 'off'],
      ['default_transaction_isolation', 'serializable'],
      ['DateStyle', 'SQL, DMY'],
      ['IntervalStyle', 'iso_8601'],
      ['standard_conforming_strings', 'off'],
      ['lock_timeout', '1'],
      ['check_function_bodies', 'off'],
      ['client_min_messages', 'error'],
    ])('reports as itself, within its limits, whatever it sets %s to', async (name, value) => {
      const session = await contract.session({ user: 'the_client' });
      await session.query('SELECT set_config($1, $2, false)', [name, value]);
      await session.query(
        `INSERT INTO ${contract.quotedSchema}.mpp_tasks (event, groupid, nodename, timeout)
         VALUES ('suspect', 1, 'w', '1 day')`,
      );
      const { rows } = await db.query(
        `SELECT t.created_by, t.source, t.status, t.timeout < '1 day' AS cut, l.node_before, l.logged_by
         FROM mpp_tasks AS t JOIN mpp_task_log AS l ON l.task_id = t.id
         WHERE t.id = (SELECT max(id) FROM mpp_tasks)`,
      );
      const by = { created_by: 'the_client', logged_by: 'the_client' };
      const task = { source: 'client', status: 'pending', cut: true, node_before: null };
      expect(rows).toEqual([{ ...by, ...task }]);
    });

    it.each([
      "SET session_replication_role = 'replica'",
      'SET SESSION AUTHORIZATION postgres',
      'SET ROLE mpp_controller',
      'SET ROLE postgres',
    ])('may not %s', async (text) => {
      expect(await sqlstateOf(client, text)).toBe(DENIED);
    });

    it.each([
      "SELECT mpp_grant_group('the_client', 1)",
      "SELECT mpp_keep_limits('c', '1 day', '0')",
      "SELECT mpp_is_installed('mpp_add_node'::name, 'text'::text)",
      "SELECT mpp_groups_of('postgres'::name)",
      "SELECT mpp_has_role('postgres'::name, 10::oid)",
      'SELECT * FROM mpp_group_grants',
      "UPDATE mpp_limits SET max_timeout = '1 day'",
      'DELETE FROM mpp_limits',
    ])('may not %s', async (text) => {
      expect(await sqlstateOf(client, text)).toBe(DENIED);
    });

    it('has its longest report notified to those who listen', async () => {
      const heard: (string | undefined)[] = [];
      const listener = await contract.session();
      listener.on('notification', ({ payload }) => heard.push(payload));
      await listener.query('LISTEN mpp_task_status');
      const secondaries = Array.from({ length: 64 }, (_, n) => `${LONGEST_HOST}:${n + 1}`);
      const values = { ...FINE, nodename: LONGEST_HOST, nodeport: 65_535, secondaries };
      const id = await contract.report(values, client);
      await db.query('SELECT mpp_cancel($1)', [id]);
      await listener.query('SELECT');
      const told = { id: Number(id), groupid: 1, event: 'before_demote', status: 'cancelled' };
      expect(heard.map((payload) => JSON.parse(payload ?? '') as object)).toContainEqual(told);
    });

    it('writes no line of its own into a log by the state of a member', async () => {
      for (const state of ['run\nERROR', 'run\rning', 'a\u001b[2J', 'a\u0085b']) {
        const text = "SELECT mpp_report(1, 'w', 5432, 'primary', $1)";
        expect(await sqlstateOf(client, text, [state])).toBe('22023');
      }
    });
  });
});
