import type { ClientBase, Pool, QueryConfig, QueryResult, QueryResultRow } from 'pg';
import { SessionLostError } from '../errors.js';
import { errorText } from './session.js';
import { isSessionLost } from './sqlstate.js';

/** A session that was ended says so at once; a server that took longer to fail has fallen silent. */
const AGAIN_MS = 1_000;

/**
 * Runs one statement on a session of a pool.
 *
 * @throws SessionLostError when the session broke; else what kept it from being had, or the statement's
 *   own error.
 */
export async function queryOnce<R extends QueryResultRow>(
  pool: Pool,
  query: QueryConfig,
): Promise<QueryResult<R>> {
  const client = await pool.connect();
  try {
    const result = await client.query<R>(query);
    client.release();
    return result;
  } catch (error) {
    const isLost = isSessionLost(error);
    client.release(isLost);
    if (isLost) throw new SessionLostError(`a session was lost: ${errorText(error)}`, error);
    throw error;
  }
}

/**
 * The same, on another session when it was lost: those that a pool has kept may all have been ended
 * without its knowing yet. Only for a statement that may run twice.
 */
export async function queryAgain<R extends QueryResultRow>(
  pool: Pool,
  query: QueryConfig,
): Promise<QueryResult<R>> {
  return again(() => queryOnce<R>(pool, query));
}

/** Does it again when a session was lost by it, and that soon. */
export async function again<T>(work: () => Promise<T>): Promise<T> {
  const until = performance.now() + AGAIN_MS;
  for (;;) {
    try {
      return await work();
    } catch (error) {
      if (!(error instanceof SessionLostError) || performance.now() >= until) throw error;
    }
  }
}

/** Anything that runs one statement: a session, or a pool that picks one. */
export type Queryable = Pool | ClientBase;
