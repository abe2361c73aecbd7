import { setTimeout as sleep } from 'node:timers/promises';
import type { Queryable } from '../postgres/queryable.js';
import { isSessionLost } from '../postgres/sqlstate.js';
import { countMine, type Attempt } from '../tasks/finish.js';

const TRIES = 3;
/** An operator's statement on a row takes milliseconds; one that stays has left a transaction open. */
const LOCKED_MOST_MS = 1_000;
const LOCKED_AGAIN_MS = 20;

/**
 * Runs a statement that records something, again when its session was lost: the pool has another, and
 * a hold should not end because a neighbour's session did. Only for statements that may run twice.
 *
 * @param isWanted false once what is to be recorded is not so any more: then it is not run again
 */
export async function persist<T>(
  statement: () => Promise<T>,
  isWanted: () => boolean = () => true,
): Promise<T> {
  for (let attempt = 1; ; attempt += 1) {
    try {
      return await statement();
    } catch (error) {
      if (attempt >= TRIES || !isSessionLost(error) || !isWanted()) throw error;
    }
  }
}

/**
 * Runs a statement that changes the rows of these attempts, again while another session has one of them
 * locked, for a second at most.
 *
 * @param statement returns how many rows it changed; those that it changed before it passes over
 * @param isWanted false once what is to be recorded is not so any more: then it is not run again
 * @returns false when some were not changed: they are no longer this controller's, or still locked. The
 *   tasks stay as they are, and `takeBack` sees to them.
 */
export async function persistRows(
  db: Queryable,
  attempts: readonly Attempt[],
  statement: () => Promise<number>,
  isWanted: () => boolean = () => true,
): Promise<boolean> {
  const until = performance.now() + LOCKED_MOST_MS;
  let changed = 0;
  for (;;) {
    changed += await persist(statement, isWanted);
    if (changed >= attempts.length) return true;
    if (!isWanted()) return false;
    if (performance.now() >= until || (await persist(() => countMine(db, attempts))) === 0)
      return false;
    await sleep(LOCKED_AGAIN_MS);
  }
}
