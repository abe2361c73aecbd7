import type pg from 'pg';
import { DatabaseStateError } from '../errors.js';
import { errorText } from './session.js';
import { sqlState } from './sqlstate.js';
import { bookkeepingSchema } from './schema-name.js';

/**
 * Refuses a schema in which another role has objects that a migration could take for PostgreSQL's own or for
 * this project's: a function or operator named like one of pg_catalog, or anything named mpp_. The migrating
 * role would run them with its rights. Trusted are superusers, this role, and the owners of the database,
 * of the schema and of the table in which the applied migrations are written down.
 *
 * @throws DatabaseStateError `SCHEMA_FOREIGN`
 */
export async function refuseForeignObjects(client: pg.ClientBase, schema: string): Promise<void> {
  const { rows } = await client.query<{ object: string; owner: string }>(FOREIGN, [
    schema,
    bookkeepingSchema(schema),
  ]);
  const [first] = rows;
  if (first === undefined) return;
  const more = rows.length > 1 ? ` and ${rows.length - 1} more` : '';
  throw new DatabaseStateError(
    'SCHEMA_FOREIGN',
    `role ${first.owner} has made ${first.object}${more} in schema ${schema}, and a migration would run it with ` +
      'the rights of this role; drop it, or set MPP_SCHEMA to a schema in which no other role may create objects',
  );
}

const FOREIGN = `
  WITH trusted AS MATERIALIZED (
    SELECT r.oid FROM pg_catalog.pg_roles AS r WHERE r.rolsuper OR r.rolname = current_user
    UNION ALL
    SELECT d.datdba FROM pg_catalog.pg_database AS d WHERE d.datname = pg_catalog.current_database()
    UNION ALL
    SELECT n.nspowner FROM pg_catalog.pg_namespace AS n WHERE n.nspname = $1
    UNION ALL
    SELECT c.relowner
    FROM pg_catalog.pg_class AS c
    JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname = $2 AND c.relname = 'migrations'
  ), found AS (
    SELECT 'the function ' || p.oid::pg_catalog.regprocedure::text AS object, p.proowner AS owner
    FROM pg_catalog.pg_proc AS p
    JOIN pg_catalog.pg_namespace AS n ON n.oid = p.pronamespace
    WHERE n.nspname = $1
      AND (p.proname ~ '^mpp_' OR EXISTS (
        SELECT
        FROM pg_catalog.pg_proc AS b
        WHERE b.proname = p.proname AND b.pronamespace = 'pg_catalog'::pg_catalog.regnamespace))
    UNION ALL
    SELECT 'the operator ' || o.oid::pg_catalog.regoperator::text, o.oprowner
    FROM pg_catalog.pg_operator AS o
    JOIN pg_catalog.pg_namespace AS n ON n.oid = o.oprnamespace
    WHERE n.nspname = $1
      AND EXISTS (
        SELECT
        FROM pg_catalog.pg_operator AS b
        WHERE b.oprname = o.oprname AND b.oprnamespace = 'pg_catalog'::pg_catalog.regnamespace)
    UNION ALL
    SELECT 'the relation ' || c.relname, c.relowner
    FROM pg_catalog.pg_class AS c
    JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname = $1 AND c.relname ~ '^mpp_' AND c.relkind IN ('r', 'v', 'm', 'f', 'p', 'S')
  )
  SELECT f.object, r.rolname AS owner
  FROM found AS f
  JOIN pg_catalog.pg_roles AS r ON r.oid = f.owner
  WHERE f.owner NOT IN (SELECT t.oid FROM trusted AS t)
  ORDER BY f.object`;

/**
 * Refuses to call what another role may have made where mpp-controller's objects ought to be.
 *
 * @throws DatabaseStateError `SCHEMA_MISSING` where no migration was applied, or by another role than the
 *   owner of the control table.
 */
export async function requireContract(client: pg.ClientBase, schema: string): Promise<void> {
  const { rows } = await client.query<{ owned: boolean }>(OWNED, [
    schema,
    bookkeepingSchema(schema),
  ]);
  if (rows[0]?.owned === true) return;
  throw new DatabaseStateError(
    'SCHEMA_MISSING',
    `schema ${schema} of this database has no control table of mpp-controller: is MPP_SCHEMA right, and has ` +
      'mpp-controller migrate been run in this database?',
  );
}

const OWNED = `
  SELECT EXISTS (
    SELECT
    FROM pg_catalog.pg_class AS tasks
    JOIN pg_catalog.pg_namespace AS s ON s.oid = tasks.relnamespace AND s.nspname = $1
    JOIN pg_catalog.pg_namespace AS b ON b.nspname = $2
    JOIN pg_catalog.pg_class AS applied ON applied.relnamespace = b.oid AND applied.relname = 'migrations'
    JOIN pg_catalog.pg_roles AS r ON r.oid = tasks.relowner
    WHERE tasks.relname = 'mpp_tasks' AND tasks.relkind = 'r'
      AND (tasks.relowner = applied.relowner OR r.rolsuper)) AS owned`;

/**
 * Settings that change what the statements of a migration make. A database or a role can have any of
 * them (ALTER DATABASE … SET, ALTER ROLE … SET, options in the connection URL), so the migrating session
 * sets them all. Values as `current_setting` shows them.
 *
 * Left alone on purpose: `role`, which decides who owns the objects; `default_transaction_read_only`,
 * which is a reason to refuse; `event_triggers`, because an event trigger is the operator's own code.
 */
export const MIGRATION_SETTINGS: Readonly<Record<string, string>> = {
  // mpp-controller's objects live on the coordinator alone, and Citus does not manage them.
  'citus.use_citus_managed_tables': 'off',
  'citus.enable_schema_based_sharding': 'off',
  'citus.propagate_set_commands': 'none',
  // Where a table is stored, and how.
  default_table_access_method: 'heap',
  default_tablespace: '',
  // How the text of a statement is read.
  standard_conforming_strings: 'on',
  transform_null_equals: 'off',
  array_nulls: 'on',
  xmloption: 'content',
  quote_all_identifiers: 'off',
  // Whether a function is made, and made as it is written.
  check_function_bodies: 'on',
  'plpgsql.extra_errors': 'none',
  'plpgsql.extra_warnings': 'none',
  // What a statement sees, and which triggers it fires.
  default_transaction_isolation: 'read committed',
  default_transaction_deferrable: 'off',
  session_replication_role: 'origin',
  row_security: 'on',
  restrict_nonsystem_relation_kind: '',
  createrole_self_grant: '',
  // A migration is bounded by its locks; its session may wait between two tries.
  statement_timeout: '0',
  transaction_timeout: '0',
  idle_in_transaction_session_timeout: '0',
  idle_session_timeout: '0',
  client_min_messages: 'warning',
};

/**
 * The first schema on the search_path is where CREATE puts things: that of the bookkeeping for
 * postgres-migrations itself; each migration switches to `mpp.objects_path` and back. Citus's setting
 * is accepted without Citus, too.
 */
const PATHS = `
  SELECT set_config('mpp.objects_path', format('%I, pg_temp', $1::text), false),
         set_config('mpp.bookkeeping_path', format('%I, pg_temp', $2::text), false),
         set_config('search_path', format('%I, pg_temp', $2::text), false),
         set_config('citus.enable_ddl_propagation', 'off', false)`;

/**
 * Sets up a session for migrations. What the server does not know, or has already, is not set: some
 * of the settings need a superuser.
 *
 * @throws DatabaseStateError `MIGRATION_SETTING` when a setting has to be changed and this role may not,
 *   `READ_ONLY` when the database takes no writes.
 */
export async function setUpMigration(
  client: pg.ClientBase,
  schema: string,
  bookkeeping: string,
): Promise<void> {
  await client.query(PATHS, [schema, bookkeeping]);
  for (const [name, value] of Object.entries(MIGRATION_SETTINGS)) {
    await set(client, name, value).catch((error: unknown) => {
      if (sqlState(error) !== '42501') throw error;
      throw new DatabaseStateError(
        'MIGRATION_SETTING',
        `this database or this role has another ${name} than ${value || "''"}, with which a migration ` +
          `would make something else, and this role may not change it: run ALTER DATABASE … RESET ${name} ` +
          `or ALTER ROLE … RESET ${name}, or migrate as a superuser: ${errorText(error)}`,
      );
    });
  }
  // A worker of autovacuum leaves a table to a session that has waited for it for so long. By default
  // that is longer than one try; a role that may not change it goes without.
  await set(client, 'deadlock_timeout', AUTOVACUUM_YIELDS).catch((error: unknown) => {
    if (sqlState(error) !== '42501') throw error;
  });
  await refuseReadOnly(client);
}

async function set(client: pg.ClientBase, name: string, value: string): Promise<void> {
  await client.query(SET, [name, value]);
}

/** Shorter than one try for a lock, see `inShortTries`. */
const AUTOVACUUM_YIELDS = '100ms';

/** What this server does not have is NULL here, and so is what an extension defines that is not loaded. */
const SET = `
  SELECT set_config($1, $2, false)
  WHERE current_setting($1, true) <> $2`;

async function refuseReadOnly(client: pg.ClientBase): Promise<void> {
  const { rows } = await client.query<{ standby: boolean; readonly: boolean }>(READ_ONLY);
  const [state] = rows;
  if (state?.readonly !== true) return;
  throw new DatabaseStateError(
    'READ_ONLY',
    state.standby
      ? 'this server is a standby: migrate on the primary of the coordinator'
      : 'this database takes no writes, default_transaction_read_only is on: ' +
          'run ALTER DATABASE … RESET default_transaction_read_only, or ALTER ROLE …, and migrate again',
  );
}

const READ_ONLY = `
  SELECT pg_is_in_recovery() AS standby, current_setting('transaction_read_only')::boolean AS readonly`;
