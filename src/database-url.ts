import pg from 'pg';
import { ConfigError } from './errors.js';
import type { Connection } from './postgres/session.js';

const FORM = 'a URL such as postgresql://user@host:5432/database';

/**
 * Turns DATABASE_URL into the settings of a session: host, port, user, password, database, ssl, and the
 * parameters `options` and `connect_timeout`. What the URL leaves out comes from the PG* variables, as
 * with every client of node-postgres.
 *
 * The URL is taken apart here because node-postgres lets a `connectionString` win over everything beside
 * it: over the application_name by which our sessions are known, and over the database. Its own parser
 * does the work, so that sockets, percent-encoding and ssl parameters mean what they mean elsewhere.
 *
 * @param variable where the URL comes from, for errors.
 * @throws ConfigError when it cannot be read. The message never has any part of the URL in it.
 */
export function connectionFromUrl(url: string, variable = 'DATABASE_URL'): Connection {
  if (!/^(postgres(ql)?:\/\/|socket:|\/)/.test(url)) {
    throw new ConfigError(`${variable} is not a connection URL; give ${FORM}`);
  }
  const client = readUrl(url, variable);
  const { host, port, user, database, password, ssl } = client;
  if (!Number.isInteger(port) || port < 1 || port > 65_535) {
    throw new ConfigError(`${variable} has a wrong port; give a number from 1 to 65535`);
  }
  const parameters = new URLSearchParams(url.split('?')[1]);
  const options = parameters.get('options');
  const connectTimeout = Number(parameters.get('connect_timeout') ?? 0);
  return {
    host,
    port,
    user,
    database,
    ssl,
    // A function prints as [Function] wherever the settings might be shown.
    ...(typeof password === 'string' && { password: () => password }),
    ...(options !== null && { options }),
    ...(connectTimeout > 0 && { connectionTimeoutMillis: connectTimeout * 1_000 }),
  };
}

function readUrl(url: string, variable: string): pg.Client {
  try {
    return new pg.Client({ connectionString: url });
  } catch (error) {
    // A certificate file is read at once; its path is no secret, the rest of the URL may be.
    const path = error instanceof Error && 'path' in error ? error.path : undefined;
    if (typeof path === 'string') {
      throw new ConfigError(`${variable} names a file that cannot be read: ${path}`);
    }
    throw new ConfigError(`${variable} cannot be read; give ${FORM}, special characters as %xx`);
  }
}
