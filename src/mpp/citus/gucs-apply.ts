import type pg from 'pg';
import { DatabaseStateError } from '../../errors.js';
import { errorText } from '../../postgres/session.js';
import type { GucChange } from '../setup.js';
import { parseLibraries } from './gucs.js';

/**
 * Writes the changes with ALTER SYSTEM and reloads the configuration: all of them, or none. Each is a
 * statement of its own, as ALTER SYSTEM runs in no transaction, so after an error those that were
 * written before it are put back.
 *
 * @throws DatabaseStateError `GUCS_REFUSED`
 */
export async function applyGucs(
  client: pg.ClientBase,
  changes: readonly GucChange[],
): Promise<void> {
  const names = changes.map(({ name }) => name);
  const refused = await readRefused(client, names);
  if (refused.length > 0) {
    throw new DatabaseStateError(
      'GUCS_REFUSED',
      `this role may not set ${refused.join(', ')}, nothing was changed; connect as a superuser, or ` +
        `GRANT ALTER SYSTEM ON PARAMETER ${refused.join(', ')} TO this role`,
    );
  }
  await requireReload(client);
  const before = await readWritten(client, names);
  const written: string[] = [];
  for (const { name, wanted } of changes) {
    try {
      await introduce(client, name, wanted);
      await alterSystem(client, name, wanted);
      written.push(name);
    } catch (error) {
      const left = await putBack(client, written, before);
      const outcome =
        left.length === 0
          ? 'nothing was changed'
          : `${left.join(', ')} could not be put back; ALTER SYSTEM RESET does it`;
      throw new DatabaseStateError(
        'GUCS_REFUSED',
        `${name} cannot be set to ${wanted.join(', ')}: ${errorText(error)}; ${outcome}`,
      );
    }
  }
  await client.query('SELECT pg_reload_conf()');
}

/** Without it they would be written, and the command would fail after that. */
async function requireReload(client: pg.ClientBase): Promise<void> {
  const { rows } = await client.query<{ allowed: boolean }>(MAY_RELOAD);
  if (rows[0]?.allowed === true) return;
  throw new DatabaseStateError(
    'GUCS_REFUSED',
    'this role may not reload the configuration, nothing was changed; connect as a superuser, or ' +
      'GRANT EXECUTE ON FUNCTION pg_reload_conf() TO this role',
  );
}

/** Up to PostgreSQL 16, ALTER SYSTEM refuses a parameter that this session has not heard of. */
async function introduce(
  client: pg.ClientBase,
  name: string,
  wanted: readonly string[],
): Promise<void> {
  if (name.startsWith('citus.')) await client.query(INTRODUCE, [name, wanted[0]]);
}

async function alterSystem(
  client: pg.ClientBase,
  name: string,
  values: readonly string[] | undefined,
): Promise<void> {
  const { rows } = await client.query<{ statement: string }>(ALTER_SYSTEM, [name, values ?? []]);
  for (const { statement } of rows) await client.query(statement);
}

/** @returns the parameters for which that failed. */
async function putBack(
  client: pg.ClientBase,
  names: readonly string[],
  before: ReadonlyMap<string, string> | undefined,
): Promise<string[]> {
  const left: string[] = [];
  for (const name of names) {
    if (before === undefined) {
      left.push(name);
      continue;
    }
    const value = before.get(name);
    const isList = name === 'shared_preload_libraries';
    const values = value === undefined ? undefined : isList ? parseLibraries(value) : [value];
    await alterSystem(client, name, values).catch(() => left.push(name));
  }
  return left;
}

/** @returns those of the parameters that this role may not set. */
async function readRefused(client: pg.ClientBase, names: readonly string[]): Promise<string[]> {
  const { rows } = await client.query<{ superuser: boolean; grantable: boolean }>(MAY);
  const { superuser = false, grantable = false } = rows[0] ?? {};
  if (superuser) return [];
  // Before PostgreSQL 15 it is the superuser's alone.
  if (!grantable) return [...names];
  const found = await client.query<{ name: string }>(NOT_GRANTED, [names]);
  return found.rows.map(({ name }) => name);
}

/** What ALTER SYSTEM has written of them before; undefined where this role may not look. */
async function readWritten(
  client: pg.ClientBase,
  names: readonly string[],
): Promise<ReadonlyMap<string, string> | undefined> {
  const { rows } = await client.query<{ allowed: boolean }>(MAY_READ_FILES);
  if (rows[0]?.allowed !== true) return undefined;
  const found = await client.query<{ name: string; setting: string }>(WRITTEN, [names]);
  return new Map(found.rows.map(({ name, setting }) => [name, setting]));
}

/** One that the server knows already needs no introduction, and may be refused it. */
const INTRODUCE = 'SELECT set_config($1, $2, false) WHERE current_setting($1, true) IS NULL';

const MAY = `
  SELECT r.rolsuper AS superuser, current_setting('server_version_num')::integer >= 150000 AS grantable
  FROM pg_roles AS r
  WHERE r.rolname = current_user`;

const NOT_GRANTED = `
  SELECT n.name
  FROM unnest($1::text[]) AS n (name)
  WHERE NOT has_parameter_privilege(n.name, 'ALTER SYSTEM')`;

const MAY_RELOAD = `SELECT has_function_privilege('pg_reload_conf()', 'EXECUTE') AS allowed`;

const MAY_READ_FILES = `
  SELECT has_table_privilege('pg_file_settings', 'SELECT')
     AND has_function_privilege('pg_show_all_file_settings()', 'EXECUTE') AS allowed`;

const WRITTEN = `
  SELECT DISTINCT ON (lower(f.name)) lower(f.name) AS name, f.setting
  FROM pg_file_settings AS f
  WHERE lower(f.name) = ANY ($1::text[])
    AND f.sourcefile LIKE '%postgresql.auto.conf'
  ORDER BY lower(f.name), f.seqno DESC`;

/**
 * ALTER SYSTEM takes no parameters: the server quotes the values, as literals, one an entry of a list.
 * Without a value it is reset.
 */
const ALTER_SYSTEM = `
  SELECT CASE WHEN cardinality($2::text[]) = 0 THEN format('ALTER SYSTEM RESET %I', $1::text)
              ELSE format('ALTER SYSTEM SET %I = %s', $1::text, (
                SELECT string_agg(quote_literal(v.value), ', ' ORDER BY v.n)
                FROM unnest($2::text[]) WITH ORDINALITY AS v (value, n)))
         END AS statement`;
