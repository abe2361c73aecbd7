import { userInfo } from 'node:os';
import type { Address } from '../../address.js';
import { ConfigError } from '../../errors.js';
import type { Connection } from '../session.js';
import { readServers, readTarget } from './target.js';
import { readParameters, type Parameters } from './parameters.js';
import { defaultPasswordFile } from './password.js';
import { readTls } from './tls.js';

/**
 * Reads where the database is and as whom to log in: from a URL, and for what it leaves out from the PG*
 * variables, in libpq's meaning of both. node-postgres has its own meaning of several of them, so
 * that it gets nothing that is left to read.
 *
 * @param url undefined or empty: all of it comes from the variables
 * @param variable where the URL comes from, for errors
 * @throws ConfigError when it cannot be read or used. The message never has any part of the URL in it.
 */
export function connectionFromUrl(
  url: string | undefined,
  env: NodeJS.ProcessEnv,
  variable = 'DATABASE_URL',
): Connection {
  const parameters = readParameters(url, env, variable);
  const servers = readServers(parameters);
  const user = parameters.get('user') ?? loginName(variable);
  const password = parameters.get('password');
  const options = parameters.get('options');
  return {
    ...(servers.length === 1 ? servers[0] : { servers: Object.freeze(servers) }),
    targetSessionAttrs: readTarget(parameters, servers),
    user,
    // As libpq, the user's name where none is given.
    database: parameters.get('dbname') ?? user,
    tls: readTls(
      parameters,
      servers.some(({ host, hostaddr }) => hostaddr !== undefined || !host.startsWith('/')),
    ),
    passwordFile: parameters.get('passfile') ?? defaultPasswordFile(),
    // A function prints as [Function] wherever the settings might be shown.
    ...(password !== undefined && { password: () => password }),
    ...(options !== undefined && { options }),
    ...timesOf(parameters),
  };
}

function timesOf(
  parameters: Parameters,
): Pick<Connection, 'connectionTimeoutMillis' | 'keepAlive' | 'keepAliveInitialDelayMillis'> {
  const connectTimeout = parameters.integer('connect_timeout') ?? 0;
  const keepsAlive = parameters.integer('keepalives') ?? 1;
  const idle = parameters.integer('keepalives_idle') ?? 0;
  return {
    ...(connectTimeout > 0 && { connectionTimeoutMillis: connectTimeout * 1_000 }),
    ...(keepsAlive === 0 && { keepAlive: false }),
    ...(idle > 0 && { keepAliveInitialDelayMillis: idle * 1_000 }),
  };
}

/** The operating system's name for the user; in a container there may be none. */
function loginName(variable: string): string {
  try {
    return userInfo().username;
  } catch {
    throw new ConfigError(
      `no user to log in as: ${variable} and PGUSER name none, and neither does the operating system`,
    );
  }
}

/** As whom, to which database and how encrypted a session with any node of the cluster is opened. */
export type NodeCredentials = Readonly<Omit<Connection, (typeof PLACE)[number]>>;

/** What says of a connection which server it is with. */
const PLACE = ['host', 'port', 'hostaddr', 'servers', 'targetSessionAttrs'] as const;

/**
 * The credentials of nodes: those of MPP_NODE_URL, whose hosts and ports mean nothing, or else those of
 * the controller's own connection.
 *
 * @throws ConfigError when the URL cannot be read.
 */
export function nodeCredentials(own: Connection, env: NodeJS.ProcessEnv): NodeCredentials {
  const url = env['MPP_NODE_URL'];
  const given = url ? connectionFromUrl(url, env, 'MPP_NODE_URL') : own;
  const credentials: Connection = { ...given };
  for (const name of PLACE) Reflect.deleteProperty(credentials, name);
  return Object.freeze(credentials);
}

/** The same for another database on the same nodes. */
export function nodeInDatabase(credentials: NodeCredentials, database: string): NodeCredentials {
  return Object.freeze({ ...credentials, database });
}

/** The connection of one node. */
export function nodeConnection(credentials: NodeCredentials, { host, port }: Address): Connection {
  return { ...credentials, host, port };
}
