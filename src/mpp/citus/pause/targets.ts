import type { Pool, QueryConfig } from 'pg';
import { bundlesOf, otherLock, tableLocks, type Lock } from '../../../locks/lock.js';
import { DatabaseStateError } from '../../../errors.js';
import { queryAgain, type Queryable } from '../../../postgres/queries.js';
import type { LockNeed } from '../../abstract.js';
import { sqlState } from '../../../postgres/sqlstate.js';

/** What of a group can be locked on one node, by that node's own metadata. */
export interface Targets {
  /** One shard for each lock that Citus has: colocated shards of the same range share theirs. */
  readonly shards: readonly string[];
  /** Every table with a shard in the group, quoted, in the order of their oids. */
  readonly tables: readonly string[];
  /** Those of them with a shard that has placements in other groups as well: reference tables. */
  readonly shared: readonly string[];
  /** A table that this role may not lock, quoted, or null. */
  readonly foreign: string | null;
  /** How many locks the server has room for, and how many are taken (0 when there is ample room). */
  readonly lockSpace: number;
  readonly locksTaken: number;
  /** By how much lockSpace grows with 1 more in max_locks_per_transaction. */
  readonly locksPerSetting: number;
}

/** Hundreds of thousands of placements take a second. */
const READ_MOST_MS = 10_000;

/**
 * @param sessions with the node; takes no lock that outlives the statement.
 * @returns what there is of each of these groups.
 */
export async function readTargets(
  sessions: Pool,
  groupids: readonly number[],
): Promise<ReadonlyMap<number, Targets>> {
  const query = targetsQuery(groupids);
  const { rows } = await queryAgain<Targets & { groupid: number }>(sessions, query);
  return new Map(rows.map(({ groupid, ...targets }) => [groupid, targets]));
}

// The types of node-postgres know query_timeout for a whole session only.
export function targetsQuery(groupids: readonly number[]): QueryConfig & { query_timeout: number } {
  return {
    name: 'mpp-targets',
    text: TARGETS,
    values: [groupids],
    query_timeout: READ_MOST_MS,
  };
}

/**
 * lock_shard_metadata and LOCK TABLE take the owner of a table, or a superuser. pg_locks is counted
 * only when it may matter, because that copies the whole lock table.
 */
const TARGETS = `
  WITH placed AS (
    SELECT l.groupid, s.shardid, s.logicalrelid, s.shardminvalue, p.partmethod, p.colocationid,
           EXISTS (
             SELECT FROM pg_catalog.pg_dist_placement AS o
             WHERE o.shardid = s.shardid AND o.groupid <> l.groupid) AS shared
    FROM pg_catalog.pg_dist_placement AS l
    JOIN pg_catalog.pg_dist_shard AS s ON s.shardid = l.shardid
    JOIN pg_catalog.pg_dist_partition AS p ON p.logicalrelid = s.logicalrelid
    WHERE l.groupid = ANY ($1::integer[])
  ), lockable AS (
    SELECT d.groupid, min(d.shardid) AS shardid
    FROM placed AS d
    WHERE NOT d.shared
    GROUP BY d.groupid,
      CASE WHEN d.partmethod = 'h' AND d.colocationid > 0
        THEN format('%s/%s', d.colocationid, d.shardminvalue)
        ELSE d.shardid::text END
  ), relation AS (
    SELECT d.groupid, c.oid, format('%I.%I', n.nspname, c.relname) AS name, bool_or(d.shared) AS shared,
           pg_has_role(c.relowner, 'USAGE') AS lockable
    FROM placed AS d
    JOIN pg_class AS c ON c.oid = d.logicalrelid
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    -- LOCK TABLE refuses foreign tables, which Citus keeps on the coordinator alone.
    WHERE c.relkind <> 'f'
    GROUP BY d.groupid, c.oid, c.relname, c.relowner, n.nspname
  ), shard AS (
    SELECT l.groupid, array_agg(l.shardid::text ORDER BY l.shardid) AS ids, 4 * count(*) AS weight
    FROM lockable AS l
    GROUP BY l.groupid
  ), named AS (
    SELECT r.groupid, array_agg(r.name ORDER BY r.oid) AS names,
           array_agg(r.name ORDER BY r.oid) FILTER (WHERE r.shared) AS shared,
           min(r.name) FILTER (WHERE NOT r.lockable) AS foreign
    FROM relation AS r
    GROUP BY r.groupid
  ), space AS (
    SELECT m.per_setting, m.per_setting * current_setting('max_locks_per_transaction')::integer AS locks
    FROM (
      SELECT current_setting('max_connections')::integer
               + current_setting('max_prepared_transactions')::integer AS per_setting
    ) AS m
  )
  SELECT g.groupid, coalesce(h.ids, '{}') AS shards, coalesce(t.names, '{}') AS tables,
         coalesce(t.shared, '{}') AS shared, t.foreign, s.locks AS "lockSpace",
         CASE WHEN h.weight > s.locks
           THEN (SELECT count(*)::integer FROM pg_locks AS l WHERE NOT l.fastpath)
           ELSE 0 END AS "locksTaken",
         s.per_setting AS "locksPerSetting"
  FROM unnest($1::integer[]) AS g (groupid)
  CROSS JOIN space AS s
  LEFT JOIN shard AS h USING (groupid)
  LEFT JOIN named AS t USING (groupid)`;

/** Whether there is the same to lock. */
export function sameTargets(one: Targets, other: Targets | undefined): boolean {
  const things = ({ shards, tables, shared }: Targets): string =>
    JSON.stringify([shards, tables, shared]);
  return other !== undefined && things(one) === things(other);
}

/** Whether what was to be locked is not there any more: a table, its schema, or a shard, as Citus says it. */
export function isGone(error: unknown): boolean {
  return ['42P01', '3F000', 'XX000'].includes(sqlState(error) ?? '');
}

/** Why the locks of a group cannot be had on a node: not this role's, or too many; else undefined. */
export function notLockable(
  targets: Targets,
  groupid: number,
  node: string,
): DatabaseStateError | undefined {
  if (targets.foreign !== null) {
    return new DatabaseStateError(
      'NOT_OWNER',
      `this role may not lock ${targets.foreign} on ${node}: grant it the role that owns the table`,
    );
  }
  const { needed, room, setting } = lockNeed(targets, groupid);
  if (setting === null) return undefined;
  return new DatabaseStateError(
    'LOCK_SPACE',
    `group ${groupid} takes ${needed} locks on ${node}, which has room for ${room}: ` +
      `set max_locks_per_transaction there to ${setting} or more`,
  );
}

/** Pure. */
function lockNeed(targets: Targets, groupid: number): LockNeed {
  const needed = targets.shards.length + targets.tables.length;
  const room = targets.lockSpace - targets.locksTaken;
  const most = (1.2 * (needed + targets.locksTaken)) / targets.locksPerSetting;
  return { groupid, needed, room, setting: needed <= room ? null : Math.ceil(most) };
}

/** See AbstractMPP.readLockNeeds. */
export async function readLockNeeds(
  session: Queryable,
  groupids: readonly number[],
): Promise<LockNeed[]> {
  const { rows } = await session.query<Targets & { groupid: number }>(targetsQuery(groupids));
  return rows.map((row) => lockNeed(row, row.groupid));
}

/** Makes writes to these shards wait: 7 is ExclusiveLock, the most that Citus's function takes. */
export function shardLocks(groupid: number, shards: readonly string[]): Lock[] {
  return bundlesOf(shards).map((ids) =>
    otherLock(
      `shards of group ${groupid}: ${ids.join(', ')}`,
      `SELECT pg_catalog.lock_shard_metadata(7, '{${ids.join(',')}}'::pg_catalog.int8[])`,
    ),
  );
}

/** Locks on the tables of a group, by what they are for; see WaitedLock. */
export interface WantedTables {
  readonly reads: readonly Lock[];
  readonly writes: readonly Lock[];
  readonly drain: readonly Lock[];
}

/**
 * @param forReads whether the reads of a table are to be paused; else its writes are.
 * @param coversShared whether shards that other groups have, too, are locked in another way
 */
export function wantedTables(
  { tables, shared }: Targets,
  forReads: (table: string) => boolean,
  coversShared: boolean,
): WantedTables {
  const kept = new Set(coversShared ? [] : shared);
  const rest = tables.filter((table) => !forReads(table));
  const writes = rest.filter((table) => kept.has(table));
  const drain = rest.filter((table) => !kept.has(table));
  return {
    reads: tableLocks(tables.filter(forReads), 'ACCESS EXCLUSIVE'),
    writes: tableLocks(writes, 'EXCLUSIVE'),
    drain: tableLocks(drain, 'EXCLUSIVE'),
  };
}

/** For people: the tables whose reads go on, and why. */
export function describeRenounced(renounced: ReadonlyMap<string, string>): string {
  const byWhy = new Map<string, string[]>();
  for (const [table, why] of renounced) byWhy.set(why, [...(byWhy.get(why) ?? []), table]);
  const parts = [...byWhy].map(
    ([why, tables]) => `only writes to ${listTables(tables)} are paused: ${why}`,
  );
  return parts.join('; ');
}

/** For people: the first of them by name. */
function listTables(tables: readonly string[]): string {
  const most = 5;
  if (tables.length <= most) return tables.join(', ');
  return `${tables.slice(0, most).join(', ')} and ${tables.length - most} more tables`;
}
