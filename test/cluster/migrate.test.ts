import type { Client } from 'pg';
import { migrate } from 'postgres-migrations';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, inject, it } from 'vitest';
import { DatabaseStateError } from '../../src/errors.js';
import { applyMigrations, checkMigrated } from '../../src/postgres/migrate.js';
import { bookkeepingSchema } from '../../src/postgres/schema-name.js';
import { openSession } from '../../src/postgres/session.js';
import { runCli } from '../kit/cli.js';
import { installStandin } from '../kit/standin/install.js';
import { ContractServer } from '../kit/contract.js';
import { Installation } from '../kit/installation.js';

const FILES = ['access', 'tasks', 'controllers', 'members', 'databases', 'functions', 'views'];
/** The advisory lock of postgres-migrations. */
const LOCK = '-8525285245963000605';

describe('migrations', () => {
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

  /** Makes an empty database. @returns its name. */
  async function emptyDatabase(): Promise<string> {
    databases += 1;
    await server.createDatabase(`empty${databases}`);
    return `empty${databases}`;
  }

  async function open(database: string, user = 'postgres'): Promise<Client> {
    const session = await openSession({ ...server.server.connection, database, user }, 'test');
    await session.query('RESET search_path');
    sessions.push(session);
    return session;
  }

  /** Migrates a database with a version that knows the first three migrations alone. */
  async function applyOlder(database: string): Promise<void> {
    const older = await Installation.create();
    try {
      await older.downgrade('0.0.1', 3);
      const { hasCitus } = server.server.binaries;
      if (!hasCitus)
        await server.server.withSession((session) => installStandin(session), database);
      const DATABASE_URL = `postgresql://postgres@${server.server.address}/${database}`;
      const result = await runCli(['migrate'], { DATABASE_URL }, older.program);
      expect(result).toMatchObject({ exitCode: 0, stderr: '' });
    } finally {
      await older.remove();
    }
  }

  const apply = (session: Client, schema = 'public', lockTimeoutMs = 10_000) =>
    applyMigrations(session, { schema, lockTimeoutMs });

  /** A fresh session: the one that migrates has its search_path changed. */
  async function reports(database: string, schema: string): Promise<number> {
    const session = await open(database);
    await session.query("SELECT set_config('search_path', format('%I', $1::text), false)", [
      schema,
    ]);
    await session.query("SELECT mpp_submit('suspect', 1, 'worker-1')");
    const { rows } = await session.query('SELECT FROM mpp_tasks');
    return rows.length;
  }

  async function refused(work: Promise<unknown>): Promise<DatabaseStateError> {
    const error: unknown = await work.then(
      () => undefined,
      (thrown: unknown) => thrown,
    );
    expect(error).toBeInstanceOf(DatabaseStateError);
    return error as DatabaseStateError;
  }

  // First: once any database of the server has the roles, nobody needs to make them.
  it('say what a role without CREATEROLE lacks, and go on once it is there', async () => {
    const database = await emptyDatabase();
    const admin = await open(database);
    await admin.query('CREATE ROLE plain_owner LOGIN');
    await admin.query(`ALTER DATABASE ${database} OWNER TO plain_owner`);
    await admin.query('ALTER SCHEMA public OWNER TO plain_owner');

    const session = await open(database, 'plain_owner');
    const error = await refused(apply(session));
    expect(error.code).toBe('MIGRATION_FAILED');
    expect(error.message).toMatch(/mpp_client.*plain_owner.*CREATEROLE/s);
    for (const role of ['mpp_client', 'mpp_operator', 'mpp_controller']) {
      await admin.query(`CREATE ROLE ${role} NOLOGIN`);
    }
    expect(await apply(session)).toEqual(FILES);
    expect(await reports(database, 'public')).toBe(1);
  });

  it('make everything the first time, nothing the second, and keep what is there', async () => {
    const database = await emptyDatabase();
    const session = await open(database);
    await expect(checkMigrated(session, 'public')).rejects.toMatchObject({
      code: 'SCHEMA_MISSING',
      retryable: true,
    });
    expect(await apply(session)).toEqual(FILES);
    await checkMigrated(session, 'public');
    expect(await reports(database, 'public')).toBe(1);
    expect(await apply(session)).toEqual([]);
    expect(await apply(await open(database))).toEqual([]);
    expect(await reports(database, 'public')).toBe(2);
  });

  it('go on from where an older version has stopped', async () => {
    const database = await emptyDatabase();
    await applyOlder(database);
    const session = await open(database);
    const error = await refused(checkMigrated(session, 'public'));
    expect(error.code).toBe('SCHEMA_OLDER');
    expect(error.message).toContain(`at migration 3 and this version needs ${FILES.length};`);
    expect(await apply(session)).toEqual(FILES.slice(3));
  });

  it('serve several schemas of one database, whatever they are called', async () => {
    const database = await emptyDatabase();
    for (const schema of ['public', 'mpp', `My "Schema"; it's`, 's'.repeat(63)]) {
      expect(await apply(await open(database), schema)).toEqual(FILES);
      await checkMigrated(await open(database), schema);
      expect(await reports(database, schema)).toBe(1);
      expect(await apply(await open(database), schema)).toEqual([]);
    }
    const other = `${'s'.repeat(62)}t`;
    await expect(checkMigrated(await open(database), other)).rejects.toMatchObject({
      code: 'SCHEMA_MISSING',
    });
  });

  it('refuse a schema where everybody may create objects', async () => {
    const session = await open(await emptyDatabase());
    await session.query('GRANT CREATE ON SCHEMA public TO PUBLIC');
    const error = await refused(apply(session));
    expect(error).toMatchObject({ code: 'SCHEMA_OPEN', retryable: false });
    expect(error.message).toContain('REVOKE CREATE ON SCHEMA');
    expect((await session.query("SELECT to_regclass('public.mpp_tasks') AS t")).rows).toEqual([
      { t: null },
    ]);
    await session.query('REVOKE CREATE ON SCHEMA public FROM PUBLIC');
    expect(await apply(session)).toEqual(FILES);
  });

  it('refuse a database that a newer version has migrated, and leave it alone', async () => {
    const session = await open(await emptyDatabase());
    await apply(session);
    const table = `${session.escapeIdentifier(bookkeepingSchema('public'))}.migrations`;
    await session.query(`INSERT INTO ${table} (id, name, hash) VALUES (99, 'future', 'x')`);
    const error = await refused(apply(session));
    expect(error).toMatchObject({ code: 'SCHEMA_NEWER', retryable: false });
    expect(error.message).toMatch(/99.*install/s);
    expect(await refused(checkMigrated(session, 'public'))).toMatchObject({ code: 'SCHEMA_NEWER' });
  });

  it('wait for another migration at most as long as they are set to', async () => {
    const database = await emptyDatabase();
    const [other, session] = [await open(database), await open(database)];
    await other.query(`SELECT pg_advisory_lock(${LOCK})`);
    const error = await refused(apply(session, 'public', 50));
    expect(error).toMatchObject({ code: 'MIGRATION_LOCK', retryable: true });
    expect(error.message).toContain('MPP_MIGRATE_TIMEOUT');
    const { rows } = await other.query<{ pid: number }>('SELECT pg_backend_pid() AS pid');
    expect(error.message).toContain(`(pid ${rows[0]?.pid ?? 0}, postgres, mpp-controller test)`);
    await other.query(`SELECT pg_advisory_unlock(${LOCK})`);
    expect(await apply(session)).toEqual(FILES);
  });

  it('may be run by two at once, in one schema or two', async () => {
    const database = await emptyDatabase();
    const schemas = ['public', 'public', 'mpp'];
    const results = await Promise.all(
      schemas.map(async (schema) => apply(await open(database), schema)),
    );
    expect(results.map(({ length }) => length).sort()).toEqual([0, FILES.length, FILES.length]);
    expect(await reports(database, 'public')).toBe(1);
    expect(await reports(database, 'mpp')).toBe(1);
  });

  it('may be run in two databases at once, which share the roles', async () => {
    const [first, second] = [await emptyDatabase(), await emptyDatabase()];
    await Promise.all([first, second].map(async (database) => apply(await open(database))));
    expect(await reports(first, 'public')).toBe(1);
    expect(await reports(second, 'public')).toBe(1);
  });

  describe("beside an application's own table called migrations", () => {
    it('of any shape', async () => {
      const database = await emptyDatabase();
      const session = await open(database);
      await session.query('CREATE TABLE public.migrations (version text)');
      await session.query("INSERT INTO public.migrations VALUES ('2024-01-01')");
      expect(await apply(session)).toEqual(FILES);
      expect(await apply(session)).toEqual([]);
      const { rows } = await session.query('SELECT * FROM public.migrations');
      expect(rows).toEqual([{ version: '2024-01-01' }]);
      expect(await reports(database, 'public')).toBe(1);
    });

    it('of the same library', async () => {
      const database = await emptyDatabase();
      const folder = await mkdtemp(join(tmpdir(), 'mpp-application-'));
      try {
        await writeFile(join(folder, '1_theirs.sql'), 'CREATE TABLE theirs (id integer)');
        await migrate({ client: await open(database) }, folder);
        expect(await apply(await open(database))).toEqual(FILES);
        await writeFile(join(folder, '2_more.sql'), 'CREATE TABLE more (id integer)');
        const more = await migrate({ client: await open(database) }, folder);
        expect(more.map(({ name }) => name)).toEqual(['more']);
        expect(await apply(await open(database))).toEqual([]);
      } finally {
        await rm(folder, { recursive: true });
      }
    });
  });
});
