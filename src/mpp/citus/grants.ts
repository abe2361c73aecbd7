import type pg from 'pg';
import { installWrappers } from './wrappers.js';

/** The functions of Citus that a controller calls; which of them exist depends on its version. */
const FUNCTIONS = [
  'citus_add_node',
  'citus_add_secondary_node',
  'citus_pause_node_within_txn',
  'citus_remove_clone_node',
  'citus_remove_node',
  'citus_set_coordinator_host',
  'citus_update_node',
  'lock_shard_metadata',
] as const;

/**
 * Gives the role mpp_controller what it needs, so that a controller need not be a superuser: Citus's
 * functions, ending the sessions that block a hold, deadlock_timeout for its own, and wrappers for what
 * Citus allows to superusers alone. The caller must be a superuser, and the role must exist.
 *
 * @param client a session without an open transaction
 * @param schema of our objects
 * @returns the names of what was granted now; empty when all was before.
 */
export async function grantRights(client: pg.ClientBase, schema: string): Promise<string[]> {
  await client.query('BEGIN');
  try {
    await client.query(TRANSACTION_SETTINGS);
    const { rows } = await client.query<{ name: string; statement: string }>(MISSING_GRANTS, [
      FUNCTIONS,
    ]);
    for (const { statement } of rows) await client.query(statement);
    const wrappers = await installWrappers(client, schema);
    await client.query('COMMIT');
    return [...rows.map((row) => row.name), ...wrappers];
  } catch (error) {
    await client.query('ROLLBACK').catch(() => undefined);
    throw error;
  }
}

const TRANSACTION_SETTINGS = `
  SELECT set_config('citus.enable_ddl_propagation', 'off', true),
         set_config('search_path', 'pg_catalog, pg_temp', true)`;

/** GRANT takes no parameters; regprocedure writes name and argument types, quoted where needed. */
const MISSING_GRANTS = `
  SELECT p.proname::text AS name,
         format('GRANT EXECUTE ON FUNCTION %s TO mpp_controller', p.oid::regprocedure) AS statement
  FROM pg_proc AS p
  WHERE p.pronamespace = 'pg_catalog'::regnamespace
    AND p.proname = ANY ($1::text[])
    AND NOT has_function_privilege('mpp_controller', p.oid, 'EXECUTE')
  UNION ALL
  SELECT 'pg_signal_backend', 'GRANT pg_signal_backend TO mpp_controller'
  WHERE NOT pg_has_role('mpp_controller', 'pg_signal_backend', 'USAGE')
  UNION ALL
  SELECT 'deadlock_timeout', 'GRANT SET ON PARAMETER deadlock_timeout TO mpp_controller'
  WHERE NOT has_parameter_privilege('mpp_controller', 'deadlock_timeout', 'SET')
  ORDER BY name`;
