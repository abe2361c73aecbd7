import pg from 'pg';
import { connectionFromUrl } from '../database-url.js';
import type { Address } from '../tasks/task.js';
import type { Connection } from './session.js';

/** As whom, to which database and how encrypted a session with any node of the cluster is opened. */
export type NodeCredentials = Readonly<Omit<Connection, 'host' | 'port'>>;

/**
 * The credentials of nodes: those of MPP_NODE_URL, whose host and port mean nothing, or else those of
 * our own connection.
 *
 * @throws ConfigError when the URL cannot be read.
 */
export function nodeCredentials(own: Connection, url: string | undefined): NodeCredentials {
  const given = url === undefined || url === '' ? own : connectionFromUrl(url, 'MPP_NODE_URL');
  const credentials = { ...given };
  delete credentials.host;
  delete credentials.port;
  return Object.freeze(credentials);
}

/** The same for another database on the same nodes. */
export function nodeInDatabase(credentials: NodeCredentials, database: string): NodeCredentials {
  return Object.freeze({ ...credentials, database });
}

/** The connection of one node. The database is named, or node-postgres would take the user's name. */
export function nodeConnection(credentials: NodeCredentials, { host, port }: Address): Connection {
  const database = credentials.database ?? new pg.Client({ ...credentials }).database;
  return { ...credentials, host, port, ...(database === undefined ? {} : { database }) };
}
