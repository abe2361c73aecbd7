import type { ClientBase } from 'pg';
import { WRAPPER_SIGNATURES } from './wrappers.js';

/** What this role lacks; each list is empty, and each flag false, for a superuser. */
interface Lacks {
  /** Quoted. */
  readonly role: string;
  /** Distributed tables that this role may not lock, and the roles that own them; quoted. */
  readonly tables: readonly string[];
  readonly owners: readonly string[];
  /** Owners that are superusers, which no role should be made a member of. */
  readonly superowners: readonly string[];
  readonly mayNotSignal: boolean;
  readonly mayNotSetDeadlockTimeout: boolean;
  /** Functions that bootstrap installs and that this role cannot call. */
  readonly wrappers: readonly string[];
  /** Functions of Citus that this role may not call. */
  readonly functions: readonly string[];
}

/** More tables than these are counted. */
const NAMED_TABLES = 3;

/**
 * Says what a hold, or a change of pg_dist_node, cannot do with the rights of this role, and the statement
 * that gives it the right.
 *
 * @returns sentences; none when nothing is missing.
 */
export async function missingRights(session: ClientBase): Promise<string[]> {
  const { rows } = await session.query<Lacks>(READ_LACKS, [
    WRAPPER_SIGNATURES.map(({ name }) => name),
    WRAPPER_SIGNATURES.map(({ types }) => types),
  ]);
  return rows[0] === undefined ? [] : describeLacks(rows[0]);
}

/** Pure. */
function describeLacks(lacks: Lacks): string[] {
  const { role, tables, owners, superowners, wrappers, functions } = lacks;
  const sentences: string[] = [];
  if (tables.length > 0) {
    const more = tables.length - NAMED_TABLES;
    const named = tables.slice(0, NAMED_TABLES).join(', ') + (more > 0 ? ` and ${more} more` : '');
    const grants = owners.length > 0 ? [`run GRANT ${owners.join(', ')} TO ${role}`] : [];
    const moves =
      superowners.length > 0
        ? [`give the tables of ${superowners.join(', ')} to a role that is no superuser`]
        : [];
    sentences.push(
      `role ${role} may not lock ${named}: with pause all, reads of a held group that has them do not wait; ` +
        [...grants, ...moves].join(', and '),
    );
  }
  if (functions.length > 0) {
    sentences.push(
      `role ${role} may not call ${functions.join(', ')}: run mpp-controller bootstrap as a superuser, which grants it`,
    );
  }
  if (lacks.mayNotSignal) {
    sentences.push(
      `role ${role} may not end sessions that block a hold past their cooldown: run GRANT pg_signal_backend TO ${role}`,
    );
  }
  if (lacks.mayNotSetDeadlockTimeout) {
    sentences.push(
      `role ${role} may not set deadlock_timeout, so that a hold can lose a deadlock: ` +
        `run GRANT SET ON PARAMETER deadlock_timeout TO ${role}`,
    );
  }
  if (wrappers.length > 0) {
    sentences.push(
      `role ${role} cannot add or remove nodes, nor register the coordinator: run mpp-controller bootstrap ` +
        `as a superuser, which installs ${wrappers.join(', ')}`,
    );
  }
  return sentences;
}

const READ_LACKS = `
  WITH me AS (
    SELECT r.oid, r.rolname, r.rolsuper FROM pg_roles AS r WHERE r.rolname = current_user
  ), foreign_table AS (
    SELECT format('%I.%I', n.nspname, c.relname) AS name, o.rolname, o.rolsuper
    FROM pg_catalog.pg_dist_partition AS p
    JOIN pg_class AS c ON c.oid = p.logicalrelid
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    JOIN pg_roles AS o ON o.oid = c.relowner
    WHERE NOT pg_has_role(c.relowner, 'USAGE')
  )
  SELECT quote_ident(me.rolname) AS role,
         ARRAY(SELECT f.name FROM foreign_table AS f ORDER BY f.name) AS tables,
         ARRAY(SELECT DISTINCT quote_ident(f.rolname) FROM foreign_table AS f WHERE NOT f.rolsuper ORDER BY 1) AS owners,
         ARRAY(SELECT DISTINCT quote_ident(f.rolname) FROM foreign_table AS f WHERE f.rolsuper ORDER BY 1) AS superowners,
         NOT me.rolsuper AND NOT pg_has_role('pg_signal_backend', 'USAGE') AS "mayNotSignal",
         NOT has_parameter_privilege('deadlock_timeout', 'SET') AS "mayNotSetDeadlockTimeout",
         ARRAY(
           SELECT w.name
           FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS w (name, types, place)
           WHERE NOT me.rolsuper AND NOT @mpp.mpp_is_installed(w.name::name, w.types)
           ORDER BY w.place) AS wrappers,
         ARRAY(
           SELECT DISTINCT p.proname::text
           FROM pg_proc AS p
           WHERE p.pronamespace = 'pg_catalog'::regnamespace
             AND p.proname IN ('citus_update_node', 'citus_pause_node_within_txn', 'lock_shard_metadata')
             AND NOT has_function_privilege(p.oid, 'EXECUTE')
           ORDER BY 1) AS functions
  FROM me`;
