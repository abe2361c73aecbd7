import { isSessionLost } from '../postgres/sqlstate.js';

const TRIES = 3;

/**
 * Runs a statement that records something, again when its session was lost: the pool has another, and
 * a hold should not end because a neighbour's session did. Only for statements that may run twice.
 */
export async function persist<T>(statement: () => Promise<T>): Promise<T> {
  for (let attempt = 1; ; attempt += 1) {
    try {
      return await statement();
    } catch (error) {
      if (attempt >= TRIES || !isSessionLost(error)) throw error;
    }
  }
}
