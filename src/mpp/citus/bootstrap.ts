import type pg from 'pg';
import { DatabaseStateError, MppError, UnreachableError } from '../../errors.js';
import {
  closeSession,
  errorText,
  openSession,
  isDuplicate,
  openDatabase,
} from '../../postgres/session.js';
import { applyMigrations } from '../../postgres/migrate.js';
import { isSessionLost, sqlState } from '../../postgres/sqlstate.js';
import type { BootstrapOptions, StepReport } from '../abstract.js';
import { refuseWorker } from './nodes.js';
import { preloadsCitus } from './gucs.js';
import { installWrappers } from './rights.js';

/** classid of the advisory lock "this session sets the database up": objid 0; session-level. It belongs to one database. */
const BOOTSTRAP_LOCK = 1297109067;

type Outcome = Pick<StepReport, 'outcome' | 'detail'>;

interface Step {
  readonly name: string;
  /** What to do when it fails. */
  readonly advice: string;
  readonly run: (client: pg.Client) => Promise<Outcome>;
}

/**
 * Makes a server ready: database, extension, credentials, the coordinator's own row, the control
 * table, and the rights of the controller. Each step looks first and changes only what is missing, so
 * that it can be run again at any time, also by two at once.
 *
 * @param report called after each step
 * @throws UnreachableError when there is no session, DatabaseStateError `BOOTSTRAP` when a step
 *   fails; the steps before it stay done.
 */
export async function bootstrap(
  options: BootstrapOptions,
  report: (step: StepReport) => void,
): Promise<void> {
  const { client: guard, made } = await attempt(DATABASE_ADVICE, 'database', () =>
    openDatabase(options.connection),
  );
  try {
    if (!options.worker) await attempt(WORKER_ADVICE, 'server', () => refuseWorker(guard));
    report({ step: 'database', outcome: madeIf(made), detail: guard.database ?? '' });
    await attempt('run bootstrap again', 'turn', () => takeTurn(guard, options.migrateTimeoutMs));
    for (const { name, advice, run } of steps(options)) {
      // A session each: migrations change the settings of theirs, CREATE EXTENSION what is loaded.
      const client = await openSession(options.connection, 'bootstrap');
      try {
        report({ step: name, ...(await attempt(advice, name, () => run(client))) });
      } finally {
        await closeSession(client);
      }
    }
  } finally {
    await closeSession(guard);
  }
}

function steps(options: BootstrapOptions): Step[] {
  const { authinfo } = options;
  const everywhere: (Step | undefined)[] = [
    {
      name: 'extension',
      advice: 'connect as a superuser, to a server that has Citus and preloads it',
      run: ensureExtension,
    },
    authinfo === undefined
      ? undefined
      : {
          name: 'credentials',
          advice: 'connect as a superuser',
          run: (client) => ensureAuthinfo(client, authinfo),
        },
  ];
  return [...everywhere, ...(options.worker ? [] : coordinatorSteps(options))].filter(
    (step) => step !== undefined,
  );
}

function coordinatorSteps({ coordinator, schema, migrateTimeoutMs }: BootstrapOptions): Step[] {
  return [
    {
      name: 'coordinator',
      advice: 'connect as a superuser, and set MPP_COORDINATOR_HOST to a host that it answers on',
      run: (client) => ensureCoordinator(client, coordinator),
    },
    {
      name: 'control table',
      advice: 'connect as a superuser or a role that may create roles and schemas',
      run: async (client) => {
        const names = await applyMigrations(client, { schema, lockTimeoutMs: migrateTimeoutMs });
        return {
          outcome: madeIf(names.length > 0),
          detail: [`schema ${schema}`, ...names].join(', '),
        };
      },
    },
    {
      name: 'grants',
      advice: 'connect as a superuser',
      run: async (client) => {
        const names = await grantRights(client, schema);
        return {
          outcome: madeIf(names.length > 0),
          detail: ['mpp_controller', ...names].join(', '),
        };
      },
    },
  ];
}

async function attempt<T>(advice: string, step: string, run: () => Promise<T>): Promise<T> {
  try {
    return await run();
  } catch (error) {
    if (error instanceof MppError) throw error;
    if (isSessionLost(error)) {
      throw new UnreachableError(`${step}: the session was lost; run bootstrap again`, error);
    }
    throw new DatabaseStateError('BOOTSTRAP', `${step}: ${errorText(error)}; ${advice}`);
  }
}

const WORKER_ADVICE = 'connect as a superuser';
const DATABASE_ADVICE = 'create it yourself, or connect as a role that may';

/** Those who set up the same database take turns: GRANT in two sessions at once is an error. */
async function takeTurn(guard: pg.Client, timeoutMs: number): Promise<void> {
  const { rows } = await guard.query<{ standby: boolean }>('SELECT pg_is_in_recovery() AS standby');
  if (rows[0]?.standby === true) {
    throw new DatabaseStateError(
      'IN_RECOVERY',
      'this server is a standby, where nothing can be written; run bootstrap on its primary',
    );
  }
  await guard.query("SELECT set_config('lock_timeout', $1, false)", [`${timeoutMs}ms`]);
  try {
    await guard.query('SELECT pg_advisory_lock($1, 0)', [BOOTSTRAP_LOCK]);
  } catch (error) {
    if (sqlState(error) !== LOCK_NOT_AVAILABLE) throw error;
    const holders = await guard.query<{ holder: string; rolsuper: boolean | null }>(TURN_HOLDERS, [
      BOOTSTRAP_LOCK,
    ]);
    // Any role can take the lock, and only a superuser can be setting up.
    if (holders.rows.every(({ rolsuper }) => rolsuper !== true)) return;
    const names = holders.rows.map(({ holder }) => holder).join(', ');
    throw new DatabaseStateError(
      'BOOTSTRAP_LOCK',
      `another bootstrap of this database has not ended (${names}); wait for it, or raise MPP_MIGRATE_TIMEOUT`,
      { retryable: true },
    );
  }
}

async function ensureExtension(client: pg.Client): Promise<Outcome> {
  const { rows } = await client.query<{
    installed: string | null;
    available: string | null;
    libraries: string;
  }>(EXTENSION);
  const { installed = null, available = null, libraries = '' } = rows[0] ?? {};
  if (installed !== null) return { outcome: 'already there', detail: `citus ${installed}` };
  if (available === null) {
    throw new DatabaseStateError(
      'NO_CITUS',
      'extension: Citus is not installed on this server; install its packages for this version of PostgreSQL',
    );
  }
  if (!preloadsCitus(libraries)) {
    throw new DatabaseStateError(
      'CITUS_NOT_LOADED',
      'extension: this server does not preload Citus; run mpp-controller gucs --apply and restart PostgreSQL',
    );
  }
  try {
    await client.query('CREATE EXTENSION IF NOT EXISTS citus');
  } catch (error) {
    // IF NOT EXISTS looks before it waits for another session that is making it.
    if (!isDuplicate(error)) throw error;
    return { outcome: 'already there', detail: `citus ${available}` };
  }
  return { outcome: 'done', detail: `citus ${available}` };
}

async function ensureAuthinfo(client: pg.Client, authinfo: string): Promise<Outcome> {
  try {
    const { rows } = await client.query<{ rolename: string; changed: boolean }>(AUTHINFO, [
      authinfo,
    ]);
    const { rolename = '', changed = false } = rows[0] ?? {};
    return { outcome: madeIf(changed), detail: `for role ${rolename}` };
  } catch (error) {
    if (sqlState(error) !== CHECK_VIOLATION) throw error;
    // Not the server's own error: its detail quotes the row, password and all.
    throw new DatabaseStateError(
      'BAD_AUTHINFO',
      'credentials: Citus does not accept MPP_AUTHINFO; give password=... or sslcert=... sslkey=...',
    );
  }
}

async function ensureCoordinator(
  client: pg.Client,
  { host, port }: BootstrapOptions['coordinator'],
): Promise<Outcome> {
  const find = async (): Promise<string | undefined> =>
    (await client.query<{ node: string }>(COORDINATOR)).rows[0]?.node;
  const present = await find();
  if (present !== undefined) return { outcome: 'already there', detail: present };
  await client.query(SET_COORDINATOR, [host, port ?? null]);
  return { outcome: 'done', detail: (await find()) ?? host };
}

function madeIf(changed: boolean): Outcome['outcome'] {
  return changed ? 'done' : 'already there';
}

const TURN_HOLDERS = `
  SELECT format('pid %s, role %s'::text, l.pid, r.rolname) AS holder, r.rolsuper
  FROM pg_locks AS l
  LEFT JOIN pg_stat_get_activity(l.pid) AS a ON true
  LEFT JOIN pg_roles AS r ON r.oid = a.usesysid
  WHERE l.locktype = 'advisory' AND l.classid = $1::integer::oid AND l.objid = 0 AND l.objsubid = 2 AND l.granted
    AND l.database = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())`;

const LOCK_NOT_AVAILABLE = '55P03';
const CHECK_VIOLATION = '23514';

const EXTENSION = `
  SELECT (SELECT e.extversion FROM pg_extension AS e WHERE e.extname = 'citus') AS installed,
         (SELECT a.default_version FROM pg_available_extensions AS a WHERE a.name = 'citus') AS available,
         current_setting('shared_preload_libraries') AS libraries`;

/** Row 0 is for every node; a role's own row for one node, should there be one, is left alone. */
const AUTHINFO = `
  WITH written AS (
    INSERT INTO pg_catalog.pg_dist_authinfo AS a (nodeid, rolename, authinfo)
    VALUES (0, current_user, $1)
    ON CONFLICT (rolename, nodeid) DO UPDATE SET authinfo = excluded.authinfo
    WHERE a.authinfo <> excluded.authinfo
    RETURNING 1
  )
  SELECT current_user::text AS rolename, EXISTS (SELECT FROM written) AS changed`;

const COORDINATOR = `
  SELECT format('%s:%s', nodename, nodeport) AS node
  FROM pg_catalog.pg_dist_node
  WHERE groupid = 0 AND noderole = 'primary' AND nodecluster = 'default'`;

const SET_COORDINATOR = `
  SELECT citus_set_coordinator_host($1, coalesce($2::int, current_setting('port')::int))`;

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
 * @param schema of mpp-controller's objects
 * @returns the names of what was granted now; empty when all was before.
 */
async function grantRights(client: pg.ClientBase, schema: string): Promise<string[]> {
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
