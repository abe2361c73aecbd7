import type { ControllerProcess } from '../controller-process.js';
import type { Harness } from '../harness.js';
import { waitFor, type Server } from '../servers/index.js';
import { waitUntilSynced } from '../standin/observe.js';
import { keysOfGroup } from '../standin/schema.js';
import { StatementClient } from './client.js';
import { moveOf, type Target } from './kinds.js';

export const PAUSES = ['writes', 'all'] as const;
export const ENTRIES = ['coordinator', 'worker'] as const;
export type Pause = (typeof PAUSES)[number];
export type Entry = (typeof ENTRIES)[number];

/** Sessions of controllers, and not those of tests, which are named alike. */
export const CONTROLLERS = '^mpp-controller (?!test$|observer$)';

/** The application name of the session that keeps Citus from telling a worker of a new row. */
const SYNC_BLOCKER = 'sync blocker';

/** Of group 1, which sorts behind the other nodes: Citus goes by host and port where it locks tables. */
const OWN_HOST = 'localhost';

/** The cluster on which statements are measured, between two of its switchovers. */
export class Stage {
  readonly h: Harness;
  readonly #own: GroupKeys;
  readonly #other: GroupKeys;
  #controller: ControllerProcess;
  #used = 0;
  /** How many lines the controller had logged before the last commit. */
  #logged = 0;

  private constructor(h: Harness, controller: ControllerProcess, own: GroupKeys, other: GroupKeys) {
    this.h = h;
    this.#controller = controller;
    this.#own = own;
    this.#other = other;
  }

  /** @param h with two worker groups, the first with a standby, and no controller. */
  static async prepare(h: Harness): Promise<Stage> {
    const { host, port } = h.cluster.group(1).primary;
    await h.db.query(
      'SELECT citus_update_node(nodeid, $3, $2) FROM pg_dist_node WHERE $1 = nodename AND $2 = nodeport',
      [host, port, OWN_HOST],
    );
    await waitUntilSynced(h.db);
    await h.db.query('INSERT INTO lookup VALUES (1, 0)');
    return new Stage(h, await h.startController(), await groupKeys(h, 1), await groupKeys(h, 2));
  }

  /** Rows of `items` that no other statement uses. */
  nextTarget(): (attempt: Target['attempt']) => Target {
    const [own, other] = [this.#own.keys[this.#used], this.#other.keys[this.#used]];
    if (own === undefined || other === undefined) throw new Error('there are no more keys');
    this.#used += 1;
    return (attempt) => {
      const [ownMoved = 0, otherMoved = 0] = [
        this.#own.ofTwoShards[attempt - 1],
        this.#other.ofTwoShards[attempt - 1],
      ];
      return { own, other, moved: { own: ownMoved, other: otherMoved }, attempt };
    };
  }

  /** The primaries, where statements may wait. */
  get primaries(): readonly Server[] {
    return this.h.cluster.groups.map(({ primary }) => primary);
  }

  entry(entry: Entry): Server {
    return this.h.cluster.group(entry === 'coordinator' ? 0 : 2).primary;
  }

  async client(entry: Entry): Promise<StatementClient> {
    return StatementClient.connect(this.entry(entry));
  }

  /** Runs statements in a session of their own: one that is older may still know a server that is gone. */
  async run(server: Server, statements: readonly string[] = []): Promise<void> {
    if (statements.length === 0) return;
    await server.withSession(async (db) => {
      for (const text of statements) await db.query(text);
    });
  }

  /** Puts another controller in place of the active one, which knows nothing of earlier holds. */
  async renewController(): Promise<void> {
    await this.#controller.end();
    this.#controller = await this.h.startController();
  }

  /** Holds the group whole, with nothing under way. @throws Error when it cannot be held so */
  async hold(pause: Pause): Promise<void> {
    let task = await this.h.acknowledged(await this.reportDemote(pause));
    if (task.reason !== null) {
      // Sessions of the statements before may have been there a moment ago.
      await this.h.db.query('SELECT mpp_release(1)');
      await this.h.ended(task.id);
      await this.renewController();
      task = await this.h.acknowledged(await this.reportDemote(pause));
    }
    if (task.status === 'holding' && task.reason === null) return;
    throw new Error(`the hold is ${task.status}: ${task.reason ?? 'no reason'}`);
  }

  async reportDemote(pause: Pause): Promise<string> {
    const node = { host: OWN_HOST, port: this.h.cluster.group(1).primary.port };
    return this.h.report({
      event: 'before_demote',
      groupid: 1,
      node,
      pause,
      timeout: '2min',
      cooldown: '1s',
    });
  }

  async stopPrimary(): Promise<void> {
    await this.h.cluster.group(1).primary.stop('fast');
  }

  /**
   * Promotes the standby and moves the row to it, while one worker cannot be told of it.
   *
   * @returns what lets Citus tell it; until then no node with metadata is in sync.
   */
  async commitUnsynced(): Promise<() => Promise<void>> {
    const group = this.h.cluster.group(1);
    await group.promoteStandby();
    this.#logged = this.#controller.log.length;
    const blocker = await StatementClient.connect(this.entry('worker'), SYNC_BLOCKER);
    await blocker.run(['BEGIN', 'LOCK TABLE pg_dist_node IN SHARE MODE']);
    const node = { host: OWN_HOST, port: group.primary.port };
    const task = await this.h.request({ event: 'after_promote', groupid: 1, node });
    if (task.status !== 'done')
      throw new Error(`after_promote is ${task.status}: ${task.reason ?? ''}`);
    return () => blocker.end();
  }

  /** Moves back what statements have moved. */
  async #moveBack(): Promise<void> {
    for (const [keys, home] of [
      [this.#own.ofTwoShards, 1],
      [this.#other.ofTwoShards, 2],
    ] as const) {
      for (const key of keys) {
        const { rows } = await this.h.db.query<{ groupid: number }>(GROUP_OF, [key]);
        const groupid = rows[0]?.groupid ?? home;
        if (groupid === home) continue;
        await this.run(this.h.cluster.coordinator, [
          'CALL citus_cleanup_orphaned_resources()',
          moveOf(key, groupid, home),
        ]);
      }
    }
  }

  /** The application names of the session that blocks the sync, and of those that work for the sync, on any node. */
  async syncPattern(): Promise<string> {
    const { rows } = await this.h.db.query<{ gpid: string }>(SYNC_DAEMONS);
    const gpids = rows.map(({ gpid }) => gpid).join('|') || 'none';
    return `^(${SYNC_BLOCKER}|Citus Metadata Sync Daemon|citus_[a-z_]+ gpid=(${gpids}))$`;
  }

  /**
   * True once the coordinator's sessions of holds let reads and writes through, or the controller has said that
   * it keeps them waiting for DDL.
   */
  async coordinatorIsDone(): Promise<boolean> {
    if (this.#controller.log.slice(this.#logged).some(({ msg }) => msg.startsWith('DDL waits')))
      return true;
    const { rowCount } = await this.h.db.query(STRONG_LOCKS, [CONTROLLERS]);
    return rowCount === 0;
  }

  /** True while a hold makes reads of the table wait that enter through this node. */
  async readsWait(entry: Entry): Promise<boolean> {
    return this.entry(entry).withSession(async (db) => {
      const { rowCount } = await db.query(TABLE_LOCK, [CONTROLLERS]);
      return rowCount !== 0;
    });
  }

  /** The name of the shard of `items` that has a row with this key. */
  async shardOf(key: number): Promise<string> {
    const { rows } = await this.h.db.query<{ shard: string }>(SHARD, [key]);
    return rows[0]?.shard ?? '';
  }

  /** Brings the stopped server back as a standby, and everything in sync. */
  async restore(): Promise<void> {
    await waitUntilSynced(this.h.db);
    await this.h.cluster.group(1).rejoin();
    await this.#moveBack();
    await waitFor('all holds to end', async () => (await this.h.holds()) === 0);
  }
}

async function groupKeys(h: Harness, groupid: number): Promise<GroupKeys> {
  const keys = await keysOfGroup(h.db, groupid, KEYS);
  for (const key of keys) await h.db.query('INSERT INTO items VALUES ($1, 0)', [key]);
  const { rows } = await h.db.query<{ key: string }>(ONE_BY_SHARD, [keys]);
  return { keys, ofTwoShards: rows.map(({ key }) => Number(key)) };
}

interface GroupKeys {
  readonly keys: readonly number[];
  readonly ofTwoShards: readonly number[];
}

const SYNC_DAEMONS = `
  SELECT (n.nodeid * 10000000000 + a.pid)::text AS gpid
  FROM pg_stat_activity AS a
  CROSS JOIN pg_dist_node AS n
  WHERE n.groupid = 0 AND a.application_name = 'Citus Metadata Sync Daemon'`;

const ONE_BY_SHARD = `
  SELECT min(key)::text AS key
  FROM unnest($1::bigint[]) AS key
  GROUP BY get_shard_id_for_distribution_column('items', key)
  ORDER BY min(key)
  LIMIT 2`;

/** More than there are rows in the tables, in each of four combinations. */
const KEYS = 400;

/** Those that stop reads or writes; a hold may keep weaker ones for longer. Citus's own advisory locks are above 2. */
const STRONG_LOCKS = `
  SELECT
  FROM pg_locks AS l
  JOIN pg_stat_activity AS a USING (pid)
  LEFT JOIN pg_class AS c ON c.oid = l.relation
  WHERE a.application_name ~ $1
    AND l.mode IN ('AccessExclusiveLock', 'ExclusiveLock')
    AND (l.locktype = 'advisory' AND l.objsubid > 2
         OR l.locktype = 'relation' AND c.relnamespace = 'public'::regnamespace
            AND c.relname NOT LIKE 'mpp%')`;

const TABLE_LOCK = `
  SELECT
  FROM pg_locks AS l
  JOIN pg_stat_activity AS a USING (pid)
  WHERE a.application_name ~ $1 AND l.granted AND l.mode = 'AccessExclusiveLock'
    AND l.relation = 'items'::regclass`;

const SHARD = `
  SELECT 'items_' || get_shard_id_for_distribution_column('items', $1::bigint) AS shard`;

const GROUP_OF = `
  SELECT groupid
  FROM pg_dist_placement
  WHERE shardid = get_shard_id_for_distribution_column('items', $1::bigint)`;
