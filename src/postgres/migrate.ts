import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import pg from 'pg';
import { migrate } from 'postgres-migrations';
import { DatabaseStateError, MppError } from '../errors.js';
import { packageRoot } from '../package-root.js';
import { refuseForeignObjects, setUpMigration } from './migration-session.js';
import { inShortTries, type WatchedClient } from './migration-tries.js';
import { bookkeepingSchema } from './schema-name.js';
import { errorText } from './session.js';
import { sqlState } from './sqlstate.js';

/** The *.sql files, shipped beside the compiled code. */
const FOLDER = join(packageRoot(), 'migrations');

/** The advisory lock that postgres-migrations takes; see its with-lock.js. */
const MIGRATION_LOCK = '-8525285245963000605';

export interface MigrateOptions {
  /** Schema of mpp-controller's objects; made when missing. */
  readonly schema: string;
  /** How long to wait for another migration, and then for locks, in milliseconds. */
  readonly lockTimeoutMs: number;
  readonly log?: (line: string) => void;
  /** Gets one sentence each for what an operator may want to know while it runs: groups held, sessions waited for. */
  readonly notice?: (line: string) => void;
}

/**
 * Brings the SQL contract in `options.schema` up to this version of the code. Reports go on meanwhile:
 * see `inShortTries`.
 *
 * @param client a session of its own, without an open transaction; its settings are changed.
 * @returns the names of the migrations that were applied, empty when there was nothing to do.
 * @throws DatabaseStateError `SCHEMA_NEWER` when the database was migrated by a newer version,
 *   `MIGRATION_LOCK` when another migration did not end within `lockTimeoutMs`, `MIGRATION_BLOCKED` when
 *   other sessions kept what it changes locked for as long, `SCHEMA_OPEN` when PUBLIC may create
 *   objects in the schema, `SCHEMA_DISTRIBUTED` when Citus manages the schema or a table in it.
 */
export async function applyMigrations(
  client: pg.Client,
  options: MigrateOptions,
): Promise<string[]> {
  const { schema, lockTimeoutMs: timeoutMs } = options;
  const schemas = [schema, bookkeepingSchema(schema)];
  await setUpMigration(client, schema, bookkeepingSchema(schema));
  await takeMigrationLock(client, timeoutMs);
  try {
    const before = await appliedMigration(client, schema);
    const named = new Set<string>();
    await inShortTries(
      client,
      { schema, schemas, timeoutMs, onBlocked: options.notice },
      (watched) => migrateOnce(client, watched, options, named),
    );
    return await appliedAfter(client, schema, before);
  } catch (error) {
    if (error instanceof MppError) throw error;
    throw new DatabaseStateError(
      'MIGRATION_FAILED',
      `the migration of schema ${schema} has not been completed; ` +
        `put right what is wrong and run it again, it goes on from there: ${errorText(error)}`,
    );
  } finally {
    await client.query(`SELECT pg_advisory_unlock(${MIGRATION_LOCK})`).catch(() => undefined);
  }
}

async function takeMigrationLock(client: pg.Client, timeoutMs: number): Promise<void> {
  await client.query("SELECT set_config('lock_timeout', $1, false)", [`${timeoutMs}ms`]);
  try {
    await client.query(`SELECT pg_advisory_lock(${MIGRATION_LOCK})`);
  } catch (error) {
    if (sqlState(error) !== '55P03') throw error;
    const { rows } = await client.query<{ holder: string }>(LOCK_HOLDER, [MIGRATION_LOCK]);
    const holder = rows[0] === undefined ? '' : ` (${rows[0].holder})`;
    throw new DatabaseStateError(
      'MIGRATION_LOCK',
      `another migration of this database${holder} has not ended within ${timeoutMs} ms; ` +
        'wait for it, or raise MPP_MIGRATE_TIMEOUT; end that session if it is not a migration',
      { retryable: true },
    );
  }
}

/** A lock of one bigint is shown as its two halves. */
const LOCK_HOLDER = `
  SELECT concat_ws(', ', 'pid ' || l.pid, a.usename, nullif(a.application_name, '')) AS holder
  FROM pg_locks AS l
  LEFT JOIN pg_stat_activity AS a ON a.pid = l.pid
  WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted
    AND l.database = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
    AND (l.classid::bigint << 32) | l.objid::bigint = $1::bigint`;

/**
 * Each migration is a transaction of its own: what was applied stays when a later one has to wait.
 *
 * @param named the held groups that an earlier try has named
 */
async function migrateOnce(
  client: pg.Client,
  watched: WatchedClient,
  { schema, log, notice }: MigrateOptions,
  named: Set<string>,
): Promise<void> {
  await refuseDistributed(client, [schema, bookkeepingSchema(schema)]);
  await createSchema(client, schema);
  await createSchema(client, bookkeepingSchema(schema));
  await refuseOpenSchema(client, schema);
  await refuseForeignObjects(client, schema);
  await client.query(BOOKKEEPING_TABLE);
  const applied = await appliedMigration(client, schema);
  const known = await knownMigration();
  if (applied > known) throw newerSchema(schema, applied, known);
  const held = applied < known ? await heldGroups(client, schema) : [];
  for (const line of held.filter((one) => !named.has(one))) {
    named.add(line);
    notice?.(line);
  }
  // postgres-migrations calls query() alone, and its types want a whole client.
  const queries = watched as unknown as pg.Client;
  await migrate({ client: queries }, FOLDER, { logger: log ?? (() => undefined) });
}

/**
 * Checks that the SQL contract in `schema` is the one of this version of the code.
 *
 * @param known see `knownMigration`; for a process that runs on while its files may be replaced.
 * @throws DatabaseStateError `SCHEMA_MISSING`, `SCHEMA_OLDER` or `SCHEMA_NEWER`; `NO_PRIVILEGE` when
 *   the role is not a member of mpp_controller.
 */
export async function checkMigrated(
  client: pg.ClientBase,
  schema: string,
  known?: number,
): Promise<void> {
  const migration = known ?? (await knownMigration());
  const applied = await refuseNewer(client, schema, migration);
  if (applied < migration) {
    throw new DatabaseStateError(
      applied < 1 ? 'SCHEMA_MISSING' : 'SCHEMA_OLDER',
      `schema ${schema} is at migration ${Math.max(applied, 0)} and this version needs ${migration}; ` +
        'run mpp-controller migrate',
      { retryable: true },
    );
  }
}

/**
 * The half of `checkMigrated` that means something on a standby, too.
 *
 * @returns the newest migration that was applied.
 * @throws DatabaseStateError `SCHEMA_NEWER`, or `NO_PRIVILEGE` as above.
 */
export async function refuseNewer(
  client: pg.ClientBase,
  schema: string,
  known: number,
): Promise<number> {
  const applied = await appliedMigration(client, schema).catch((error: unknown) => {
    if (sqlState(error) !== '42501') throw error;
    throw new DatabaseStateError(
      'NO_PRIVILEGE',
      `this role may not read schema ${bookkeepingSchema(schema)}: make it a member of mpp_controller`,
      { retryable: true },
    );
  });
  if (applied > known) throw newerSchema(schema, applied, known);
  return applied;
}

/** Asks first: IF NOT EXISTS wants the right to create even where there is nothing to create. */
async function createSchema(client: pg.Client, schema: string): Promise<void> {
  const { rowCount } = await client.query('SELECT FROM pg_namespace WHERE nspname = $1', [schema]);
  if (rowCount === 0) {
    await client.query(`CREATE SCHEMA IF NOT EXISTS ${client.escapeIdentifier(schema)}`);
  }
}

/**
 * The SECURITY DEFINER functions of mpp-controller look names up in the schema. Where anybody may create a function
 * there, one with better fitting types is called instead of PostgreSQL's own, with the owner's rights.
 */
async function refuseOpenSchema(client: pg.Client, schema: string): Promise<void> {
  if (!(await isOpenSchema(client, schema))) return;
  const name = client.escapeIdentifier(schema);
  throw new DatabaseStateError(
    'SCHEMA_OPEN',
    `everybody may create objects in schema ${schema}, and could run them with the rights of its owner; ` +
      `run REVOKE CREATE ON SCHEMA ${name} FROM PUBLIC, or set MPP_SCHEMA to a schema of its own`,
  );
}

/** Whether every role may create objects in a schema. */
export async function isOpenSchema(client: pg.ClientBase, schema: string): Promise<boolean> {
  const { rows } = await client.query<{ open: boolean }>(IS_OPEN, [schema]);
  return rows[0]?.open === true;
}

const IS_OPEN = `
  SELECT EXISTS (
    SELECT
    FROM pg_namespace AS n, aclexplode(n.nspacl) AS a
    WHERE n.nspname = $1 AND a.grantee = 0 AND a.privilege_type = 'CREATE') AS open`;

/** The newest migration that was applied in this database, -1 when none ever was. */
async function appliedMigration(client: pg.ClientBase, schema: string): Promise<number> {
  const found = await client.query<{ present: boolean }>(
    "SELECT to_regclass(format('%I.migrations', $1::text)) IS NOT NULL AS present",
    [bookkeepingSchema(schema)],
  );
  if (found.rows[0]?.present !== true) return -1;
  const table = `${client.escapeIdentifier(bookkeepingSchema(schema))}.migrations`;
  const { rows } = await client.query<{ id: number }>(
    `SELECT coalesce(max(id), -1) AS id FROM ${table}`,
  );
  return rows[0]?.id ?? -1;
}

/** The names of the migrations that are newer than `before`, in their order. */
async function appliedAfter(client: pg.Client, schema: string, before: number): Promise<string[]> {
  const table = `${client.escapeIdentifier(bookkeepingSchema(schema))}.migrations`;
  const { rows } = await client.query<{ name: string }>(
    `SELECT name FROM ${table} WHERE id > greatest($1::integer, 0) ORDER BY id`,
    [before],
  );
  return rows.map(({ name }) => name);
}

/** The newest migration among the files, which is that of the code only until they are replaced. */
export async function knownMigration(): Promise<number> {
  const files = await readdir(FOLDER);
  return Math.max(...files.filter((name) => name.endsWith('.sql')).map((name) => parseInt(name)));
}

function newerSchema(schema: string, applied: number, known: number): DatabaseStateError {
  return new DatabaseStateError(
    'SCHEMA_NEWER',
    `schema ${schema} is at migration ${applied} and this version knows only ${known}; ` +
      'install the version of mpp-controller that migrated it, or a newer one',
  );
}

/** As postgres-migrations makes it; it looks for the name in any schema, so it must find this one first. */
const BOOKKEEPING_TABLE = `
  CREATE TABLE IF NOT EXISTS migrations (
    id integer PRIMARY KEY,
    name varchar(100) UNIQUE NOT NULL,
    hash varchar(40) NOT NULL,
    executed_at timestamp DEFAULT current_timestamp
  )`;

/** A sentence for each group that is held now: a migration makes its controller stand down. */
export async function heldGroups(client: pg.ClientBase, schema: string): Promise<string[]> {
  const prefix = `${pg.escapeIdentifier(schema)}.`;
  const { rows: tables } = await client.query<{ present: boolean }>(
    'SELECT to_regclass($1) IS NOT NULL AND to_regclass($2) IS NOT NULL AS present',
    [`${prefix}mpp_tasks`, `${prefix}mpp_controllers`],
  );
  if (tables[0]?.present !== true) return [];
  const { rows } = await client.query<{ groupid: number; since: string; controller: string }>(
    HELD.replaceAll('@mpp.', prefix),
  );
  return rows.map(
    ({ groupid, since, controller }) =>
      `group ${groupid} is held since ${since} by controller ${controller}`,
  );
}

const HELD = `
  SELECT t.groupid,
         to_char(min(t.held_at), 'YYYY-MM-DD HH24:MI:SS TZ') AS since,
         concat_ws(' ', max(t.claimed_by), max(format('(pid %s on %s, version %s)', c.pid, c.host, c.version)))
           AS controller
  FROM @mpp.mpp_tasks AS t
  LEFT JOIN @mpp.mpp_controllers AS c ON c.id = t.claimed_by
  WHERE t.finished_at IS NULL AND t.status = 'holding'
  GROUP BY t.groupid
  ORDER BY t.groupid`;

/**
 * Refuses schemas, and tables of mpp-controller, that Citus manages: a table in Citus's metadata has other triggers
 * and other locks than the one that the migrations made, and Citus refuses most of what they change.
 *
 * @throws DatabaseStateError `SCHEMA_DISTRIBUTED`, with the statement that takes them out of Citus.
 */
async function refuseDistributed(client: pg.ClientBase, schemas: readonly string[]): Promise<void> {
  const { rows: catalogs } = await client.query<{ tables: boolean; schemas: boolean }>(CATALOGS);
  if (catalogs[0]?.schemas === true) {
    const { rows } = await client.query<{ schema: string; call: string }>(TENANTS, [schemas]);
    for (const { schema, call } of rows) {
      throw new DatabaseStateError(
        'SCHEMA_DISTRIBUTED',
        `schema ${schema} is a distributed schema of Citus, and the control table has to be on the ` +
          `coordinator alone: set MPP_SCHEMA to another schema, or run ${call}`,
      );
    }
  }
  if (catalogs[0]?.tables !== true) return;
  const { rows } = await client.query<{ name: string; call: string }>(MANAGED, [schemas]);
  if (rows.length === 0) return;
  throw new DatabaseStateError(
    'SCHEMA_DISTRIBUTED',
    `Citus has ${rows.map(({ name }) => name).join(', ')} in its metadata, and the tables of mpp-controller ` +
      `have to be plain ones: run ${rows.map(({ call }) => call).join('; ')}; then migrate again. ` +
      'Where Citus refuses that because of an identity column, remove all objects and migrate again ' +
      '(see docs/uninstall.md)',
  );
}

/** By schema, because a table of another one may have the name. pg_dist_schema is there from Citus 12 on. */
const CATALOGS = `
  SELECT to_regclass('pg_catalog.pg_dist_partition') IS NOT NULL AS tables,
         to_regclass('pg_catalog.pg_dist_schema') IS NOT NULL AS schemas`;

const TENANTS = `
  SELECT n.nspname AS schema,
         format('SELECT citus_schema_undistribute(%L)', format('%I', n.nspname)) AS call
  FROM pg_catalog.pg_dist_schema AS s
  JOIN pg_namespace AS n ON n.oid = s.schemaid
  WHERE n.nspname = ANY ($1::text[])`;

const MANAGED = `
  SELECT format('%I.%I', n.nspname, c.relname) AS name,
         format('SELECT undistribute_table(%L)', format('%I.%I', n.nspname, c.relname)) AS call
  FROM pg_catalog.pg_dist_partition AS p
  JOIN pg_class AS c ON c.oid = p.logicalrelid
  JOIN pg_namespace AS n ON n.oid = c.relnamespace
  WHERE n.nspname = ANY ($1::text[])
    AND (c.relname ~ '^mpp_' OR n.nspname ~ '^mpp_migrations_')
  ORDER BY name`;
