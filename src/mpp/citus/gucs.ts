import type pg from 'pg';
import type { ClientBase } from 'pg';
import { DatabaseStateError } from '../../errors.js';
import { errorText } from '../../postgres/session.js';
import type { GucChange, GucState, GucStates, WantedGucs } from '../abstract.js';

/** The parameters that Citus needs set, in the order in which they are shown. */
const GUC_NAMES = [
  'shared_preload_libraries',
  'max_prepared_transactions',
  'max_worker_processes',
  'wal_level',
  'citus.local_hostname',
  'citus.metadata_sync_retry_interval',
] as const;

/**
 * Citus's daemon sends other nodes a new row of pg_dist_node when it is committed, and leaves that for later
 * when another commit is at the table: two groups that move at once would have them wait for 5 s, the default.
 */
const SYNC_AGAIN = '200ms';
const RETRY_INTERVAL = 'citus.metadata_sync_retry_interval';

/**
 * Background workers: those that parallel queries may take, which is PostgreSQL's own default, and for
 * each database with Citus its maintenance daemon, its queue of tasks, and the one that citus_update_node
 * starts. Without room for the daemon, Citus 13.2 takes the server down in citus_update_node.
 */
const WORKERS = 8;
const WORKERS_A_DATABASE = 3;

type GucName = (typeof GUC_NAMES)[number];

/** What a server has: each value as it will be after a restart, null where there is none. */
export interface CurrentGucs {
  readonly values: Readonly<Record<GucName, string | null>>;
  readonly maxConnections: number;
  /** Names of parameters that stand in a file of the configuration: a person has chosen their value. */
  readonly chosen: ReadonlySet<string>;
}

/**
 * Decides what to change so that a server is fit for Citus. Citus comes first among the preloaded
 * libraries, because it must hook in before the others; the others stay, in their order.
 */
export function planGucs(
  { values, maxConnections, chosen }: CurrentGucs,
  wanted: WantedGucs,
): GucChange[] {
  const libraries = parseLibraries(values.shared_preload_libraries ?? '');
  const citus = libraries.filter(isCitus);
  const prepared = Number(values.max_prepared_transactions ?? 0);
  const workers = WORKERS + WORKERS_A_DATABASE * Math.max(wanted.databases, 1);
  const plan: Record<GucName, readonly string[] | undefined> = {
    shared_preload_libraries:
      citus.length === 1 && citus[0] === libraries[0]
        ? undefined
        : [citus[0] ?? 'citus', ...libraries.filter((library) => !isCitus(library))],
    max_prepared_transactions: prepared === 0 ? [String(2 * maxConnections)] : undefined,
    max_worker_processes:
      Number(values.max_worker_processes ?? 0) < workers ? [String(workers)] : undefined,
    wal_level: values.wal_level?.toLowerCase() === 'logical' ? undefined : ['logical'],
    // What is there stays, unless another value was asked for by name.
    'citus.local_hostname':
      values['citus.local_hostname'] === wanted.localHostname ||
      (values['citus.local_hostname'] !== null && !wanted.isHostnameNamed)
        ? undefined
        : [wanted.localHostname],
    'citus.metadata_sync_retry_interval':
      ['5s', null].includes(values[RETRY_INTERVAL]) && !chosen.has(RETRY_INTERVAL)
        ? [SYNC_AGAIN]
        : undefined,
  };
  return GUC_NAMES.flatMap((name) => {
    const value = plan[name];
    return value === undefined ? [] : [{ name, current: values[name], wanted: value }];
  });
}

/**
 * Splits a list of libraries as PostgreSQL does: by commas, blanks around an entry dropped, double
 * quotes around one that has commas or blanks in it, a doubled quote for a quote.
 */
export function parseLibraries(list: string): string[] {
  return [...list.matchAll(/\s*(?:"((?:[^"]|"")*)"|([^,"]+))\s*(?:,|$)/g)]
    .map(([, quoted, plain]) => quoted?.replaceAll('""', '"') ?? (plain ?? '').trim())
    .filter((library) => library !== '');
}

/** Whether a value of shared_preload_libraries names Citus. */
export function preloadsCitus(list: string): boolean {
  return parseLibraries(list).some(isCitus);
}

/** A library may be written with its folder and its suffix. File names differ by case, so this does. */
function isCitus(library: string): boolean {
  return /^(.*\/)?citus(\.so)?$/.test(library);
}

/**
 * Reads the parameters that `planGucs` looks at, one row each, known to the server or not.
 *
 * @throws DatabaseStateError `HIDDEN_GUCS` when this role may not see all of them: planned without
 *   the libraries that are there, a change would drop them.
 */
export async function readGucs(client: pg.ClientBase): Promise<GucStates> {
  const allowed = await client.query<{ allowed: boolean }>(
    "SELECT has_table_privilege('pg_file_settings', 'SELECT') AS allowed",
  );
  const statement = allowed.rows[0]?.allowed === true ? GUCS_WITH_FILES : GUCS;
  const { rows } = await client.query<GucState>(statement, [[...GUC_NAMES, 'max_connections']]);
  const states = new Map(rows.map((row) => [row.name, row]));
  if (states.get('shared_preload_libraries')?.running === null) {
    throw new DatabaseStateError(
      'HIDDEN_GUCS',
      'this role may not see shared_preload_libraries; connect as a superuser or a member of pg_read_all_settings',
    );
  }
  return states;
}

/**
 * The values as they will be after a restart: what the files say where a restart is pending, so that
 * a change that was made once is not asked for again.
 */
export function currentGucs(states: GucStates): CurrentGucs {
  const value = (name: GucName | 'max_connections'): string | null => {
    const state = states.get(name);
    if (state === undefined) return null;
    const wins = state.running === null || state.pendingRestart;
    return wins ? (state.configured ?? state.running) : state.running;
  };
  return {
    values: {
      shared_preload_libraries: value('shared_preload_libraries'),
      max_prepared_transactions: value('max_prepared_transactions'),
      max_worker_processes: value('max_worker_processes'),
      wal_level: value('wal_level'),
      'citus.local_hostname': value('citus.local_hostname'),
      'citus.metadata_sync_retry_interval': value('citus.metadata_sync_retry_interval'),
    },
    maxConnections: Number(value('max_connections') ?? 0),
    chosen: new Set(
      [...states.values()].flatMap(({ name, configured }) => (configured === null ? [] : [name])),
    ),
  };
}

/** Citus keeps some of its parameters out of pg_settings. */
const GUCS = `
  SELECT wanted.name,
         CASE WHEN wanted.name LIKE 'citus.%' THEN current_setting(wanted.name, true) ELSE s.setting END AS running,
         NULL::text AS configured,
         coalesce(s.pending_restart, false) AS "pendingRestart",
         coalesce(s.source = 'command line', false) AS "onCommandLine",
         coalesce(s.context, CASE WHEN wanted.name LIKE 'citus.%' THEN 'sighup' END, 'postmaster') = 'postmaster'
           AS "needsRestart"
  FROM unnest($1::text[]) AS wanted (name)
  LEFT JOIN pg_settings AS s ON s.name = wanted.name
  ORDER BY array_position($1::text[], wanted.name)`;

const GUCS_WITH_FILES = `
  SELECT g.name, g.running, f.setting AS configured,
         g."pendingRestart", g."onCommandLine", g."needsRestart"
  FROM (${GUCS}) AS g
  LEFT JOIN LATERAL (
    SELECT fs.setting
    FROM pg_file_settings AS fs
    WHERE lower(fs.name) = g.name
    ORDER BY fs.seqno DESC
    LIMIT 1
  ) AS f ON true
  ORDER BY array_position($1::text[], g.name)`;

/** How many databases of this server have Citus, as far as that can be seen from one of them. */
export async function countDatabases(
  client: pg.ClientBase,
  named: readonly string[],
): Promise<number> {
  const { rows } = await client.query<{ count: number }>(COUNT_DATABASES, [named]);
  return rows[0]?.count ?? 1;
}

/** Those that are named, this one, and those whose maintenance daemon runs. */
const COUNT_DATABASES = `
  SELECT count(DISTINCT d.name)::integer AS count
  FROM (
    SELECT unnest($1::text[]) AS name
    UNION ALL SELECT current_database()
    UNION ALL SELECT a.datname FROM pg_stat_activity AS a WHERE a.application_name = 'Citus Maintenance Daemon'
  ) AS d
  WHERE d.name IS NOT NULL`;

/** Citus's own default is 5 s, and `mpp-controller gucs` wants 200 ms. */
const LONG_MS = 1_000;

interface Interval {
  /** As PostgreSQL writes it, such as `5s`. */
  readonly value: string;
  readonly ms: number;
}

/**
 * Looks whether Citus may keep the other nodes out of date for long after a row has moved: clients that
 * enter there wait so long.
 *
 * @returns sentences, each with the command that changes it; none where nothing is to be said.
 */
export async function adviseSyncInterval(session: ClientBase): Promise<string[]> {
  const { rows } = await session.query<Interval>(READ_INTERVAL, [RETRY_INTERVAL]);
  return rows[0] === undefined ? [] : describeInterval(rows[0]);
}

/** Pure. */
export function describeInterval({ value, ms }: Interval): string[] {
  if (ms <= LONG_MS) return [];
  return [
    `${RETRY_INTERVAL} is ${value}: after a switchover, clients of other nodes than the coordinator can wait ` +
      `so long for the new row; run mpp-controller gucs --apply or, where a configuration file sets it, ` +
      `ALTER SYSTEM SET ${RETRY_INTERVAL} = '${SYNC_AGAIN}' and SELECT pg_reload_conf()`,
  ];
}

/** No row where the parameter is not known. */
const READ_INTERVAL = `
  SELECT s.value, (extract(epoch FROM s.value::interval) * 1000)::float8 AS ms
  FROM current_setting($1, true) AS s (value)
  WHERE s.value ~ '^[0-9.]+ ?(us|ms|s|min|h|d)$'`;

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
