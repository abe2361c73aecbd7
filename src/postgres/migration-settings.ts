import type pg from 'pg';
import { DatabaseStateError } from '../errors.js';
import { errorText } from './session.js';
import { sqlState } from './sqlstate.js';

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
