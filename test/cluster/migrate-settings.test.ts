import type { Client } from 'pg';
import { afterAll, beforeAll, describe, expect, inject, it } from 'vitest';
import { applyMigrations } from '../../src/postgres/migrate.js';
import { bookkeepingSchema } from '../../src/postgres/schema-name.js';
import { MIGRATION_SETTINGS } from '../../src/postgres/migration-session.js';
import { sqlState } from '../../src/postgres/sqlstate.js';
import { openSession } from '../../src/postgres/session.js';
import { contractObjects } from '../kit/contract-objects.js';
import { ContractServer } from '../kit/contract.js';

const template = inject('template');
const { hasCitus } = template.binaries;

/** What a database or a role may have, and would change what a migration makes, or keep it from making it. */
const HOSTILE: readonly [name: string, value: string][] = [
  ['default_table_access_method', 'other_heap'],
  ['default_tablespace', 'elsewhere'],
  ['default_transaction_isolation', 'serializable'],
  ['default_transaction_deferrable', 'on'],
  ['standard_conforming_strings', 'off'],
  ['transform_null_equals', 'on'],
  ['array_nulls', 'off'],
  ['quote_all_identifiers', 'on'],
  ['xmloption', 'document'],
  ['check_function_bodies', 'off'],
  ['row_security', 'off'],
  ['restrict_nonsystem_relation_kind', 'view, foreign-table'],
  ['session_replication_role', 'replica'],
  ['plpgsql.extra_errors', 'all'],
  ['plpgsql.variable_conflict', 'use_column'],
  ['search_path', ''],
  ['client_encoding', 'SQL_ASCII'],
  ['DateStyle', 'SQL, DMY'],
  ['IntervalStyle', 'sql_standard'],
  ['TimeZone', 'Asia/Kathmandu'],
  ['lock_timeout', '1ms'],
  ['bytea_output', 'escape'],
  ['extra_float_digits', '-15'],
  ['client_min_messages', 'debug5'],
];
const HOSTILE_TO_CITUS: readonly [name: string, value: string][] = [
  ['citus.use_citus_managed_tables', 'on'],
  ['citus.enable_schema_based_sharding', 'on'],
  ['citus.propagate_set_commands', 'local'],
  ['citus.enable_ddl_propagation', 'on'],
  ['citus.enable_local_reference_table_foreign_keys', 'off'],
];
/**
 * Where triggers are off, no report is checked: nothing that a function could put right. A regular
 * expression of mpp_check_secondaries has backslashes, which the other setting changes.
 */
const CHANGES_ANSWERS = new Set(['session_replication_role', 'standard_conforming_strings']);
/** What the functions of the contract leave behind, as numbers and words that no style changes. */
const CALLS = [
  "SELECT public.mpp_submit('before_demote', 1, 'worker-1', secondaries => ARRAY['worker-2:5432'])",
  "SELECT public.mpp_submit('suspect', 2, 'worker-3', timeout => '1 min 30 s', cooldown => '-1 s')",
  "SELECT public.mpp_submit('suspect', 2, 'worker-3', secondaries => '{NULL}')",
  "CALL public.mpp_request('after_promote', 3, 'worker-4', timeout => '1 ms')",
  "SELECT public.mpp_report(1, 'worker-1', 5432, 'master')",
  "SELECT public.mpp_report(1, 'worker-1', 5432, 'replica', 'streaming', 3)",
  'SELECT public.mpp_cancel(max(id)) FROM public.mpp_tasks WHERE groupid = 3',
  'SELECT public.mpp_release(1)',
  'SELECT public.mpp_rebuild_cache()',
];
const LEFT = `
  SELECT t.event, t.groupid, t.nodename, t.secondaries::text AS secondaries, t.status, t.reason,
         extract(epoch FROM t.timeout)::float8 AS timeout, extract(epoch FROM t.cooldown)::float8 AS cooldown,
         (SELECT array_agg(l.status ORDER BY l.id) FROM public.mpp_task_log AS l WHERE l.task_id = t.id)::text AS log
  FROM public.mpp_tasks AS t
  ORDER BY t.id`;

/** Calls the functions of the contract. @returns what they have answered and left, or their SQLSTATEs. */
async function answers(session: Client): Promise<unknown[]> {
  await session.query('DELETE FROM public.mpp_tasks; DELETE FROM public.mpp_task_log');
  const codes: string[] = [];
  for (const call of CALLS) {
    await session.query(call).then(
      () => codes.push('fine'),
      (error: unknown) => codes.push(sqlState(error) ?? String(error)),
    );
  }
  const left = await session.query<Record<string, unknown>>(LEFT);
  const members = await session.query<Record<string, unknown>>(
    'SELECT nodename, role, state, timeline FROM public.mpp_members',
  );
  return [codes, ...left.rows, ...members.rows];
}

const TIMEOUTS = Object.keys(MIGRATION_SETTINGS).filter((name) => name.endsWith('_timeout'));

describe('a migration of a database that has settings of its own', () => {
  let server: ContractServer;
  let databases = 0;
  let expected: string[];
  const sessions: Client[] = [];

  beforeAll(async () => {
    server = await ContractServer.start(template);
    expected = await objects(await migrated(await emptyDatabase()));
  });
  afterAll(async () => {
    await Promise.all(sessions.map((session) => session.end().catch(() => undefined)));
    await server.stop();
  });

  async function open(database: string, user = 'postgres'): Promise<Client> {
    const session = await openSession({ ...server.server.connection, database, user }, 'test');
    await session.query('RESET search_path');
    sessions.push(session);
    return session;
  }

  async function emptyDatabase(): Promise<string> {
    databases += 1;
    const name = `settings${databases}`;
    await server.createDatabase(name);
    const db = await open(name);
    // With Citus: only a coordinator with a row has its tables managed.
    if (hasCitus) {
      const { host, port } = server.server;
      await db.query('SELECT citus_set_coordinator_host($1, $2)', [host, port]);
    }
    await db.query('CREATE ACCESS METHOD other_heap TYPE TABLE HANDLER heap_tableam_handler');
    return name;
  }

  async function migrated(database: string, schema = 'public'): Promise<string> {
    const session = await open(database);
    await applyMigrations(session, { schema, lockTimeoutMs: 10_000 });
    await session.end();
    return database;
  }

  /** As a session sees them that has no setting of the database. */
  async function objects(database: string): Promise<string[]> {
    const session = await open(database);
    await session.query(
      "SET search_path = pg_catalog; SET quote_all_identifiers = off; SET TimeZone = 'UTC'",
    );
    await session.query(
      "SET DateStyle = 'ISO, MDY'; SET IntervalStyle = 'postgres'; SET client_encoding = 'UTF8'",
    );
    return contractObjects(session, ['public', bookkeepingSchema('public')]);
  }

  it.each([...HOSTILE, ...(hasCitus ? HOSTILE_TO_CITUS : [])])(
    'makes the same objects with %s = %s',
    async (name, value) => {
      const database = await emptyDatabase();
      const db = await open(database);
      if (name === 'default_tablespace') {
        await db.query('SET allow_in_place_tablespaces = on');
        await db.query("CREATE TABLESPACE elsewhere LOCATION ''");
      }
      const { rows } = await db.query('SELECT current_setting($1, true) IS NULL AS missing', [
        name,
      ]);
      // An older PostgreSQL does not know it: nothing to be set.
      if (!name.includes('.') && (rows[0] as { missing: boolean }).missing) return;
      await db.query(`ALTER DATABASE ${database} SET ${name} = ${db.escapeLiteral(value)}`);
      expect(await objects(await migrated(database))).toEqual(expected);
      if (!hasCitus) return;
      const managed = await db.query(
        "SELECT FROM pg_dist_partition WHERE logicalrelid::text ~ 'mpp_'",
      );
      expect(managed.rows).toEqual([]);
    },
  );

  it.each(
    [...HOSTILE, ...(hasCitus ? HOSTILE_TO_CITUS : [])].filter(
      ([name]) => !CHANGES_ANSWERS.has(name),
    ),
  )('makes functions that answer the same to a session with %s = %s', async (name, value) => {
    const database = await migrated(await emptyDatabase());
    const usual = await answers(await open(database));
    const session = await open(database);
    await session.query(
      'SELECT set_config($1, $2, false) WHERE current_setting($1, true) IS NOT NULL',
      [name, value],
    );
    expect(await answers(session)).toEqual(usual);
  });

  it('makes the same objects when the role has the settings', async () => {
    const database = await emptyDatabase();
    const admin = await open(database);
    await admin.query('CREATE ROLE odd SUPERUSER LOGIN');
    await admin.query('ALTER ROLE odd SET default_transaction_isolation = serializable');
    await admin.query("ALTER ROLE odd SET search_path = ''");
    const session = await open(database, 'odd');
    await applyMigrations(session, { schema: 'public', lockTimeoutMs: 10_000 });
    await admin.query('REASSIGN OWNED BY odd TO postgres');
    const own = (line: string): string => line.replaceAll('odd', 'postgres');
    expect((await objects(database)).map(own)).toEqual(expected.map(own));
  });

  it('is not ended by a timeout of the database', async () => {
    const database = await emptyDatabase();
    const admin = await open(database);
    for (const name of TIMEOUTS) {
      const { rows } = await admin.query('SELECT current_setting($1, true) AS was', [name]);
      if ((rows[0] as { was: string | null }).was === null) continue;
      await admin.query(`ALTER DATABASE ${database} SET ${name} = '1h'`);
    }
    const session = await open(database);
    await applyMigrations(session, { schema: 'public', lockTimeoutMs: 10_000 });
    for (const name of TIMEOUTS) {
      const { rows } = await session.query('SELECT current_setting($1, true) AS now', [name]);
      expect([null, '0']).toContain((rows[0] as { now: string | null }).now);
    }
  });

  it('refuses a database that takes no writes, and says which setting it is', async () => {
    const database = await emptyDatabase();
    const admin = await open(database);
    await admin.query(`ALTER DATABASE ${database} SET default_transaction_read_only = on`);
    await expect(migrated(database)).rejects.toMatchObject({
      code: 'READ_ONLY',
      message: expect.stringContaining('RESET default_transaction_read_only') as string,
    });
  });

  it('refuses a setting that it has to change and may not', async () => {
    const database = await emptyDatabase();
    const admin = await open(database);
    await admin.query('CREATE ROLE plain LOGIN');
    await admin.query(`ALTER DATABASE ${database} OWNER TO plain`);
    await admin.query(`ALTER DATABASE ${database} SET session_replication_role = replica`);
    const session = await open(database, 'plain');
    const work = applyMigrations(session, { schema: 'public', lockTimeoutMs: 10_000 });
    await expect(work).rejects.toMatchObject({
      code: 'MIGRATION_SETTING',
      message: expect.stringContaining('RESET session_replication_role') as string,
    });
  });

  describe.runIf(hasCitus)('with Citus', () => {
    const refusal = async (database: string, schema = 'public') =>
      migrated(database, schema).then(
        () => undefined,
        (error: unknown) => error as Error & { code: string },
      );

    it('says how to take a table out of its metadata, and goes on once that is done', async () => {
      const database = await emptyDatabase();
      const db = await open(database);
      // As a migration has left it that ran with citus.use_citus_managed_tables.
      await db.query('CREATE SCHEMA mpp_migrations_public');
      await db.query('SET citus.use_citus_managed_tables = on');
      await db.query(`CREATE TABLE mpp_migrations_public.migrations (
        id integer PRIMARY KEY, name varchar(100) UNIQUE NOT NULL, hash varchar(40) NOT NULL,
        executed_at timestamp DEFAULT current_timestamp)`);
      const refused = await refusal(database);
      expect(refused).toMatchObject({ code: 'SCHEMA_DISTRIBUTED' });
      const [call] = /SELECT undistribute_table\('[^']+'\)/.exec(refused?.message ?? '') ?? [];
      await db.query(call ?? '');
      await migrated(database);
      expect((await db.query('SELECT FROM pg_dist_partition')).rows).toEqual([]);
    });

    it('refuses a distributed schema', async () => {
      const database = await emptyDatabase();
      const db = await open(database);
      await db.query('SET citus.enable_schema_based_sharding = on');
      await db.query('CREATE SCHEMA tenant');
      const refused = await refusal(database, 'tenant');
      expect(refused).toMatchObject({ code: 'SCHEMA_DISTRIBUTED' });
      const [call] =
        /SELECT citus_schema_undistribute\('[^']+'\)/.exec(refused?.message ?? '') ?? [];
      await db.query(call ?? '');
      await migrated(database, 'tenant');
    });
  });
});
