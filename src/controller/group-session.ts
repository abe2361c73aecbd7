import type { Pool } from 'pg';
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
  // The claim of the task has made the row.
  const lock = `SELECT FROM @mpp.mpp_groups AS g WHERE g.groupid = ${groupid} FOR UPDATE SKIP LOCKED`;
  return Transaction.beginLocked(pool, bounds, `group ${groupid}`, lock);
}
