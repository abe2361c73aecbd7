import type pg from 'pg';

/** The functions of Citus that a controller calls; which of them exist depends on its version. */
const FUNCTIONS = [
  'citus_add_node',
  'citus_add_secondary_node',
  'citus_pause_node_within_txn',
  'citus_remove_node',
  'citus_set_coordinator_host',
  'citus_update_node',
  'lock_shard_metadata',
] as const;

/**
 * Gives the role mpp_controller what it needs, so that a controller need not be a superuser: Citus's
 * functions, ending sessions that are in the way of a hold, and deadlock_timeout for its own. The caller
 * must be a superuser, and the role must exist.
 *
 * @param client a session without an open transaction
 * @returns the names of what was granted now; empty when all was before.
 */
export async function grantRights(client: pg.ClientBase): Promise<string[]> {
  await client.query('BEGIN');
  try {
    await client.query("SELECT set_config('citus.enable_ddl_propagation', 'off', true)");
    const { rows } = await client.query<{ name: string; statement: string }>(MISSING_GRANTS, [
      FUNCTIONS,
    ]);
    for (const { statement } of rows) await client.query(statement);
    await client.query('COMMIT');
    return rows.map((row) => row.name);
  } catch (error) {
    await client.query('ROLLBACK').catch(() => undefined);
    throw error;
  }
}

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
