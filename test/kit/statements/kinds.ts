/** The rows and names that a statement of a table row is made for. */
export interface Target {
  /** Keys of `items` and `notes`: a row of the group that is held, and one of another group. */
  readonly own: number;
  readonly other: number;
  /** The same, of shards that no other statement uses: one while the primary is up, one once it is stopped. */
  readonly moved: { readonly own: number; readonly other: number };
  /** 1 while the group's primary is up, 2 once it is stopped: each makes an object of its own. */
  readonly attempt: 1 | 2;
}

/** A row of the table: what a client sends while a group is held. */
export interface StatementKind {
  readonly name: string;
  /** Made on the coordinator before the hold. */
  readonly setup?: readonly string[];
  /** Made on the entry node before the hold. */
  readonly setupAtEntry?: readonly string[];
  /** What the same session has sent before the hold. */
  readonly earlier?: (target: Target) => readonly string[];
  /** One after the other; the row is about the first of them that waits or fails. */
  readonly sent: (target: Target) => readonly string[];
  /** Run on the coordinator, then on the entry node, after the switchover. */
  readonly cleanup?: readonly string[];
  readonly cleanupAtEntry?: readonly string[];
  /** It is measured in a switchover of its own, because others would wait for its locks. */
  readonly alone?: true;
  /** On the coordinator, with `writes`, its end depends on whether the nodes are in sync once it has done its work. */
  readonly racesSync?: true;
  /** The stand-in for Citus knows it. */
  readonly standin?: true;
}

const READS: readonly StatementKind[] = [
  {
    name: '`SELECT` from one shard of the group',
    sent: ({ own }) => [`SELECT v FROM items WHERE id = ${own}`],
    standin: true,
  },
  {
    name: "`SELECT` from another group's shard",
    sent: ({ other }) => [`SELECT v FROM items WHERE id = ${other}`],
    standin: true,
  },
  {
    name: '`SELECT` from all shards',
    sent: () => ['SELECT count(*) FROM items'],
    standin: true,
  },
  {
    name: '`SELECT … FOR UPDATE` of a row of the group',
    sent: ({ own }) => [`SELECT v FROM items WHERE id = ${own} FOR UPDATE`],
  },
  {
    name: '`SELECT` from a reference table',
    sent: () => ['SELECT v FROM lookup WHERE id = 1'],
    standin: true,
  },
  {
    name: 'a prepared `SELECT` from the group',
    earlier: ({ own }) => [
      'PREPARE read AS SELECT v FROM items WHERE id = $1',
      `EXECUTE read(${own})`,
    ],
    sent: ({ own }) => [`EXECUTE read(${own})`],
  },
  {
    name: '`DECLARE CURSOR` and `FETCH`, all shards',
    sent: () => ['BEGIN', 'DECLARE c CURSOR FOR SELECT * FROM items', 'FETCH ALL FROM c', 'COMMIT'],
  },
  {
    name: '`EXPLAIN ANALYZE SELECT`, one shard of the group',
    sent: ({ own }) => [`EXPLAIN ANALYZE SELECT v FROM items WHERE id = ${own}`],
  },
  {
    name: '`COPY … TO`',
    sent: () => ["COPY items TO PROGRAM 'cat > /dev/null'"],
  },
  {
    name: '`REFRESH MATERIALIZED VIEW` over the table',
    setupAtEntry: ['CREATE MATERIALIZED VIEW totals AS SELECT sum(v) FROM items'],
    sent: () => ['REFRESH MATERIALIZED VIEW totals'],
    cleanupAtEntry: ['DROP MATERIALIZED VIEW totals'],
    alone: true,
  },
  {
    name: '`pg_dump` of the table (`LOCK TABLE … IN ACCESS SHARE MODE`, `COPY … TO`)',
    sent: () => [
      'BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY',
      'LOCK TABLE items IN ACCESS SHARE MODE',
      "COPY items TO PROGRAM 'cat > /dev/null'",
      'COMMIT',
    ],
    alone: true,
  },
];

const WRITES: readonly StatementKind[] = [
  {
    name: '`INSERT` into one shard of the group',
    sent: ({ own, attempt }) => [`INSERT INTO notes VALUES (${own}, ${attempt})`],
    standin: true,
  },
  {
    name: '`UPDATE` of a row of the group',
    sent: ({ own }) => [`UPDATE items SET v = v + 1 WHERE id = ${own}`],
    standin: true,
  },
  {
    name: '`DELETE` of a row of the group',
    sent: ({ own }) => [`DELETE FROM items WHERE id = ${own}`],
    standin: true,
  },
  {
    name: '`UPDATE` of a row of another group',
    sent: ({ other }) => [`UPDATE items SET v = v + 1 WHERE id = ${other}`],
    standin: true,
  },
  {
    name: '`UPDATE` of all shards',
    sent: () => ['UPDATE items SET v = v + 1'],
    alone: true,
  },
  {
    name: '`INSERT … SELECT` from the table into another',
    sent: () => ['INSERT INTO notes SELECT * FROM items ON CONFLICT DO NOTHING'],
    cleanup: ['DELETE FROM notes'],
    alone: true,
  },
  {
    name: '`COPY … FROM`, a row of the group',
    sent: ({ own }) => [`COPY notes FROM PROGRAM 'echo ${own},1' (FORMAT csv)`],
  },
  {
    name: '`INSERT` into a reference table',
    sent: ({ own, attempt }) => [`INSERT INTO lookup VALUES (${own * 2 + attempt}, 0)`],
    standin: true,
  },
  {
    name: '`INSERT` into a local table',
    setupAtEntry: ['CREATE TABLE plain (id bigint)'],
    sent: () => ['INSERT INTO plain VALUES (1)'],
    cleanupAtEntry: ['DROP TABLE plain'],
    standin: true,
  },
  {
    name: 'a prepared `UPDATE` of the group',
    earlier: ({ own }) => [
      'PREPARE write AS UPDATE items SET v = v + 1 WHERE id = $1',
      `EXECUTE write(${own})`,
    ],
    sent: ({ own }) => [`EXECUTE write(${own})`],
  },
  {
    name: '`EXPLAIN ANALYZE UPDATE` of a row of the group',
    sent: ({ own }) => [`EXPLAIN ANALYZE UPDATE items SET v = v + 1 WHERE id = ${own}`],
  },
  {
    name: 'a transaction that writes to another group, then to the group',
    sent: ({ own, other }) => [
      'BEGIN',
      `UPDATE items SET v = v + 1 WHERE id = ${other}`,
      `UPDATE items SET v = v + 1 WHERE id = ${own}`,
      'COMMIT',
    ],
    standin: true,
  },
  {
    name: 'a function or procedure that Citus sends to the group (`create_distributed_function`)',
    setup: [
      `CREATE FUNCTION bump(k bigint) RETURNS void LANGUAGE plpgsql
        AS 'BEGIN UPDATE items SET v = v + 1 WHERE id = k; END'`,
      "SELECT create_distributed_function('bump(bigint)', 'k', colocate_with => 'items')",
    ],
    sent: ({ own }) => [`SELECT bump(${own})`],
    cleanup: ['DROP FUNCTION bump'],
    alone: true,
  },
  {
    name: 'the same in a transaction block, where Citus does not send it on',
    setup: [
      `CREATE FUNCTION bump(k bigint) RETURNS void LANGUAGE plpgsql
        AS 'BEGIN UPDATE items SET v = v + 1 WHERE id = k; END'`,
      "SELECT create_distributed_function('bump(bigint)', 'k', colocate_with => 'items')",
    ],
    sent: ({ own }) => ['BEGIN', `SELECT bump(${own})`, 'COMMIT'],
    cleanup: ['DROP FUNCTION bump'],
    alone: true,
  },
];

/** Two tables as `items` is, for statements that leave none. */
const TWO_TABLES = [1, 2].flatMap((n) => [
  `CREATE TABLE spare${n} (id bigint PRIMARY KEY, v integer)`,
  `SELECT create_distributed_table('spare${n}', 'id', colocate_with => 'items')`,
]);
const DROP_TWO_TABLES = ['DROP TABLE IF EXISTS spare1, spare2'];

/** Moves the shard of a row, and those that are colocated with it. */
export const moveOf = (key: number, from: number, to: number): string => `
  SELECT citus_move_shard_placement(
    get_shard_id_for_distribution_column('items', ${key}::bigint),
    (SELECT nodeid FROM pg_dist_node WHERE groupid = ${from} AND noderole = 'primary'),
    (SELECT nodeid FROM pg_dist_node WHERE groupid = ${to} AND noderole = 'primary'),
    'block_writes')`;

const COMMANDS: readonly Omit<StatementKind, 'alone'>[] = [
  {
    name: '`TRUNCATE`',
    setup: TWO_TABLES,
    sent: () => ['TRUNCATE spare1'],
    cleanup: DROP_TWO_TABLES,
  },
  {
    name: '`LOCK TABLE`',
    sent: () => ['BEGIN', 'LOCK TABLE items IN SHARE ROW EXCLUSIVE MODE', 'COMMIT'],
  },
  {
    name: '`ALTER TABLE`',
    sent: () => ['ALTER TABLE items ALTER COLUMN v SET DEFAULT 7'],
    cleanup: ['ALTER TABLE items ALTER COLUMN v DROP DEFAULT'],
  },
  {
    name: '`CREATE INDEX`',
    sent: ({ attempt }) => [`CREATE INDEX by_v${attempt} ON items (v)`],
    cleanup: ['DROP INDEX IF EXISTS by_v1', 'DROP INDEX IF EXISTS by_v2'],
  },
  {
    name: '`CREATE INDEX CONCURRENTLY`',
    sent: ({ attempt }) => [`CREATE INDEX CONCURRENTLY by_v${attempt} ON items (v)`],
    racesSync: true,
    cleanup: ['DROP INDEX IF EXISTS by_v1', 'DROP INDEX IF EXISTS by_v2'],
  },
  {
    name: '`REINDEX INDEX CONCURRENTLY`',
    sent: () => ['REINDEX INDEX CONCURRENTLY items_pkey'],
    racesSync: true,
  },
  {
    name: '`DROP TABLE`',
    setup: TWO_TABLES,
    sent: ({ attempt }) => [`DROP TABLE spare${attempt}`],
    cleanup: DROP_TWO_TABLES,
  },
  {
    name: '`CREATE TABLE`',
    sent: ({ attempt }) => [`CREATE TABLE plain${attempt} (id bigint)`],
    cleanupAtEntry: ['DROP TABLE IF EXISTS plain1, plain2'],
    standin: true,
  },
  {
    name: '`create_distributed_table`',
    setupAtEntry: ['CREATE TABLE plain1 (id bigint)', 'CREATE TABLE plain2 (id bigint)'],
    sent: ({ attempt }) => [`SELECT create_distributed_table('plain${attempt}', 'id')`],
    cleanupAtEntry: ['DROP TABLE plain1, plain2'],
  },
  {
    name: '`create_reference_table`',
    setupAtEntry: ['CREATE TABLE plain1 (id bigint)', 'CREATE TABLE plain2 (id bigint)'],
    sent: ({ attempt }) => [`SELECT create_reference_table('plain${attempt}')`],
    cleanupAtEntry: ['DROP TABLE plain1, plain2'],
  },
  {
    name: '`GRANT` on the table',
    setup: ['CREATE ROLE auditor'],
    sent: () => ['GRANT SELECT ON items TO auditor'],
    cleanup: ['REVOKE ALL ON items FROM auditor', 'DROP ROLE auditor'],
  },
  {
    name: '`CREATE SCHEMA`, `CREATE FUNCTION`, `CREATE ROLE` and what else goes to all nodes',
    sent: ({ attempt }) => [`CREATE SCHEMA extra${attempt}`],
    cleanup: ['DROP SCHEMA IF EXISTS extra1, extra2'],
  },
  { name: '`VACUUM`', sent: () => ['VACUUM items'] },
  { name: '`ANALYZE`', sent: () => ['ANALYZE items'] },
  {
    name: '`citus_move_shard_placement` out of the group',
    sent: ({ moved }) => [moveOf(moved.own, 1, 2)],
  },
  {
    name: '`citus_move_shard_placement` into the group',
    sent: ({ moved }) => [moveOf(moved.other, 2, 1)],
  },
];

/** In the order of the table. */
export const STATEMENT_KINDS: readonly StatementKind[] = [
  ...READS,
  ...WRITES,
  ...COMMANDS.map((kind) => ({ ...kind, alone: true as const })),
];
