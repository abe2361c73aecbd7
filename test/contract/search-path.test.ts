import type { Client } from 'pg';
import { afterAll, beforeAll, describe, expect, inject, it } from 'vitest';
import { ContractServer, SCHEMAS, type ContractDatabase } from '../kit/contract.js';

/**
 * What an attacker puts into a schema of his own: things with the names that our functions use, each
 * of which leaves a trace, with who has run it, when it is touched.
 */
const TRAPS = `
  CREATE SCHEMA evil;
  GRANT USAGE ON SCHEMA evil TO PUBLIC;
  CREATE TABLE evil.trace (what text, run_as name DEFAULT current_user);
  GRANT INSERT ON evil.trace TO PUBLIC;
  CREATE TABLE evil.mpp_tasks (id bigint, event text, groupid integer, nodename text, nodeport integer,
    secondaries text[], timeout interval, cooldown interval, pause text, source text, status text);
  CREATE TABLE evil.mpp_members (nodename text, nodeport integer, source text, groupid integer, role text,
    state text, timeline integer, since timestamptz, PRIMARY KEY (nodename, nodeport, source));
  CREATE TABLE evil.mpp_task_log (LIKE evil.mpp_tasks);
  CREATE SEQUENCE evil.mpp_tasks_id_seq;
  GRANT ALL ON ALL TABLES IN SCHEMA evil TO PUBLIC;

  CREATE FUNCTION evil.mpp_check_address(text, integer, text) RETURNS void LANGUAGE sql
    AS $$ INSERT INTO evil.trace VALUES ('mpp_check_address') $$;
  CREATE FUNCTION evil.mpp_supersedes(text, text, text, text) RETURNS boolean LANGUAGE sql
    AS $$ INSERT INTO evil.trace VALUES ('mpp_supersedes'); SELECT false $$;
  CREATE FUNCTION evil.mpp_submit(text, integer, text, integer, text[], interval, interval, text)
    RETURNS bigint LANGUAGE sql
    AS $$ INSERT INTO evil.trace VALUES ('mpp_submit'); SELECT 1::bigint $$;
  CREATE FUNCTION evil.mpp_task_status(id bigint, OUT status text, OUT reason text) LANGUAGE sql
    AS $$ INSERT INTO evil.trace VALUES ('mpp_task_status'); SELECT 'done', 'trapped' $$;
  CREATE FUNCTION evil.clock_timestamp() RETURNS timestamptz LANGUAGE sql
    AS $$ INSERT INTO evil.trace VALUES ('clock_timestamp'); SELECT now() $$;
  CREATE FUNCTION evil.pg_notify(text, text) RETURNS void LANGUAGE sql
    AS $$ INSERT INTO evil.trace VALUES ('pg_notify') $$;
  CREATE FUNCTION evil.format(text, bigint, text, text, integer) RETURNS text LANGUAGE sql
    AS $$ INSERT INTO evil.trace VALUES ('format'); SELECT 'trapped' $$;
  CREATE FUNCTION evil.times(double precision, numeric) RETURNS double precision LANGUAGE sql
    AS $$ INSERT INTO evil.trace VALUES ('times'); SELECT 0.01::double precision $$;
  CREATE OPERATOR evil.* (LEFTARG = double precision, RIGHTARG = numeric, FUNCTION = evil.times);
  CREATE FUNCTION evil.same(oid, integer) RETURNS boolean LANGUAGE sql
    AS $$ INSERT INTO evil.trace VALUES ('same'); SELECT true $$;
  CREATE OPERATOR evil.= (LEFTARG = oid, RIGHTARG = integer, FUNCTION = evil.same)`;

describe.each(SCHEMAS)('a hostile search_path, schema $schema', ({ schema, database }) => {
  let server: ContractServer;
  let contract: ContractDatabase;
  let caller: Client;

  beforeAll(async () => {
    server = await ContractServer.start(inject('template'));
    contract = await server.database(database, schema);
    await contract.db.query(TRAPS);
    caller = await contract.session({ searchPath: `evil, ${contract.quotedSchema}` });
  });
  afterAll(async () => server.stop());

  async function traces(): Promise<object[]> {
    const { rows } = await contract.db.query<object>('SELECT what, run_as FROM evil.trace');
    return rows;
  }

  it('reaches none of the functions that run as their owner', async () => {
    const own = contract.quotedSchema;
    const insert = `INSERT INTO ${own}.mpp_tasks (event, groupid, nodename) VALUES ('suspect', 1, 'w')`;
    await caller.query(insert);
    await caller.query(insert);
    const { rows } = await caller.query<{ id: string }>(
      `SELECT ${own}.mpp_submit('before_demote', 1, 'w') AS id`,
    );
    expect((await contract.status(rows[0]?.id ?? '')).status).toBe('pending');
    await caller.query(`SELECT ${own}.mpp_task_status($1)`, [rows[0]?.id]);
    await caller.query(`SELECT ${own}.mpp_cancel($1)`, [rows[0]?.id]);
    await caller.query(`SELECT ${own}.mpp_release(1)`);
    await caller.query(`SELECT ${own}.mpp_rebuild_cache()`);
    await caller.query(`SELECT ${own}.mpp_ignore_replication_slot('s', 'logical', 'd', 'p')`);
    await caller.query(`SELECT ${own}.mpp_report(1, 'w', 5432, 'leader')`);
    await caller.query(`SELECT * FROM ${own}.mpp_topology`);
    await caller.query(`SELECT * FROM ${own}.mpp_queue, ${own}.mpp_holds, ${own}.mpp_status`);
    expect(await traces()).toEqual([]);
    expect((await contract.db.query('SELECT FROM evil.mpp_tasks')).rows).toEqual([]);
  });

  it('reaches none of the procedures, though they cannot pin their own', async () => {
    const own = contract.quotedSchema;
    const { rows } = await caller.query<{ id: string; status: string }>(
      `CALL ${own}.mpp_request('before_demote', 2, 'w', timeout => '20 ms', id => NULL, status => NULL)`,
    );
    expect(rows).toEqual([{ id: expect.any(String) as string, status: 'pending' }]);
    await caller.query(`CALL ${own}.mpp_wait($1, '20 ms', NULL)`, [rows[0]?.id]);
    expect(await traces()).toEqual([]);
  });

  it('does not find what a caller has in pg_temp', async () => {
    const session = await contract.session();
    await session.query(`
      CREATE TEMPORARY TABLE mpp_tasks (LIKE evil.mpp_tasks);
      CREATE TEMPORARY TABLE mpp_task_log (LIKE evil.mpp_tasks)`);
    const { rows } = await session.query<{ id: string }>(
      "SELECT mpp_submit('before_demote', 3, 'w') AS id",
    );
    expect((await contract.status(rows[0]?.id ?? '')).status).toBe('pending');
    expect((await session.query('SELECT FROM pg_temp.mpp_tasks')).rows).toEqual([]);
  });

  it('finds the traps when they are asked for: they do work', async () => {
    await caller.query("SELECT format('%s', 1::bigint, 'a'::text, 'b'::text, 1)");
    await caller.query('SELECT 1::oid = 1, 1::double precision * 1.5');
    expect(await traces()).toEqual([
      { what: 'format', run_as: 'postgres' },
      { what: 'same', run_as: 'postgres' },
      { what: 'times', run_as: 'postgres' },
    ]);
  });
});
