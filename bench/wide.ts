import type { Client } from 'pg';
import type { Cluster } from '../test/kit/servers/index.js';

/** The table that has many shards. */
export const WIDE = 'wide';

/**
 * Makes a distributed table with so many shards in each of the cluster's groups. On Citus only the
 * metadata is there, on every node: what a hold costs depends on nothing else, and tens of thousands of
 * tables would take minutes to make. So nothing can be read from it or written to it there.
 */
export async function makeWide(cluster: Cluster, shardsInGroup: number): Promise<void> {
  const count = shardsInGroup * cluster.workers.length;
  if (!cluster.hasCitus) {
    await cluster.coordinator.withSession((session) =>
      session.query('SELECT standin.create_distributed_table($1, $2)', [WIDE, count]),
    );
    return;
  }
  await cluster.coordinator.withSession(async (session) => {
    await session.query(`CREATE TABLE ${WIDE} (id bigint PRIMARY KEY, v integer)`);
    await session.query(
      "SELECT create_distributed_table($1, 'id', shard_count => 1, colocate_with => 'none')",
      [WIDE],
    );
  });
  const groups = cluster.workers.map(({ groupid }) => groupid);
  await Promise.all(
    cluster.groups.map(({ primary }) =>
      primary.withSession((session) => writeMetadata(session, count, groups)),
    ),
  );
}

async function writeMetadata(
  session: Client,
  count: number,
  groups: readonly number[],
): Promise<void> {
  await session.query('BEGIN');
  await session.query(FORGET_PLACEMENTS, [WIDE]);
  await session.query(FORGET_SHARDS, [WIDE]);
  await session.query(ADD_SHARDS, [WIDE, count, FIRST_SHARD]);
  await session.query(ADD_PLACEMENTS, [count, FIRST_SHARD, groups]);
  await session.query('COMMIT');
}

/** Far above what Citus has given away by then. */
const FIRST_SHARD = 50_000_000;

const FORGET_PLACEMENTS = `
  DELETE FROM pg_dist_placement AS p
  USING pg_dist_shard AS s
  WHERE s.shardid = p.shardid AND s.logicalrelid = $1::regclass`;

const FORGET_SHARDS = 'DELETE FROM pg_dist_shard WHERE logicalrelid = $1::regclass';

/** Ranges of hashes without a gap, or Citus would refuse the table. */
const ADD_SHARDS = `
  INSERT INTO pg_dist_shard (logicalrelid, shardid, shardstorage, shardminvalue, shardmaxvalue)
  SELECT $1::regclass, $3::bigint + s.place, 't',
         (-2147483648 + s.place * s.width)::text,
         (CASE WHEN s.place = $2::bigint - 1 THEN 2147483647
          ELSE -2147483648 + (s.place + 1) * s.width - 1 END)::text
  FROM (
    SELECT place, 4294967296 / $2::bigint AS width
    FROM generate_series(0, $2::bigint - 1) AS place
  ) AS s`;

const ADD_PLACEMENTS = `
  INSERT INTO pg_dist_placement (placementid, shardid, shardstate, shardlength, groupid)
  SELECT $2::bigint + place, $2::bigint + place, 1, 0,
         ($3::integer[])[1 + place % cardinality($3::integer[])]
  FROM generate_series(0, $1::bigint - 1) AS place`;

/** Shards of the wide table in one group, in order. */
export async function shardsOf(session: Client, groupid: number, count: number): Promise<string[]> {
  const { rows } = await session.query<{ shardid: string }>(SHARDS_OF, [WIDE, groupid, count]);
  return rows.map(({ shardid }) => shardid);
}

const SHARDS_OF = `
  SELECT s.shardid::text
  FROM pg_dist_shard AS s
  JOIN pg_dist_placement AS p ON p.shardid = s.shardid
  WHERE s.logicalrelid = $1::regclass AND p.groupid = $2
  ORDER BY s.shardid
  LIMIT $3`;
