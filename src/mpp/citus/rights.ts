import pg, { type ClientBase } from 'pg';
import type { MissingRight } from '../abstract.js';

interface Wrapper {
  readonly name: string;
  /** With names, as CREATE FUNCTION has them. */
  readonly parameters: string;
  /** Types alone, as oidvectortypes() writes them. */
  readonly types: string;
  readonly returns: string;
  readonly body: string;
  readonly comment: string;
}

/** The checks of all three. What Citus makes of other values is not tried with a superuser's rights. */
const CHECK_ADDRESS = `
  IF host IS NULL OR octet_length(host) > 255 OR host !~ '^[A-Za-z0-9_:/][A-Za-z0-9._:/~@%+=#-]*$' THEN
    RAISE EXCEPTION 'not a host: %', quote_nullable(left(host, 60)) USING ERRCODE = 'invalid_parameter_value';
  END IF;
  IF port IS NULL OR port NOT BETWEEN 1 AND 65535 THEN
    RAISE EXCEPTION 'port % is outside 1-65535', coalesce(port::text, 'NULL') USING ERRCODE = 'invalid_parameter_value';
  END IF;`;

/**
 * Functions that do what Citus allows to superusers alone, with the rights of the superuser who installs
 * them. They call nothing but PostgreSQL's and Citus's own functions: any other of the schema belongs to
 * the schema's owner, who would run code as a superuser in this way.
 */
const WRAPPERS: readonly Wrapper[] = [
  {
    name: 'mpp_add_node',
    parameters: 'host text, port integer, groupid integer, role text',
    types: 'text, integer, integer, text',
    returns: 'integer',
    body: `
BEGIN
  ${CHECK_ADDRESS.trim()}
  IF groupid IS NULL OR groupid < 0 THEN
    RAISE EXCEPTION 'group % is not a group', coalesce(groupid::text, 'NULL') USING ERRCODE = 'invalid_parameter_value';
  END IF;
  IF role IS NULL OR role NOT IN ('primary', 'secondary') THEN
    RAISE EXCEPTION 'unknown role %', quote_nullable(left(role, 60)) USING ERRCODE = 'invalid_parameter_value';
  END IF;
  RETURN pg_catalog.citus_add_node(host, port, groupid, role::pg_catalog.noderole);
END
`,
    comment: 'citus_add_node with the rights of a superuser, for members of mpp_controller.',
  },
  {
    name: 'mpp_remove_node',
    parameters: 'host text, port integer',
    types: 'text, integer',
    returns: 'void',
    body: `
BEGIN
  ${CHECK_ADDRESS.trim()}
  IF EXISTS (
    SELECT
    FROM pg_catalog.pg_dist_node AS n
    WHERE n.nodename = host AND n.nodeport = port
      AND (n.noderole <> 'secondary' OR n.nodecluster <> 'default'))
  THEN
    RAISE EXCEPTION 'node %:% is no secondary of the default cluster: only a superuser removes it', host, port
      USING ERRCODE = 'insufficient_privilege';
  END IF;
  PERFORM pg_catalog.citus_remove_node(host, port);
END
`,
    comment:
      'citus_remove_node for a secondary with the rights of a superuser, for members of mpp_controller.',
  },
  {
    name: 'mpp_set_coordinator_host',
    parameters: 'host text, port integer',
    types: 'text, integer',
    returns: 'void',
    body: `
BEGIN
  ${CHECK_ADDRESS.trim()}
  PERFORM pg_catalog.citus_set_coordinator_host(host, port);
END
`,
    comment:
      'citus_set_coordinator_host with the rights of a superuser, for members of mpp_controller.',
  },
];

/** Name and argument types of each. */
export const WRAPPER_SIGNATURES: readonly Pick<Wrapper, 'name' | 'types'>[] = WRAPPERS;

/**
 * Installs the wrappers that are missing or not as they are here. The caller must be a superuser, in an
 * open transaction without propagation of DDL.
 *
 * @returns the names of those that were installed now
 */
export async function installWrappers(client: pg.ClientBase, schema: string): Promise<string[]> {
  const installed: string[] = [];
  for (const wrapper of WRAPPERS) {
    const { name, types, body } = wrapper;
    const { rows } = await client.query<{ good: boolean }>(IS_GOOD, [schema, name, types, body]);
    if (rows[0]?.good === true) continue;
    await install(client, schema, wrapper);
    installed.push(name);
  }
  return installed;
}

async function install(client: pg.ClientBase, schema: string, wrapper: Wrapper): Promise<void> {
  const { name, parameters, types, returns, body, comment } = wrapper;
  const signature = `${pg.escapeIdentifier(schema)}.${name}(${types})`;
  // CREATE OR REPLACE would leave it with the owner that it has, who can change it at any time.
  await client.query(`DROP FUNCTION IF EXISTS ${signature}`);
  await client.query(`
    CREATE FUNCTION ${pg.escapeIdentifier(schema)}.${name}(${parameters}) RETURNS ${returns}
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS ${pg.escapeLiteral(body)}`);
  await client.query(`COMMENT ON FUNCTION ${signature} IS ${pg.escapeLiteral(comment)}`);
  await client.query(`REVOKE ALL ON FUNCTION ${signature} FROM PUBLIC`);
  await client.query(`GRANT EXECUTE ON FUNCTION ${signature} TO mpp_controller`);
}

/** Owned by a superuser, for mpp_controller and the owner alone, with this body. */
const IS_GOOD = `
  SELECT EXISTS (
    SELECT
    FROM pg_proc AS p
    JOIN pg_namespace AS n ON n.oid = p.pronamespace
    JOIN pg_roles AS o ON o.oid = p.proowner
    WHERE n.nspname = $1 AND p.proname = $2 AND oidvectortypes(p.proargtypes) = $3
      AND p.prosrc = $4
      AND p.prosecdef
      AND p.proconfig = ARRAY['search_path=pg_catalog, pg_temp']
      AND o.rolsuper
      AND (SELECT array_agg(a.grantee ORDER BY a.grantee) FROM aclexplode(p.proacl) AS a)
            = (SELECT array_agg(r.oid ORDER BY r.oid) FROM pg_roles AS r WHERE r.oid IN (p.proowner, 'mpp_controller'::regrole))
  ) AS good`;

/** Which of Citus's functions a call is about, and the wrapper for it. */
type Superusers = 'citus_add_node' | 'citus_remove_node' | 'citus_set_coordinator_host';

const WRAPPER_OF: Readonly<Record<Superusers, string>> = {
  citus_add_node: 'mpp_add_node',
  citus_remove_node: 'mpp_remove_node',
  citus_set_coordinator_host: 'mpp_set_coordinator_host',
};

/**
 * Calls a function that Citus allows to superusers alone: itself where this role is one, else by its
 * wrapper, else itself again, because another release may allow it.
 *
 * @throws Citus's error, and with it what installs the wrapper.
 */
export async function callAsSuperuser(
  session: pg.ClientBase,
  name: Superusers,
  values: readonly (string | number)[],
): Promise<void> {
  const wrapper = WRAPPERS.find((one) => one.name === WRAPPER_OF[name]);
  if (wrapper === undefined) throw new Error(`there is no wrapper for ${name}`);
  const { rows } = await session.query<{ superuser: boolean; installed: boolean }>(WHICH, [
    wrapper.name,
    wrapper.types,
  ]);
  const { superuser = false, installed = false } = rows[0] ?? {};
  const types = wrapper.types.split(', ');
  const places = values.map((_, index) => `$${index + 1}::${types[index] ?? 'text'}`);
  const isWrapped = !superuser && installed;
  // The role of a node has a type of its own, which only Citus knows.
  const args = isWrapped ? places : values.map((_, index) => `$${index + 1}`);
  const target = isWrapped ? `@mpp.${wrapper.name}` : `pg_catalog.${name}`;
  try {
    await session.query({ text: `SELECT ${target}(${args.join(', ')})`, values: [...values] });
  } catch (error) {
    if (!superuser && !installed && isRefused(error)) explain(error, name, wrapper.name);
    throw error;
  }
}

const WHICH = `
  SELECT (SELECT r.rolsuper FROM pg_roles AS r WHERE r.rolname = current_user) AS superuser,
         @mpp.mpp_is_installed($1::name, $2::text) AS installed`;

/** Citus's own refusal has no SQLSTATE of its own; on the way to other nodes it is PostgreSQL's. */
function isRefused(error: unknown): error is pg.DatabaseError {
  return error instanceof pg.DatabaseError && ['42501', 'XX000'].includes(error.code ?? '');
}

/** The same error: its SQLSTATE decides what becomes of the task. */
function explain(error: pg.DatabaseError, name: string, wrapper: string): void {
  const hint = error.hint === undefined ? '' : ` ${error.hint}`;
  error.message =
    `Citus lets only a superuser call ${name}: run mpp-controller bootstrap as a superuser, ` +
    `which installs ${wrapper} for members of mpp_controller. Citus says: ${error.message}.${hint}`;
}

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

/** The functions of Citus that a controller calls on the coordinator, and on other nodes. */
const CALLED = ['citus_update_node', 'citus_pause_node_within_txn', 'lock_shard_metadata'];
const CALLED_ON_NODES = ['lock_shard_metadata'];

/** Says what a hold, or a change of pg_dist_node, cannot do with the rights of this role. */
export async function missingRights(session: ClientBase): Promise<MissingRight[]> {
  const names = WRAPPER_SIGNATURES.map(({ name }) => name);
  const types = WRAPPER_SIGNATURES.map(({ types }) => types);
  const { rows } = await session.query<Lacks>(readLacks(MISSING_WRAPPERS), [CALLED, names, types]);
  return rows.flatMap(describeLacks);
}

/** The same on another node, where only locks are taken and sessions are ended. */
export async function missingNodeRights(session: ClientBase): Promise<MissingRight[]> {
  const { rows } = await session.query<Lacks>(readLacks("'{}'::text[]"), [CALLED_ON_NODES]);
  return rows.flatMap(describeLacks);
}

/** Pure. */
function describeLacks(lacks: Lacks): MissingRight[] {
  const { role, tables, wrappers, functions } = lacks;
  const found: MissingRight[] = [];
  const add = (kind: MissingRight['kind'], what: string, how: string, grants: string[] = []) =>
    void found.push({ kind, sentence: `role ${role} ${what}: ${how}`, grants });
  if (tables.length > 0) found.push(tablesOf(lacks));
  if (functions.length > 0) {
    const how = 'run mpp-controller bootstrap as a superuser, which grants it';
    add('functions', `may not call ${functions.join(', ')}`, how);
  }
  if (lacks.mayNotSignal) {
    const grant = `GRANT pg_signal_backend TO ${role}`;
    const what = 'may not end sessions that block a hold past their cooldown';
    add('signal', what, `run ${grant}`, [grant]);
  }
  if (lacks.mayNotSetDeadlockTimeout) {
    const grant = `GRANT SET ON PARAMETER deadlock_timeout TO ${role}`;
    const what = 'may not set deadlock_timeout, so that a hold can lose a deadlock';
    add('deadlock_timeout', what, `run ${grant}`, [grant]);
  }
  if (wrappers.length > 0) {
    const what = 'cannot add or remove nodes, nor register the coordinator';
    const how = `run mpp-controller bootstrap as a superuser, which installs ${wrappers.join(', ')}`;
    add('wrappers', what, how);
  }
  return found;
}

function tablesOf({ role, tables, owners, superowners }: Lacks): MissingRight {
  const more = tables.length - NAMED_TABLES;
  const named = tables.slice(0, NAMED_TABLES).join(', ') + (more > 0 ? ` and ${more} more` : '');
  const grants = owners.length > 0 ? [`GRANT ${owners.join(', ')} TO ${role}`] : [];
  const how = grants.map((grant) => `run ${grant}`);
  if (superowners.length > 0) {
    how.push(`give the tables of ${superowners.join(', ')} to a role that is no superuser`);
  }
  return {
    kind: 'tables',
    sentence:
      `role ${role} may not lock ${named}: with pause all, reads of a held group that has them do not wait; ` +
      how.join(', and '),
    grants,
  };
}

const MISSING_WRAPPERS = `
  ARRAY(
    SELECT w.name
    FROM unnest($2::text[], $3::text[]) WITH ORDINALITY AS w (name, types, place)
    WHERE NOT me.rolsuper AND NOT @mpp.mpp_is_installed(w.name::name, w.types)
    ORDER BY w.place)`;

/** @param wrappers an expression for the functions of bootstrap that are missing; a constant, never input */
function readLacks(wrappers: string): string {
  return `
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
         ${wrappers} AS wrappers,
         ARRAY(
           SELECT DISTINCT p.proname::text
           FROM pg_proc AS p
           WHERE p.pronamespace = 'pg_catalog'::regnamespace
             AND p.proname = ANY ($1::text[])
             AND NOT has_function_privilege(p.oid, 'EXECUTE')
           ORDER BY 1) AS functions
  FROM me`;
}
