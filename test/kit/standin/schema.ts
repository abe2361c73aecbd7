import type pg from 'pg';

/** What the tables are made on: the coordinator's session, and whether its Citus is the real one. */
export interface TestTablesTarget {
  readonly coordinator: pg.ClientBase;
  readonly citus: boolean;
}

const SHARD_COUNT = 8;

const SET_SHARD_COUNT_ON_CITUS = `SET citus.shard_count = ${SHARD_COUNT}`;

const CREATE_ON_CITUS = [
  'CREATE TABLE items (id bigint PRIMARY KEY, v integer)',
  'CREATE TABLE notes (id bigint PRIMARY KEY, v integer)',
  'CREATE TABLE lookup (id bigint PRIMARY KEY, v integer)',
  "SELECT create_distributed_table('items', 'id')",
  "SELECT create_distributed_table('notes', 'id')",
  "SELECT create_reference_table('lookup')",
];

const CREATE_ON_STANDIN = [
  `SELECT standin.create_distributed_table('items', ${SHARD_COUNT})`,
  `SELECT standin.create_distributed_table('notes', ${SHARD_COUNT})`,
  "SELECT standin.create_reference_table('lookup')",
];

/**
 * Makes the tables that tests and traffic use, each `(id bigint PRIMARY KEY, v integer)`: `items` and
 * `notes` distributed by id over 8 colocated shards, `lookup` on every node. All workers must be
 * registered in `pg_dist_node`. Plain INSERT, UPDATE … WHERE, DELETE, SELECT and count(*) mean the
 * same on both, on the coordinator and on every worker, alone or in transactions; ON CONFLICT,
 * SELECT … FOR UPDATE, savepoints and a change of id do not.
 */
export async function createTestTables({ coordinator, citus }: TestTablesTarget): Promise<void> {
  const statements = citus ? [SET_SHARD_COUNT_ON_CITUS, ...CREATE_ON_CITUS] : CREATE_ON_STANDIN;
  for (const statement of statements) await coordinator.query(statement);
}

// A group has at least one shard of eight, so a window this wide holds enough keys.
const KEYS_OF_GROUP = `
  SELECT series.key::text
  FROM generate_series($2::bigint + 1, $2 + 1000 + 100 * $3::bigint) AS series (key)
  JOIN pg_dist_placement AS placement
    ON placement.shardid = get_shard_id_for_distribution_column('items', series.key)
  WHERE placement.groupid = $1
  ORDER BY series.key
  LIMIT $3`;

/** Keys of `items` and `notes` whose shard is in a group, above `after`, in ascending order. */
export async function keysOfGroup(
  coordinator: pg.ClientBase,
  groupid: number,
  count: number,
  after = 0,
): Promise<number[]> {
  const result = await coordinator.query<{ key: string }>(KEYS_OF_GROUP, [groupid, after, count]);
  return result.rows.map((row) => Number(row.key));
}
