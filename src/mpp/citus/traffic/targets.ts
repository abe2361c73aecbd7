import type { Pool, QueryConfig } from 'pg';
import { LOTS, lotOf, type LockUnit } from '../../../drain/lock-unit.js';
import { DatabaseStateError } from '../../../errors.js';
import { queryAgain } from '../../../postgres/again.js';

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

/** @param sessions with the node; takes no lock that outlives the statement. */
export async function readTargets(sessions: Pool, groupid: number): Promise<Targets> {
  // The types of node-postgres know query_timeout for a whole session only.
  const query: QueryConfig & { query_timeout: number } = {
    name: 'mpp-targets',
    text: TARGETS,
    values: [groupid],
    query_timeout: READ_MOST_MS,
  };
  const { rows } = await queryAgain<Targets>(sessions, query);
  if (rows[0] === undefined) throw new Error('a query for what to lock returned no row');
  return rows[0];
}

/**
 * lock_shard_metadata and LOCK TABLE take the owner of a table, or a superuser. pg_locks is counted
 * only when it may matter, because that copies the whole lock table.
 */
const TARGETS = `
  WITH placed AS (
    SELECT s.shardid, s.logicalrelid, s.shardminvalue, p.partmethod, p.colocationid,
           EXISTS (
             SELECT FROM pg_catalog.pg_dist_placement AS o
             WHERE o.shardid = s.shardid AND o.groupid <> $1) AS shared
    FROM pg_catalog.pg_dist_placement AS l
    JOIN pg_catalog.pg_dist_shard AS s ON s.shardid = l.shardid
    JOIN pg_catalog.pg_dist_partition AS p ON p.logicalrelid = s.logicalrelid
    WHERE l.groupid = $1
  ), lockable AS (
    SELECT min(d.shardid) AS shardid
    FROM placed AS d
    WHERE NOT d.shared
    GROUP BY CASE WHEN d.partmethod = 'h' AND d.colocationid > 0
      THEN format('%s/%s', d.colocationid, d.shardminvalue)
      ELSE d.shardid::text END
  ), relation AS (
    SELECT c.oid, format('%I.%I', n.nspname, c.relname) AS name, bool_or(d.shared) AS shared,
           pg_has_role(c.relowner, 'USAGE') AS ours
    FROM placed AS d
    JOIN pg_class AS c ON c.oid = d.logicalrelid
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    -- LOCK TABLE refuses foreign tables, which Citus keeps on the coordinator alone.
    WHERE c.relkind <> 'f'
    GROUP BY c.oid, c.relname, c.relowner, n.nspname
  ), space AS (
    SELECT current_setting('max_connections')::integer
             + current_setting('max_prepared_transactions')::integer AS per_setting
  )
  SELECT coalesce((SELECT array_agg(l.shardid::text ORDER BY l.shardid) FROM lockable AS l), '{}') AS shards,
         coalesce((SELECT array_agg(r.name ORDER BY r.oid) FROM relation AS r), '{}') AS tables,
         coalesce((SELECT array_agg(r.name ORDER BY r.oid) FROM relation AS r WHERE r.shared), '{}') AS shared,
         (SELECT min(r.name) FROM relation AS r WHERE NOT r.ours) AS foreign,
         s.per_setting * current_setting('max_locks_per_transaction')::integer AS "lockSpace",
         CASE WHEN 4 * (SELECT count(*) FROM lockable)
                     > s.per_setting * current_setting('max_locks_per_transaction')::integer
           THEN (SELECT count(*)::integer FROM pg_locks AS l WHERE NOT l.fastpath)
           ELSE 0 END AS "locksTaken",
         s.per_setting AS "locksPerSetting"
  FROM space AS s`;

/** Whether there is the same to lock. */
export function sameTargets(one: Targets, other: Targets | undefined): boolean {
  const things = ({ shards, tables, shared }: Targets): string =>
    JSON.stringify([shards, tables, shared]);
  return other !== undefined && things(one) === things(other);
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
  const needed = targets.shards.length + targets.tables.length;
  const free = targets.lockSpace - targets.locksTaken;
  if (needed <= free) return undefined;
  const setting = Math.ceil((1.2 * (needed + targets.locksTaken)) / targets.locksPerSetting);
  return new DatabaseStateError(
    'LOCK_SPACE',
    `group ${groupid} takes ${needed} locks on ${node}, which has room for ${free}: ` +
      `set max_locks_per_transaction there to ${setting} or more`,
  );
}

/** Makes everything on these tables wait: reads, writes and DDL. No reader is ended for it. */
export function readersOf(tables: readonly string[]): LockUnit[] {
  return tableLocks(tables, (names) => ({
    key: `readers of ${names.join(', ')}`,
    text: lockTables(names, 'ACCESS EXCLUSIVE'),
    sparing: true,
  }));
}

/** Makes writes to these tables wait, and SELECT … FOR UPDATE; plain reads go on. */
export function writersOf(tables: readonly string[]): LockUnit[] {
  return tableLocks(tables, (names) => ({
    key: `writers of ${names.join(', ')}`,
    text: lockTables(names, 'EXCLUSIVE'),
  }));
}

/** The same, for as long as a drain takes: who is in the way may have nothing to do with the group. */
export function doorsOf(tables: readonly string[]): LockUnit[] {
  return tableLocks(tables, (names) => ({
    key: `doors of ${names.join(', ')}`,
    text: lockTables(names, 'EXCLUSIVE'),
    sparing: true,
  }));
}

/** ONLY: partitions are distributed tables themselves, so they are in the list. */
function lockTables(names: readonly string[], mode: string): string {
  return `LOCK TABLE ${names.map((name) => `ONLY ${name}`).join(', ')} IN ${mode} MODE`;
}

/** Makes writes to these shards wait: 7 is ExclusiveLock, the most that Citus's function takes. */
export function shardLocks(shards: readonly string[]): LockUnit[] {
  const size = Math.ceil(shards.length / MOST_PARTS);
  const unitOf = (ids: readonly string[]): LockUnit => ({
    key: `shards ${ids[0]} to ${ids.at(-1)}`,
    text: 'SELECT pg_catalog.lock_shard_metadata(7, $1::bigint[])',
    values: [ids],
  });
  const parts = bundlesOf(shards, (_, index) => Math.floor(index / size)).map(unitOf);
  return parts.length < 2 ? parts : [{ ...unitOf(shards), parts }];
}

/** Up to so many locks are taken one by one once somebody is in the way; more in so many bundles. */
const MOST_PARTS = LOTS;

/** One unit of all, in parts: table by table, or where there are too many, those of a lot together. */
function tableLocks(
  tables: readonly string[],
  unitOf: (tables: readonly string[]) => LockUnit,
): LockUnit[] {
  const isMany = tables.length > MOST_PARTS;
  const bundles = bundlesOf(tables, (table, index) => (isMany ? lotOf(table) : index));
  const parts = bundles.map((things): LockUnit => {
    return { ...unitOf(things), things, lot: lotOf(things[0] ?? '') };
  });
  return parts.length < 2 ? parts : [{ ...unitOf(tables), parts }];
}

function bundlesOf<T>(things: readonly T[], bundleOf: (thing: T, index: number) => number): T[][] {
  const bundles = new Map<number, T[]>();
  for (const [index, thing] of things.entries()) {
    const bundle = bundleOf(thing, index);
    if (!bundles.get(bundle)?.push(thing)) bundles.set(bundle, [thing]);
  }
  return [...bundles.values()];
}
