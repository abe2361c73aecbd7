import type { Client } from 'pg';
import { afterAll, beforeAll, describe, expect, inject, it } from 'vitest';
import { markPresent } from '../../src/controller/presence.js';
import { installWrappers } from '../../src/mpp/citus/rights.js';
import { claimTask } from '../../src/tasks/claim.js';
import { endTasks, markHolding, pruneTasks } from '../../src/tasks/finish.js';
import { keepLimits, expire, takeBack } from '../../src/tasks/sweep.js';
import {
  announceSettings,
  pruneMembers,
  reportSuspect,
  writeMembers,
} from '../../src/topology/members.js';
import { type ContractDatabase, ContractServer, FINE, SCHEMAS } from '../kit/contract.js';

/** Functions that a role which may create objects plants, with types that fit calls better than the right ones. */
const PLANTED: readonly (readonly [string, string, string])[] = [
  ['format', 'text, bigint, text, text, integer', 'text'],
  ['format', 'text, integer', 'text'],
  ['format', 'text, bigint', 'text'],
  ['format', 'text, name', 'text'],
  ['format', 'text, text', 'text'],
  ['format', 'text, interval', 'text'],
  ['quote_nullable', 'varchar', 'text'],
  ['quote_literal', 'varchar', 'text'],
  ['concat_ws', 'text, text, text', 'text'],
  ['json_build_object', 'text, bigint, text, integer, text, text, text, text', 'json'],
  ['array_to_string', 'integer[], text', 'text'],
  ['date_trunc', 'varchar, interval', 'interval'],
  ['mpp_has_role', 'name, regrole', 'boolean'],
  ['mpp_has_role', 'name, name', 'boolean'],
  ['mpp_is_controller', 'text', 'boolean'],
  ['mpp_is_installed', 'text, text', 'boolean'],
  ['mpp_is_up', 'varchar', 'boolean'],
  ['mpp_is_host', 'varchar', 'boolean'],
  ['mpp_plain_host', 'varchar', 'text'],
  ['mpp_check_address', 'text, integer, varchar', 'void'],
  ['mpp_supersedes', 'text, text, text, varchar', 'boolean'],
  ['mpp_check_group', 'bigint', 'void'],
  ['mpp_groups_of', 'text', 'integer[]'],
  ['mpp_keep_limits', 'varchar, interval, interval', 'void'],
  ['mpp_duration', 'text', 'text'],
  ['mpp_members_of', 'regrole', 'oid[]'],
  // Without the parameters that have defaults.
  [
    'mpp_submit',
    'event text, groupid integer, nodename text, nodeport integer, source text',
    'bigint',
  ],
];

const OPERATORS: readonly (readonly [string, string, string])[] = [
  ['=', 'oid', 'integer'],
  ['=', 'name', 'text'],
  ['<>', 'integer', 'bigint'],
  ['<=', 'interval', 'text'],
  ['*', 'double precision', 'numeric'],
  ['||', 'text', 'bigint'],
  ['%', 'numeric', 'integer'],
  ['/', 'numeric', 'integer'],
  ['~', 'varchar', 'text'],
];

describe.each(SCHEMAS)('what a role plants, in schema $schema', (place) => {
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

  describe('a client that may create objects in the schema', () => {
    let squatter: Client;

    beforeAll(async () => {
      await db.query('CREATE ROLE squatter LOGIN IN ROLE mpp_client');
      await db.query(`GRANT CREATE ON SCHEMA ${contract.quotedSchema} TO squatter`);
      squatter = await contract.session({ user: 'squatter' });
      await squatter.query('CREATE TABLE trace (what text, run_as name DEFAULT current_user)');
      await squatter.query('GRANT ALL ON trace TO PUBLIC');
      const trace = `${contract.quotedSchema}.trace`;
      for (const [name, types, returns] of PLANTED) {
        await squatter.query(
          `
          CREATE FUNCTION ${contract.quotedSchema}.${name}(${types}) RETURNS ${returns} LANGUAGE plpgsql
          AS $$ BEGIN INSERT INTO ${trace} VALUES ('${name}(${types})'); RETURN NULL; END $$`.replace(
            returns === 'void' ? 'RETURN NULL;' : '',
            '',
          ),
        );
      }
      for (const [index, [name, left, right]] of OPERATORS.entries()) {
        await squatter.query(`
          CREATE FUNCTION operator_${index}(${left}, ${right}) RETURNS boolean LANGUAGE plpgsql
          AS $$ BEGIN INSERT INTO ${trace} VALUES ('${name}(${left}, ${right})'); RETURN true; END $$`);
        await squatter.query(`
          CREATE OPERATOR ${contract.quotedSchema}.${name}
            (LEFTARG = ${left}, RIGHTARG = ${right}, FUNCTION = operator_${index})`);
      }
      await squatter.query('DELETE FROM trace');
    });

    /** What was run as another role than the one who planted it. */
    async function gained(): Promise<object[]> {
      const { rows } = await db.query<object>(
        "SELECT DISTINCT what, run_as FROM trace WHERE run_as <> 'squatter'",
      );
      return rows;
    }

    it('runs nothing with the rights of the owner by reporting', async () => {
      for (const session of [squatter, client]) {
        await contract.report({ ...FINE, timeout: '1 day', cooldown: '0' }, session);
        await contract.report({ ...FINE, secondaries: ['w:1'] }, session);
        await session.query("SELECT mpp_submit('suspect', 1, 'w')");
        await session.query("SELECT mpp_report(1, 'w', 5432, 'leader')");
        await session.query('SELECT * FROM mpp_my_tasks');
        await session.query('SELECT mpp_task_status(max(id)) FROM mpp_my_tasks');
        await session.query("SELECT mpp_submit('nonsense', 1, 'w')").catch(() => undefined);
        await session.query("SELECT mpp_submit('suspect', 1, 'w w')").catch(() => undefined);
      }
      expect(await gained()).toEqual([]);
    });

    it('runs nothing with the rights of the controller', async () => {
      await markPresent(controller, { id: 'c', version: '0', strategy: 's', maxHolds: 1 });
      await keepLimits(controller, 'c', { maxTimeoutMs: 60_000, minCooldownMs: 2_000 });
      await announceSettings(controller, 'c', { memberTtlMs: 30_000, verify: 'on' });
      await contract.report(FINE, client);
      const claimed = await claimTask(controller, {
        ...{ controller: 'c', busy: [], held: [], open: true },
      });
      const attempt = { controller: 'c', id: claimed?.task.id ?? '', attempt: 1 };
      await markHolding(controller, attempt, 7, null);
      await endTasks(controller, [attempt], { status: 'done', reason: null });
      await expire(controller);
      await takeBack(controller, { busy: [], held: [] });
      await pruneTasks(controller, 3_600_000);
      await pruneMembers(controller, 3_600_000);
      const member = { groupid: 1, address: { host: 'w', port: 1 }, role: 'primary' } as const;
      const report = { ...member, state: 'running', seenAt: performance.now() };
      await writeMembers(controller, 'probe', [report], 1_000);
      const nodes = `SELECT 1 AS nodeid, 3 AS groupid, 'w'::text AS nodename, 1 AS nodeport,
                            'primary'::text AS noderole, true AS in_cluster`;
      const known = { groupid: 3, address: member.address, registered: 'primary' } as const;
      expect(await reportSuspect(controller, nodes, known, 10_000)).toMatch(/^\d+$/);
      await controller.query("SELECT @mpp.mpp_is_installed('mpp_add_node'::name, 'text'::text)");
      for (const view of ['mpp_topology', 'mpp_queue', 'mpp_holds', 'mpp_status']) {
        await controller.query(`SELECT * FROM @mpp.${view}`);
      }
      expect(await gained()).toEqual([]);
    });

    it('is not called as the superuser when bootstrap installs what it has planted', async () => {
      await squatter.query(`
        CREATE FUNCTION mpp_remove_node(host text, port integer) RETURNS void LANGUAGE plpgsql
        AS $$ BEGIN INSERT INTO trace VALUES ('planted'); END $$`);
      await squatter.query('GRANT EXECUTE ON FUNCTION mpp_remove_node TO PUBLIC');
      const ask = `SELECT @mpp.mpp_is_installed('mpp_remove_node'::name, 'text, integer'::text) AS installed`;
      expect((await controller.query(ask)).rows).toEqual([{ installed: false }]);
      expect(await installWrappers(db, place.schema)).toContain('mpp_remove_node');
      expect(await installWrappers(db, place.schema)).toEqual([]);
      expect((await controller.query(ask)).rows).toEqual([{ installed: true }]);
      const { rows } = await db.query(
        `SELECT proowner::regrole::text AS owner, has_function_privilege('the_client', oid, 'EXECUTE') AS open
         FROM pg_proc WHERE proname = 'mpp_remove_node'`,
      );
      expect(rows).toEqual([{ owner: 'postgres', open: false }]);
    });

    it('gains nothing by what it has in pg_temp', async () => {
      await squatter.query(`
        CREATE TEMPORARY TABLE mpp_limits (is_only boolean, max_timeout interval, min_cooldown interval,
          set_by text, set_at timestamptz);
        INSERT INTO mpp_limits VALUES (true, '1 day', '0');
        CREATE TEMPORARY TABLE mpp_group_grants (role_oid oid, groupid integer, role_name name, members oid[]);
        CREATE FUNCTION pg_temp.mpp_is_controller(name) RETURNS boolean LANGUAGE sql AS 'SELECT true';
        CREATE FUNCTION pg_temp.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS 'SELECT NULL::timestamptz'`);
      const { rows } = await squatter.query(
        `INSERT INTO ${contract.quotedSchema}.mpp_tasks (event, groupid, nodename, timeout)
         VALUES ('suspect', 1, 'w', '1 day') RETURNING id`,
      );
      const [task] = (
        await db.query(
          `SELECT timeout < '1 day' AS cut, created_at IS NOT NULL AS dated FROM mpp_tasks WHERE id = $1`,
          [(rows[0] as { id: string }).id],
        )
      ).rows as object[];
      expect(task).toEqual({ cut: true, dated: true });
    });
  });
});
