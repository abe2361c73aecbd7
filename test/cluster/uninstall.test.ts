import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { Client } from 'pg';
import { afterAll, beforeAll, describe, expect, inject, it } from 'vitest';
import { packageRoot } from '../../src/package-root.js';
import { applyMigrations } from '../../src/postgres/migrate.js';
import { openSession } from '../../src/postgres/session.js';
import { runCli } from '../kit/cli.js';
import { ContractServer, refusal } from '../kit/contract.js';

/** The SQL of docs/uninstall.md, which the command runs as well: the objects of one database, then the roles. */
async function blocks(schema: string): Promise<{ objects: string; roles: string }> {
  const page = await readFile(join(packageRoot(), 'docs', 'uninstall.md'), 'utf8');
  const [objects, roles] = [...page.matchAll(/^```sql\n(.*?)^```$/gms)].map(([, sql]) => sql);
  if (objects === undefined || roles === undefined) throw new Error('the page has no two blocks');
  const named = objects.replace(
    "mpp.schema = 'public'",
    `mpp.schema = '${schema.replaceAll("'", "''")}'`,
  );
  return { objects: named, roles };
}

describe('the SQL that removes everything', () => {
  let server: ContractServer;
  let databases = 0;
  const sessions: Client[] = [];

  beforeAll(async () => {
    server = await ContractServer.start(inject('template'));
  });
  afterAll(async () => {
    await Promise.all(sessions.map((session) => session.end().catch(() => undefined)));
    await server.stop();
  });

  async function emptyDatabase(): Promise<{ name: string; db: Client }> {
    databases += 1;
    const name = `left${databases}`;
    await server.createDatabase(name);
    return { name, db: await open(name) };
  }

  async function open(database: string, user = 'postgres'): Promise<Client> {
    const session = await openSession({ ...server.server.connection, database, user }, 'test');
    await session.query('RESET search_path');
    sessions.push(session);
    return session;
  }

  async function migrate(database: string, schema: string, user?: string): Promise<void> {
    const session = await open(database, user);
    await applyMigrations(session, { schema, lockTimeoutMs: 10_000 });
    await session.end();
  }

  async function everything(db: Client): Promise<string[]> {
    return (await db.query<{ line: string }>(EVERYTHING)).rows.map(({ line }) => line);
  }

  // Last in each: the roles are those of all databases of the server.
  it.each(['public', `My "Schema"; it's`, 's'.repeat(63)])(
    'leaves nothing in a database with schema %s, and migrate makes it again',
    async (schema) => {
      const { name, db } = await emptyDatabase();
      await db.query(`CREATE SCHEMA IF NOT EXISTS ${db.escapeIdentifier(schema)}`);
      const before = await everything(db);
      await migrate(name, schema);
      const migrated = await everything(db);
      expect(migrated.length).toBeGreaterThan(before.length);

      const { objects } = await blocks(schema);
      await db.query(objects);
      await db.query('DROP OWNED BY mpp_client, mpp_operator, mpp_controller');
      expect(await everything(db)).toEqual(before);

      await migrate(name, schema);
      expect(await everything(db)).toEqual(migrated);
      await db.query(objects);
      await db.query('DROP OWNED BY mpp_client, mpp_operator, mpp_controller');
    },
  );

  it('is what the command prints, word for word', async () => {
    for (const schema of ['public', "it's"]) {
      const { objects, roles } = await blocks(schema);
      const shown = await runCli(['uninstall', '--roles'], { MPP_SCHEMA: schema });
      expect(shown).toEqual({ exitCode: 0, stdout: `${objects}${roles}`, stderr: '' });
      const without = await runCli(['uninstall'], { MPP_SCHEMA: schema });
      expect(without.stdout).toBe(objects);
    }
  });

  it('is run by the command in each database, and the roles are dropped last', async () => {
    const first = await emptyDatabase();
    const second = await emptyDatabase();
    const before = [await everything(first.db), await everything(second.db)];
    for (const { name } of [first, second]) await migrate(name, 'mpp');
    const env = {
      DATABASE_URL: `postgresql://postgres@${server.server.address}/${first.name}`,
      MPP_DATABASES: `${first.name},${second.name}`,
      MPP_SCHEMA: 'mpp',
    };
    const done = await runCli(['uninstall', '--apply', '--roles'], env);
    expect(done).toEqual({
      exitCode: 0,
      stdout: [
        `dropped all of mpp-controller in schema mpp of database ${first.name}`,
        `dropped all of mpp-controller in schema mpp of database ${second.name}`,
        'dropped the roles mpp_client, mpp_operator and mpp_controller\n',
      ].join('\n'),
      stderr: '',
    });
    for (const { db } of [first, second]) await db.query('DROP SCHEMA mpp');
    expect([await everything(first.db), await everything(second.db)]).toEqual(before);
    const again = await runCli(['uninstall', '--apply'], env);
    expect(again.stdout).toContain('there was nothing of mpp-controller in schema mpp of');
  });

  it('removes the roles, with what they were granted elsewhere', async () => {
    const { name, db } = await emptyDatabase();
    await migrate(name, 'public');
    await db.query('GRANT EXECUTE ON FUNCTION pg_reload_conf() TO mpp_controller');
    await db.query('CREATE ROLE hook LOGIN IN ROLE mpp_client');
    const { objects, roles } = await blocks('public');
    await db.query(objects);
    await db.query(roles);
    expect((await db.query("SELECT FROM pg_roles WHERE rolname ~ '^mpp_'")).rows).toEqual([]);
    await db.query('DROP ROLE hook');
  });

  it("leaves an application's own objects alone, and drops nothing when one of them uses the project's", async () => {
    const { name, db } = await emptyDatabase();
    await db.query(
      'CREATE TABLE application (id integer); CREATE FUNCTION f() RETURNS void RETURN NULL',
    );
    await migrate(name, 'public');
    await db.query('CREATE VIEW reports AS SELECT t.id FROM mpp_tasks AS t');
    const before = await everything(db);
    const { objects } = await blocks('public');
    const error = await refusal(db, { text: objects, parameters: [] });
    expect(error.code).toBe('2BP01');
    expect(error.detail).toContain('view public.reports');
    await db.query('ROLLBACK');
    expect(await everything(db)).toEqual(before);

    await db.query('DROP VIEW reports');
    await db.query(objects);
    const { rows } = await db.query("SELECT 'application'::regclass, 'f()'::regprocedure");
    expect(rows).toHaveLength(1);
  });

  it('refuses while a controller is connected', async () => {
    const { name, db } = await emptyDatabase();
    await migrate(name, 'public');
    const control = await openSession({ ...server.server.connection, database: name }, 'control');
    const { objects } = await blocks('public');
    const error = await refusal(db, { text: objects, parameters: [] });
    expect(error.message).toContain('stop it first');
    await db.query('ROLLBACK');
    await control.end();
  });
});

/** Names of all that is not PostgreSQL's own, and rights of the roles in this database. */
const EVERYTHING = `
  SELECT format('%s %s.%s', c.relkind, n.nspname, c.relname) AS line
  FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
  WHERE n.nspname NOT IN ('pg_toast', 'pg_catalog', 'information_schema')
  UNION ALL
  SELECT format('type %s.%s', n.nspname, t.typname)
  FROM pg_type AS t JOIN pg_namespace AS n ON n.oid = t.typnamespace
  WHERE n.nspname NOT IN ('pg_toast', 'pg_catalog', 'information_schema')
  UNION ALL
  SELECT format('function %s.%s(%s)', n.nspname, p.proname, pg_get_function_identity_arguments(p.oid))
  FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace
  WHERE n.nspname <> 'information_schema'
  UNION ALL
  SELECT format('schema %s', n.nspname) FROM pg_namespace AS n
  UNION ALL
  SELECT format('right of %s on %s', d.refobjid::regrole, d.classid::regclass)
  FROM pg_shdepend AS d
  WHERE d.refclassid = 'pg_authid'::regclass AND d.refobjid::regrole::text ~ '^mpp_'
    AND d.dbid = (SELECT a.oid FROM pg_database AS a WHERE a.datname = current_database())
  ORDER BY line`;
