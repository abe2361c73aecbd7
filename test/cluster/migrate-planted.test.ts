import type { Client } from 'pg';
import { afterAll, beforeAll, describe, expect, inject, it } from 'vitest';
import { applyMigrations } from '../../src/postgres/migrate.js';
import { openSession } from '../../src/postgres/session.js';
import { runCli } from '../kit/cli.js';
import { ContractServer } from '../kit/contract.js';
import { installStandin } from '../kit/standin/install.js';

/** Functions whose arguments fit better than those of pg_catalog, as migrations call them. */
const FUNCTIONS = [
  ['quote_ident', 'text', 'text'],
  ['quote_ident', 'name', 'text'],
  ['format', 'text, name', 'text'],
  ['format', 'text, text, text', 'text'],
  ['pg_advisory_lock', 'integer', 'void'],
  ['set_config', 'text, name, boolean', 'text'],
  ['lower', 'varchar', 'text'],
] as const;

describe('migrate in a schema where another role has made objects', () => {
  let server: ContractServer;
  let admin: Client;
  let planter: Client;
  let env: NodeJS.ProcessEnv;

  beforeAll(async () => {
    server = await ContractServer.start(inject('template'));
    await server.createDatabase('planted');
    env = { DATABASE_URL: `postgresql://postgres@${server.server.address}/planted` };
    admin = await server.server.connect('test', 'planted');
    if (!server.server.binaries.hasCitus) await installStandin(admin);
    await admin.query('CREATE ROLE planter LOGIN; GRANT CREATE ON SCHEMA public TO planter');
    planter = await server.server.connect('test', 'planted');
    await planter.query('SET SESSION AUTHORIZATION planter');
    await planter.query('RESET search_path');
    await admin.query('CREATE SCHEMA trace; CREATE TABLE trace.run (what text, run_as name)');
    await admin.query('GRANT USAGE ON SCHEMA trace TO PUBLIC; GRANT INSERT ON trace.run TO PUBLIC');
  });
  afterAll(async () => {
    await Promise.all([admin.end(), planter.end()]);
    await server.stop();
  });

  /** What planted code was run as a role other than the one that planted it. */
  async function gained(): Promise<object[]> {
    const { rows } = await admin.query<object>(
      "SELECT what, run_as FROM trace.run WHERE run_as <> 'planter'",
    );
    return rows;
  }

  async function refusal(): Promise<unknown> {
    const session = await openSession({ ...server.server.connection, database: 'planted' }, 'test');
    return applyMigrations(session, { schema: 'public', lockTimeoutMs: 10_000 })
      .catch((error: unknown) => error)
      .finally(() => session.end());
  }

  it.each(FUNCTIONS)(
    'refuses the function %s(%s) and runs it never',
    async (name, takes, gives) => {
      const signature = `public.${name}(${takes})`;
      await planter.query(`
      CREATE FUNCTION ${signature} RETURNS ${gives} LANGUAGE plpgsql AS $$
      BEGIN INSERT INTO trace.run VALUES ('${name}', current_user); END $$`);
      try {
        expect(await refusal()).toMatchObject({
          code: 'SCHEMA_FOREIGN',
          message: expect.stringMatching(`^role planter has made the function .*${name}`) as string,
        });
        const command = await runCli(['migrate'], env);
        expect(command).toMatchObject({ exitCode: 2, stdout: '' });
        expect(command.stderr).toContain('role planter has made the function');
      } finally {
        await planter.query(`DROP FUNCTION ${signature}`);
      }
      expect(await gained()).toEqual([]);
    },
  );

  it('refuses an operator of PostgreSQL, a table and a view of our names', async () => {
    const planted = [
      [
        `CREATE FUNCTION same(text, name) RETURNS boolean LANGUAGE sql AS 'SELECT true';
         CREATE OPERATOR public.= (LEFTARG = text, RIGHTARG = name, FUNCTION = same)`,
        'DROP OPERATOR public.= (text, name); DROP FUNCTION same',
        'the operator',
      ],
      ['CREATE TABLE mpp_groups (groupid integer)', 'DROP TABLE mpp_groups', 'the relation mpp_g'],
      ['CREATE VIEW mpp_status AS SELECT 1', 'DROP VIEW mpp_status', 'the relation mpp_status'],
    ] as const;
    for (const [plant, remove, named] of planted) {
      await planter.query(plant);
      expect(await refusal()).toMatchObject({
        code: 'SCHEMA_FOREIGN',
        message: expect.stringContaining(named) as string,
      });
      await planter.query(remove);
    }
  });

  it('lets no command read or call what a role has made in place of our schema', async () => {
    await planter.query(`
      CREATE FUNCTION mpp_look() RETURNS text LANGUAGE plpgsql AS $$
      BEGIN INSERT INTO trace.run VALUES ('mpp_look', current_user); RETURN 'x'; END $$;
      CREATE TABLE mpp_tasks (id bigint);
      CREATE VIEW mpp_status AS SELECT mpp_look() AS state;
      CREATE FUNCTION mpp_submit(text, integer, text) RETURNS text LANGUAGE sql AS 'SELECT mpp_look()'`);
    const commands = [
      ['status'],
      ['notify', 'after_promote', '--group', '1', '--host', '127.0.0.1'],
      ['bootstrap'],
    ];
    for (const args of commands) {
      const command = await runCli(args, env);
      expect(command.exitCode, `${args.join(' ')}: ${command.stderr}`).not.toBe(0);
    }
    expect(await gained()).toEqual([]);
    await planter.query(
      'DROP VIEW mpp_status; DROP FUNCTION mpp_submit, mpp_look; DROP TABLE mpp_tasks',
    );
  });

  it('migrates once they are gone', async () => {
    expect(await refusal()).toEqual(expect.arrayContaining(['tasks']));
    expect(await gained()).toEqual([]);
  });
});
