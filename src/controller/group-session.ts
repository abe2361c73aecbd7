import type { Pool } from 'pg';
import { GROUP_LOCK } from '../postgres/locks.js';
import { Transaction, type Bounds } from '../postgres/transaction.js';

/**
 * A transaction that has the lock of one group. While it lives nobody else works on the group; when it
 * dies, by whatever hand, the server frees the lock and lets the traffic go on.
 */
export type GroupSession = Transaction;

/** @returns undefined when another session has the lock of the group. */
export async function beginGroupSession(
  pool: Pool,
  groupid: number,
  bounds: Bounds,
): Promise<GroupSession | undefined> {
  const lock = { classid: GROUP_LOCK, objid: groupid };
  return Transaction.beginLocked(pool, bounds, `group ${groupid}`, lock);
}
