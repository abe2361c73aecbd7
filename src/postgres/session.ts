import pg from 'pg';
import { UnreachableError } from '../errors.js';

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
 * Opens one session.
 *
 * @throws UnreachableError when the server cannot be reached or refuses the login.
 */
export async function openSession(connection: Connection, purpose: string): Promise<pg.Client> {
  const client = new pg.Client(sessionConfig(connection, purpose));
  // A killed session can emit 'error' more than once, and an unheard one ends the process.
  client.on('error', () => undefined);
  try {
    await client.connect();
  } catch (error) {
    await client.end().catch(() => undefined);
    throw new UnreachableError(
      `cannot connect to ${describeConnection(connection)}: ${errorText(error)}`,
      error,
    );
  }
  return client;
}

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
