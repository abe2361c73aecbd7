import { connectionFromUrl } from './connection/database-url.js';
import type { Address } from '../address.js';
import type { Connection } from './session.js';

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
