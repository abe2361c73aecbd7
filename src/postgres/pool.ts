import pg from 'pg';
import { sessionConfig, setUp, type Connection } from './session.js';

export interface PoolOptions {
  /** Our schema; it comes first on the search_path, after pg_catalog. */
  readonly schema: string;
  /** What the sessions are for, in application_name. */
  readonly purpose: string;
  readonly max: number;
  /** Ends a statement that takes longer, in milliseconds, on the server and here. */
  readonly statementTimeoutMs?: number;
  /** Told of sessions that break while nobody uses them. */
  readonly onIdleError: (error: Error) => void;
}

/** Sessions that find our objects without their schema, and only ours and PostgreSQL's own. */
export function createPool(connection: Connection, options: PoolOptions): pg.Pool {
  const timeout = options.statementTimeoutMs;
  const config = sessionConfig(connection, options.purpose);
  const pool = new pg.Pool({
    ...config,
    max: options.max,
    idleTimeoutMillis: 60_000,
    // pg-pool waits for the promise, though its types do not say so.
    // eslint-disable-next-line @typescript-eslint/no-misused-promises
    onConnect: async (client) => {
      await setUp(client, config, {
        schema: options.schema,
        statementMs: timeout,
        lockMs: timeout,
      });
    },
    ...(timeout === undefined ? {} : { query_timeout: timeout + 5_000 }),
  });
  pool.on('error', options.onIdleError);
  // A killed session can emit 'error' more than once, and an unheard one ends the process.
  pool.on('connect', (client) => client.on('error', () => undefined));
  return pool;
}

/** Puts our schema on the search_path of one session, with pg_temp last so that it hides nothing. */
export const SET_SEARCH_PATH =
  "SELECT set_config('search_path', format('%I, pg_temp', $1::text), false)";
