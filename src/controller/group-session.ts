import type { Pool } from 'pg';
import type { Queryable } from '../postgres/queryable.js';
import { Transaction, type Bounds } from '../postgres/transaction.js';

/**
 * A transaction that has the lock of one group. While it lives no other session works on the group; when it
 * dies, by whatever hand, the server frees the lock and lets the traffic go on.
 */
export type GroupSession = Transaction;

/**
 * @param db for a statement of its own: the row of a group is made where it is missing. A claim does not make
 *   it, because the table may be locked (VACUUM FULL) by a session that waits for the end of a hold.
 * @returns undefined when another session has the lock of the group.
 */
export async function beginGroupSession(
  pool: Pool,
  db: Queryable,
  groupid: number,
  bounds: Bounds,
): Promise<GroupSession | undefined> {
  const begun = await beginOnRow(pool, groupid, bounds);
  if (begun !== undefined) return begun;
  const { rowCount } = await db.query({
    name: 'mpp-add-group',
    text: ADD_GROUP,
    values: [groupid],
  });
  return rowCount === 1 ? beginOnRow(pool, groupid, bounds) : undefined;
}

const ADD_GROUP = 'INSERT INTO @mpp.mpp_groups (groupid) VALUES ($1) ON CONFLICT DO NOTHING';

/** Who has the lock of a group, for people; undefined when that has just ended. */
export async function groupLocker(db: Queryable, groupid: number): Promise<string | undefined> {
  const { rows } = await db.query<{ locker: string }>({
    name: 'mpp-group-locker',
    text: GROUP_LOCKER,
    values: [groupid],
  });
  return rows[0]?.locker;
}

const GROUP_LOCKER = `
  SELECT format('pid %s (user %s, application %s)'::text, s.pid, r.rolname, coalesce(nullif(a.application_name, ''), 'unnamed')) AS locker
  FROM @mpp.mpp_group_sessions AS s
  JOIN pg_stat_get_activity(s.pid) AS a ON true
  LEFT JOIN pg_roles AS r ON r.oid = a.usesysid
  WHERE s.groupid = $1
  LIMIT 1`;

async function beginOnRow(
  pool: Pool,
  groupid: number,
  bounds: Bounds,
): Promise<GroupSession | undefined> {
  const lock = `SELECT FROM @mpp.mpp_groups AS g WHERE g.groupid = ${groupid} FOR UPDATE SKIP LOCKED`;
  return Transaction.beginLocked(pool, bounds, `group ${groupid}`, lock);
}
