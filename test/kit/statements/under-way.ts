import type { Target } from './kinds.js';

/** A row of the second table: what a client has begun before the group is to be held. */
export interface UnderWayKind {
  readonly name: string;
  /** Sent before the hold; the last of them stays under way, or its transaction open. */
  readonly begun: (target: Target) => readonly string[];
  /**
   * What another session does on the other group's primary, or the group's own, so that the last of `begun`
   * runs for as long as the test likes. `SHARD` is the shard of the key there.
   */
  readonly stalledBy?: {
    readonly group: 'own' | 'other';
    readonly statements: readonly string[];
  };
  /** Sent in the open transaction: while the group is held, or once that hold has ended. */
  readonly then?: {
    readonly when: 'held' | 'committed';
    readonly sent: (t: Target) => readonly string[];
  };
  /** The last of `begun` sleeps on the worker: no lock makes it wait. */
  readonly sleeps?: true;
  /** Made on the coordinator before, and removed after. */
  readonly setup?: readonly string[];
  readonly cleanup?: readonly string[];
  readonly standin?: true;
}

/** A key of advisory locks that stalls a statement on the worker that runs it. */
const STALL = 4711;

const READ_ALL = 'SELECT count(*) FROM items';
const readOf = ({ own }: Target): string => `SELECT v FROM items WHERE id = ${own}`;
const writeOf = (key: number): string => `UPDATE items SET v = v + 1 WHERE id = ${key}`;

const STALLED_READ = {
  group: 'own',
  statements: [`SELECT pg_advisory_lock(${STALL})`],
} as const;

/** Citus lets a session touch a shard by its name only when it says so. */
const ON_SHARD = ['SET citus.enable_manual_changes_to_shards = on', 'BEGIN'];

/** In the order of the table. */
export const UNDER_WAY_KINDS: readonly UnderWayKind[] = [
  {
    name: 'a `SELECT` of the group that runs for long',
    begun: ({ own }) => [`SELECT v, pg_advisory_lock(${STALL}) FROM items WHERE id = ${own}`],
    stalledBy: STALLED_READ,
  },
  {
    name: 'a transaction that has read the group, and reads it again while it is held',
    begun: (target) => ['BEGIN', readOf(target)],
    then: { when: 'held', sent: (target) => [readOf(target), 'COMMIT'] },
    standin: true,
  },
  {
    name: 'the same, and it reads again after the switchover',
    begun: (target) => ['BEGIN', readOf(target)],
    then: { when: 'committed', sent: (target) => [readOf(target), 'COMMIT'] },
    standin: true,
  },
  {
    name: 'an open cursor over all shards, fetched from after the switchover',
    begun: () => ['BEGIN', 'DECLARE c CURSOR FOR SELECT * FROM items', 'FETCH 1 FROM c'],
    then: { when: 'committed', sent: () => ['FETCH ALL FROM c', 'COMMIT'] },
  },
  {
    name: 'a transaction that has written to the group, idle for longer than the cooldown',
    begun: ({ own }) => ['BEGIN', writeOf(own)],
    then: { when: 'committed', sent: () => ['COMMIT'] },
    standin: true,
  },
  {
    name: 'a transaction that has written to another group alone, and commits after the switchover',
    begun: ({ other }) => ['BEGIN', writeOf(other)],
    then: { when: 'committed', sent: () => ['COMMIT'] },
    standin: true,
  },
  {
    name: 'an `UPDATE` of the group that runs for longer than the cooldown',
    begun: ({ own }) => [`UPDATE items SET v = slow(v) WHERE id = ${own}`],
    setup: [
      `CREATE FUNCTION slow(v integer) RETURNS integer LANGUAGE plpgsql IMMUTABLE AS
       'BEGIN PERFORM pg_sleep(60); RETURN v + 1; END'`,
    ],
    sleeps: true,
    cleanup: ['DROP FUNCTION slow'],
  },
  {
    name: 'an `ALTER TABLE` in a transaction, idle for longer than the cooldown',
    begun: () => ['BEGIN', 'ALTER TABLE items ALTER COLUMN v SET DEFAULT 7'],
    then: { when: 'committed', sent: () => ['COMMIT'] },
    cleanup: ['ALTER TABLE items ALTER COLUMN v DROP DEFAULT'],
  },
  {
    name: '`VACUUM` of the table, at work on another group',
    begun: () => ['VACUUM items'],
    stalledBy: {
      group: 'other',
      statements: [...ON_SHARD, 'LOCK TABLE SHARD IN SHARE UPDATE EXCLUSIVE MODE'],
    },
  },
  {
    name: '`CREATE INDEX CONCURRENTLY`, at work on another group',
    begun: () => ['CREATE INDEX CONCURRENTLY by_v1 ON items (v)'],
    stalledBy: {
      group: 'other',
      statements: [...ON_SHARD, 'LOCK TABLE SHARD IN ROW EXCLUSIVE MODE'],
    },
    cleanup: ['DROP INDEX IF EXISTS by_v1'],
  },
  {
    name: '`pg_dump`, which has locked the table and read some of it',
    begun: () => [
      'BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY',
      'LOCK TABLE items IN ACCESS SHARE MODE',
      READ_ALL,
    ],
    then: { when: 'committed', sent: () => ["COPY items TO PROGRAM 'cat > /dev/null'", 'COMMIT'] },
  },
];
