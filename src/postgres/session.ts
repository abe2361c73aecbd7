import pg from 'pg';
import { UnreachableError } from '../errors.js';
import { closeSession } from './close.js';
import { nameSchema } from './schema-name.js';

/** Where the database is and as whom: everything that node-postgres takes but the names we set. */
export type Connection = Omit<pg.ClientConfig, 'application_name' | 'connectionString'>;

/** What every session of ours is called in pg_stat_activity: `mpp-controller`, then what it is for. */
export function applicationName(purpose: string): string {
  return `mpp-controller ${purpose}`;
}

/**
 * The settings of one session. Keep-alive and a connect timeout are off by default in node-postgres;
 * without them a host that vanishes hangs us for as long as TCP likes.
 */
export function sessionConfig(connection: Connection, purpose: string): pg.ClientConfig {
  return {
    keepAlive: true,
    keepAliveInitialDelayMillis: 5_000,
    connectionTimeoutMillis: 5_000,
    ...connection,
    application_name: applicationName(purpose),
  };
}

/**
 * Opens one session. Its `statement_timeout` and `lock_timeout` are set by a statement once it is
 * open: PgBouncer refuses a login with parameters that it does not know.
 *
 * @param schema of our objects, for sessions whose statements name them
 * @throws UnreachableError when the server cannot be reached, refuses the login, or falls silent.
 */
export async function openSession(
  connection: Connection,
  purpose: string,
  schema?: string,
): Promise<pg.Client> {
  const { statement_timeout, lock_timeout, ...login } = connection;
  const config = sessionConfig(login, purpose);
  const client = new pg.Client(config);
  // A killed session can emit 'error' more than once, and an unheard one ends the process.
  client.on('error', () => undefined);
  try {
    await client.connect();
    if (schema !== undefined || statement_timeout || lock_timeout) {
      const bounds = { statementMs: statement_timeout, lockMs: lock_timeout };
      await setUp(client, config, { ...bounds, ...(schema === undefined ? {} : { schema }) });
    }
  } catch (error) {
    await closeSession(client);
    throw new UnreachableError(
      `cannot connect to ${describeConnection(connection)}: ${errorText(error)}`,
      error,
    );
  }
  return client;
}

/** What a session gets once it is open; what is left out stays as its role has it. Times in milliseconds. */
export interface SetUp {
  /** Of our objects: the session replaces `@mpp.` by it, and its search_path has PostgreSQL's own alone. */
  readonly schema?: string;
  readonly statementMs?: number | false | undefined;
  readonly lockMs?: number | false | undefined;
}

/**
 * Sets up a session that has just been opened. That is a part of connecting, and bounded like it: a
 * server that falls silent right after the login would hang us otherwise.
 */
export async function setUp(
  client: pg.ClientBase,
  { connectionTimeoutMillis }: pg.ClientConfig,
  { schema, statementMs, lockMs }: SetUp,
): Promise<void> {
  // The types of node-postgres know query_timeout for a whole session only.
  const statement: pg.QueryConfig & Pick<pg.ClientConfig, 'query_timeout'> = {
    text: SET_UP,
    values: [schema !== undefined, milliseconds(statementMs), milliseconds(lockMs)],
    ...(connectionTimeoutMillis ? { query_timeout: connectionTimeoutMillis } : {}),
  };
  await client.query(statement);
  if (schema !== undefined) nameSchema(client, schema);
}

function milliseconds(time: number | false | undefined): string | null {
  return time ? `${Math.ceil(time)}ms` : null;
}

/**
 * pg_temp comes last, so that it hides nothing. Without jit: all our statements are short, and where one
 * looks dear to the planner, compiling it takes many times as long as running it.
 */
const SET_UP = `
  SELECT set_config('jit', 'off', false),
         CASE WHEN $1::boolean THEN set_config('search_path', 'pg_catalog, pg_temp', false) END,
         CASE WHEN $2::text IS NOT NULL THEN set_config('statement_timeout', $2::text, false) END,
         CASE WHEN $3::text IS NOT NULL THEN set_config('lock_timeout', $3::text, false) END`;

/** Host, port and database for a message; never the password. */
export function describeConnection(connection: Connection): string {
  const client = new pg.Client(connection);
  return `${client.host}:${client.port}/${client.database ?? ''}`;
}

/** One line for any thrown value. node-postgres throws an AggregateError with an empty message. */
export function errorText(error: unknown): string {
  if (error instanceof AggregateError) return error.errors.map(errorText).join('; ');
  return error instanceof Error ? error.message : String(error);
}
