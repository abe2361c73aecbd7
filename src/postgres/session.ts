import { Socket } from 'node:net';
import type { Duplex } from 'node:stream';
import pg from 'pg';
import { UnreachableError, ConfigError, DatabaseStateError } from '../errors.js';
import { within } from '../wait.js';
import { sqlState } from './sqlstate.js';
import {
  checkTarget,
  formatServer,
  type ServerAddress,
  type TargetSessionAttrs,
} from './connection/target.js';
import { guardMessages, ServerStream } from './connection/stream.js';
import { defaultPasswordFile, passwordFromFile } from './connection/password.js';
import type { TlsPolicy } from './connection/tls.js';
import { nameSchema } from './schema-name.js';

/** Where the database is and as whom: what node-postgres takes but for the names that it sets, and more. */
export interface Connection extends Omit<
  pg.ClientConfig,
  'application_name' | 'connectionString' | 'ssl' | 'stream'
> {
  /** The address of `host`, if it is not to be resolved. */
  readonly hostaddr?: string;
  /** Several servers, in place of `host` and `port`: they are tried in this order. */
  readonly servers?: readonly ServerAddress[];
  /** Which of the servers will do; any by default. */
  readonly targetSessionAttrs?: TargetSessionAttrs;
  /** Without it sessions are not encrypted. */
  readonly tls?: TlsPolicy;
  /** Where the password is looked up, if there is none in `password`. */
  readonly passwordFile?: string;
}

/** What each session of the controller is called in pg_stat_activity: `mpp-controller`, then what it is for. */
export function applicationName(purpose: string): string {
  return `mpp-controller ${purpose}`;
}

/**
 * The settings of one session with one server. Keep-alive and a connect timeout are off by default in
 * node-postgres; without them a host that vanishes hangs the controller for as long as TCP likes.
 */
export function sessionConfig(connection: Connection, purpose: string): pg.ClientConfig {
  const { servers, tls, hostaddr, passwordFile, ...rest } = connection;
  const login: pg.ClientConfig = rest;
  if (servers !== undefined) throw new Error('a session is with one server; see openOnServer');
  const { host = 'localhost', port = DEFAULT_PORT, user = '', database = user } = login;
  const file = passwordFile ?? defaultPasswordFile();
  return {
    keepAlive: true,
    keepAliveInitialDelayMillis: 5_000,
    connectionTimeoutMillis: CONNECT_MS,
    ...login,
    password: login.password ?? (() => passwordFromFile(file, { host, port, user, database })),
    // Set, so that node-postgres reads no variable for it; this stream encrypts.
    ssl: false,
    sslnegotiation: 'postgres',
    stream: () =>
      guardMessages(
        tls && needsStream(connection) ? new ServerStream({ tls, hostaddr }) : new Socket(),
      ),
    application_name: applicationName(purpose),
  };
}

/** Unix sockets have no TLS, and what is never encrypted needs no decision. */
function needsStream({ tls, host, hostaddr }: Connection): boolean {
  if (hostaddr !== undefined) return true;
  return tls?.mode !== 'disable' && host?.startsWith('/') !== true;
}

/** The same connection for each of its servers, in their order. */
export function eachServer({ servers, ...rest }: Connection): Connection[] {
  return servers?.map((server) => ({ ...rest, ...server })) ?? [rest];
}

/** The same connection, with one of its servers tried after all others. */
export function tryLast(connection: Connection, last: Connection): Connection {
  if (connection.servers === undefined) return connection;
  const isLast = ({ host, port, hostaddr }: ServerAddress): boolean =>
    host === last.host && port === last.port && hostaddr === last.hostaddr;
  const others = connection.servers.filter((server) => !isLast(server));
  return { ...connection, servers: [...others, ...connection.servers.filter(isLast)] };
}

/**
 * Opens one session. Its `statement_timeout` and `lock_timeout` are set by a statement once it is
 * open: PgBouncer refuses a login with parameters that it does not know.
 *
 * @param schema of mpp-controller's objects, for sessions whose statements name them
 * @throws UnreachableError when no server can be reached, or the one that can refuses the login, is not
 *   what targetSessionAttrs asks for, or falls silent; its cause says which.
 */
export async function openSession(
  connection: Connection,
  purpose: string,
  schema?: string,
): Promise<pg.Client> {
  return (await openOnServer(connection, purpose, schema)).client;
}

/** The same, and which server it was, by its place in `eachServer`: for what is to work on that one alone. */
export async function openOnServer(
  connection: Connection,
  purpose: string,
  schema?: string,
): Promise<{ client: pg.Client; index: number }> {
  const target = connection.targetSessionAttrs ?? 'any';
  const failures = new Map<string, unknown>();
  for (const pass of target === 'prefer-standby' ? (['standby', 'any'] as const) : [target]) {
    for (const [index, server] of eachServer(connection).entries()) {
      try {
        return { client: await openOne(server, purpose, { schema, target: pass }), index };
      } catch (error) {
        failures.set(describeServers(server), error);
        if (!isNextTried(error)) throw unreachable(connection, failures, error);
      }
    }
  }
  throw unreachable(connection, failures, [...failures.values()].at(-1));
}

/** As libpq: what a server answers to a login is the answer, unless it only starts or stops. */
function isNextTried(error: unknown): boolean {
  if (error instanceof ConfigError) return false;
  return sqlState(error)?.startsWith('57P') ?? true;
}

function unreachable(
  connection: Connection,
  failures: ReadonlyMap<string, unknown>,
  cause: unknown,
): UnreachableError {
  const texts = [...failures].map(([server, error]) =>
    failures.size === 1 && connection.servers === undefined
      ? errorText(error)
      : `${server}: ${errorText(error)}`,
  );
  return new UnreachableError(
    `cannot connect to ${describeConnection(connection)}: ${texts.join('; ')}`,
    cause,
  );
}

async function openOne(
  connection: Connection,
  purpose: string,
  { schema, target }: { schema: string | undefined; target: TargetSessionAttrs },
): Promise<pg.Client> {
  const { statement_timeout, lock_timeout, ...login } = connection;
  const config = sessionConfig(login, purpose);
  const client = new pg.Client(config);
  // A killed session can emit 'error' more than once, and an unheard one ends the process.
  client.on('error', () => undefined);
  try {
    await client.connect();
    const bounds = { statementMs: statement_timeout, lockMs: lock_timeout };
    await setUp(client, config, { ...bounds, ...(schema === undefined ? {} : { schema }) });
    await checkTarget(client, target, config.connectionTimeoutMillis);
  } catch (error) {
    await closeSession(client);
    throw error;
  }
  return client;
}

/** Whether a server was reached, and does not take writes: during a failover all are so for a while. */
export function isReadOnlyServer(error: unknown): boolean {
  const cause = error instanceof UnreachableError ? error.cause : error;
  return cause instanceof DatabaseStateError
    ? cause.code === 'IN_RECOVERY' || cause.code === 'READ_ONLY'
    : sqlState(cause) === READ_ONLY_TRANSACTION;
}

const READ_ONLY_TRANSACTION = '25006';
const DEFAULT_PORT = 5432;
/** How long one server may take, unless connect_timeout says so. */
export const CONNECT_MS = 5_000;

/** What a session gets once it is open; what is left out stays as its role has it. Times in milliseconds. */
export interface SetUp {
  /** Of mpp-controller's objects: the session replaces `@mpp.` by it, and its search_path has PostgreSQL's own alone. */
  readonly schema?: string;
  readonly statementMs?: number | false | undefined;
  readonly lockMs?: number | false | undefined;
}

/**
 * Sets up a session that has just been opened. That is a part of connecting, and bounded like it: a
 * server that falls silent right after the login would hang the controller otherwise.
 */
export async function setUp(
  client: pg.ClientBase,
  { connectionTimeoutMillis }: pg.ClientConfig,
  { schema, statementMs, lockMs }: SetUp,
): Promise<void> {
  const bounds = [
    ['statement_timeout', statementMs],
    ['lock_timeout', lockMs],
  ] as const;
  // The types of node-postgres know query_timeout for a whole session only.
  const statement: pg.QueryConfig & Pick<pg.ClientConfig, 'query_timeout'> = {
    text: [
      PIN,
      schema === undefined ? '' : SET_UP,
      ...bounds.map(([name, ms]) => (ms ? `SET ${name} = '${Math.ceil(ms)}ms';` : '')),
    ].join('\n'),
    ...(connectionTimeoutMillis ? { query_timeout: connectionTimeoutMillis } : {}),
  };
  await client.query(statement);
  if (schema !== undefined) nameSchema(client, schema);
}

/**
 * Settings of a database or a role that would change what the controller's statements mean or return. Those that an
 * operator may have a reason for (default_transaction_read_only, timeouts) are not here. Any role may set these.
 */
const PINNED: Readonly<Record<string, string>> = {
  // pg_temp comes last, so that it hides nothing.
  search_path: 'pg_catalog, pg_temp',
  array_nulls: 'on',
  bytea_output: 'hex',
  DateStyle: 'ISO, YMD',
  default_transaction_deferrable: 'off',
  default_transaction_isolation: "'read committed'",
  enable_bitmapscan: 'on',
  enable_indexscan: 'on',
  enable_nestloop: 'on',
  extra_float_digits: '1',
  IntervalStyle: 'postgres',
  // All statements of the controller are short. Where one looks dear to the planner, compiling it takes many times
  // as long as running it.
  jit: 'off',
  plan_cache_mode: 'auto',
  row_security: 'on',
  standard_conforming_strings: 'on',
  TimeZone: "'UTC'",
  transform_null_equals: 'off',
};

/**
 * The first statements of every session, which call no function: in `public`, which is on the path of a database by
 * default, any role may have made one that fits a call better than PostgreSQL's own. The first of all is
 * for a standby, which refuses to read anything in a serializable transaction.
 */
const PIN = [
  'SET TRANSACTION ISOLATION LEVEL READ COMMITTED;',
  ...Object.entries(PINNED).map(([name, value]) => `SET ${name} TO ${value};`),
].join('\n');

/** What not every role may set, or not every server knows; for sessions that work on mpp-controller's objects. */
const SET_UP = `
  SELECT count(set_config(pinned.name, pinned.value, false))
  FROM (VALUES ('citus.propagate_set_commands', 'none'), ('session_replication_role', 'origin'))
    AS pinned (name, value)
  WHERE current_setting(pinned.name, true) IS DISTINCT FROM pinned.value
    AND (pinned.name <> 'session_replication_role' OR has_parameter_privilege(pinned.name, 'SET'));`;

/** Hosts, ports and database for a message; never the password. */
export function describeConnection(connection: Connection): string {
  return `${describeServers(connection)}/${connection.database ?? connection.user ?? ''}`;
}

/** Hosts and ports for a message. */
export function describeServers(connection: Connection): string {
  return eachServer(connection)
    .map(({ host = 'localhost', port = DEFAULT_PORT }) => formatServer({ host, port }))
    .join(',');
}

/** A message may come from a server that is not PostgreSQL. */
const MOST_TEXT = 1_000;

/**
 * One printable line for any thrown value, at most 1,000 characters: a message may be what a foreign server
 * has sent. node-postgres throws an AggregateError with an empty message.
 */
export function errorText(error: unknown): string {
  if (error instanceof AggregateError) return error.errors.map(errorText).join('; ');
  const text = error instanceof Error ? error.message : String(error);
  const line = text.slice(0, 4 * MOST_TEXT).replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\s]+/gu, ' ');
  return line.length > MOST_TEXT ? `${line.slice(0, MOST_TEXT)} …` : line;
}

/** How long a peer may take to say goodbye, in milliseconds. One that has vanished never does. */
export const CLOSE_MS = 1_000;

/** Closes a session: asks the server first, and destroys the socket when that takes too long. Never throws. */
export async function closeSession(client: pg.Client, ms = CLOSE_MS): Promise<void> {
  try {
    await within(
      ms,
      client.end().catch(() => undefined),
      undefined,
    );
  } finally {
    client.connection.stream.destroy();
  }
}

/** Sockets of sessions that another library opens, so that they can be destroyed whatever it waits for. */
export class Sockets {
  readonly #create: () => Duplex;
  readonly #open = new Set<Duplex>();

  /** @param config of the sessions, whose own stream may encrypt */
  constructor({ stream }: Pick<pg.ClientConfig, 'stream'>) {
    this.#create = () => stream?.() ?? new Socket();
  }

  /** For `stream` in the configuration of a node-postgres client. */
  readonly create = (): Duplex => {
    const socket = this.#create();
    this.#open.add(socket);
    socket.once('close', () => this.#open.delete(socket));
    return socket;
  };

  /** Resolves once all of them are closed, by themselves within `ms` or else destroyed. */
  async close(ms: number): Promise<void> {
    const closed = [...this.#open].map(
      (socket) => new Promise<void>((resolve) => void socket.once('close', () => resolve())),
    );
    await within(ms, Promise.all(closed), undefined);
    this.destroy();
  }

  destroy(): void {
    for (const socket of this.#open) socket.destroy();
  }
}

/**
 * Opens a session in the database of `connection`, which is made where it is missing.
 *
 * @throws UnreachableError; whatever PostgreSQL says when it cannot be made
 */
export async function openDatabase(
  connection: Connection,
): Promise<{ client: pg.Client; made: boolean }> {
  let made = false;
  const client = await openSession(connection, 'bootstrap').catch(async (error: unknown) => {
    if (!isMissingDatabase(error)) throw error;
    made = await createDatabase(connection, connection.database ?? connection.user ?? '');
    return openSession(connection, 'bootstrap');
  });
  return { client, made };
}

/**
 * Chooses one of several servers, for what opens sessions time and again and must find the same. Its database
 * may have yet to be made.
 *
 * @throws UnreachableError
 */
export async function chooseServer(connection: Connection): Promise<Connection> {
  if (connection.servers === undefined) return connection;
  const opened = await openOnServer(connection, 'bootstrap').catch((error: unknown) => {
    if (!isMissingDatabase(error)) throw error;
    return openOnServer({ ...connection, database: 'postgres' }, 'bootstrap');
  });
  await opened.client.end().catch(() => undefined);
  return eachServer(connection)[opened.index] ?? connection;
}

/** True for a session that was refused because its database is not there. */
export function isMissingDatabase(error: unknown): boolean {
  return error instanceof UnreachableError && sqlState(error.cause) === UNDEFINED_DATABASE;
}

/** @returns false when another session made it first */
async function createDatabase(connection: Connection, database: string): Promise<boolean> {
  const client = await openSession({ ...connection, database: 'postgres' }, 'bootstrap');
  try {
    const { rows } = await client.query<{ statement: string }>(
      "SELECT format('CREATE DATABASE %I', $1::text) AS statement",
      [database],
    );
    for (const { statement } of rows) await client.query(statement);
    return true;
  } catch (error) {
    if (isDuplicate(error)) return false;
    throw error;
  } finally {
    await closeSession(client);
  }
}

/** Two who make the same thing at once: the slower one finds it, or runs into the catalog's index. */
export function isDuplicate(error: unknown): boolean {
  return ['42P04', '42710', '23505'].includes(sqlState(error) ?? '');
}

const UNDEFINED_DATABASE = '3D000';
