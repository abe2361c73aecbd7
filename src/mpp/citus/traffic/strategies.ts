import type { ClientBase } from 'pg';
import type { LockUnit } from '../../../drain/lock-unit.js';
import type { Address } from '../../../tasks/task.js';
import type { HeldNode, Node } from '../../abstract.js';
import { applyStep } from '../nodes.js';
import { parkedAddress, planTransition } from '../transition.js';
import { shardLocks, type Targets } from './targets.js';

export type StrategyName = 'shard-locks' | 'pause-node' | 'demoted-row';

/** What a strategy's locks are taken for. */
export interface PauseScope {
  readonly node: Node;
  /** The group's rows. */
  readonly nodes: readonly Node[];
  readonly targets: Targets;
  /** Has Citus end who is in the way after so many milliseconds; undefined when we may do it ourselves. */
  readonly forceAfterMs: number | undefined;
}

/** How the coordinator makes the traffic of a group wait: one way of several. */
export interface PauseStrategy {
  readonly name: StrategyName;
  /** True when it locks pg_dist_node until the hold ends, so that nobody else can change its rows. */
  readonly locksNodes: boolean;
  /** True when it takes the locks of shards that other groups have, too, and so excludes their holds. */
  readonly coversShared: boolean;
  /** What the group's own session takes. */
  units(scope: PauseScope): LockUnit[];
  /** Writes the target down as soon as it is known, if the strategy does. */
  retarget(
    session: ClientBase,
    held: HeldNode,
    nodes: readonly Node[],
    target: Address,
    cooldownMs: number,
  ): Promise<void>;
}

const later = (): Promise<void> => Promise.resolve();

/**
 * Takes the metadata locks of the shards that the group alone has. pg_dist_node is locked only from
 * the update at after_promote to the commit, so any number of groups can be held.
 */
const shardLocksOnly: PauseStrategy = {
  name: 'shard-locks',
  locksNodes: false,
  coversShared: false,
  units: ({ targets }) => shardLocks(targets.shards),
  retarget: later,
};

/** Has Citus take the locks of all shards with a placement in the group, from Citus 12.1 on. */
const pauseNode: PauseStrategy = {
  name: 'pause-node',
  locksNodes: false,
  coversShared: true,
  units: ({ node, forceAfterMs }) => [
    {
      key: 'citus_pause_node_within_txn',
      text: 'SELECT pg_catalog.citus_pause_node_within_txn($1, $2, $3)',
      values: [node.nodeid, forceAfterMs !== undefined, Math.round(forceAfterMs ?? 0)],
    },
  ],
  retarget: later,
};

/**
 * Gives the row a name that nobody has: works from Citus 10 on. It locks pg_dist_node until the
 * transaction ends, so it allows one hold in the whole cluster, and distributed DDL waits as well.
 */
const demotedRow: PauseStrategy = {
  name: 'demoted-row',
  locksNodes: true,
  coversShared: true,
  units({ node, nodes, forceAfterMs }) {
    const { host, port } = parkedAddress(node, nodes);
    return [
      {
        key: 'citus_update_node',
        text: 'SELECT pg_catalog.citus_update_node($1, $2, $3, $4, $5)',
        values: [
          node.nodeid,
          host,
          port,
          forceAfterMs !== undefined,
          Math.round(forceAfterMs ?? 0),
        ],
      },
    ];
  },
  async retarget(session, held, nodes, target, cooldownMs) {
    const primary = nodes.find((node) => node.nodeid === held.nodeid);
    if (primary === undefined) return;
    const transition = planTransition(
      { event: 'after_promote', groupid: primary.groupid, address: target, secondaries: null },
      nodes,
      held,
    );
    if (transition.kind !== 'change') return;
    for (const step of transition.steps) await applyStep(session, step, cooldownMs);
  },
};

/** The best first. */
export const STRATEGIES: readonly PauseStrategy[] = [shardLocksOnly, pauseNode, demotedRow];
