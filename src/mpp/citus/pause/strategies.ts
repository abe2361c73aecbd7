import pg, { type ClientBase } from 'pg';
import { otherLock, type Lock } from '../../../locks/lock.js';
import type { Address } from '../../../address.js';
import type { HeldNode, Node } from '../../abstract.js';
import { applyStep } from '../nodes.js';
import { parkedAddress, planTransition } from '../transition.js';
import { shardLocks, type Targets } from './targets.js';

export type StrategyName = 'shard-locks' | 'pause-node' | 'demoted-row';

/** What a strategy's locks are taken for. */
interface PauseScope {
  readonly node: Node;
  /** The group's rows. */
  readonly nodes: readonly Node[];
  readonly targets: Targets;
  /** Has Citus end blocking sessions after so many milliseconds; undefined when the controller may do it itself. */
  readonly forceAfterMs: number | undefined;
}

/** How the coordinator makes the traffic of a group wait: one way of several. */
export interface PauseStrategy {
  readonly name: StrategyName;
  /** True when it locks pg_dist_node until the hold ends, so that no other session can change its rows. */
  readonly locksNodes: boolean;
  /** True when it takes the locks of shards that other groups have, too, and so excludes their holds. */
  readonly coversShared: boolean;
  /** What the group's own session takes. */
  locks(scope: PauseScope): Lock[];
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
  locks: ({ node, targets }) => shardLocks(node.groupid, targets.shards),
  retarget: later,
};

/** Has Citus take the locks of all shards with a placement in the group, from Citus 12.1 on. */
const pauseNode: PauseStrategy = {
  name: 'pause-node',
  locksNodes: false,
  coversShared: true,
  locks: ({ node, forceAfterMs }) => [
    otherLock(
      `pause of node ${node.nodeid}`,
      `SELECT pg_catalog.citus_pause_node_within_txn(${node.nodeid}, ${forceOf(forceAfterMs)})`,
    ),
  ],
  retarget: later,
};

/**
 * Gives the row a name that no node has: works from Citus 10 on. It locks pg_dist_node until the
 * transaction ends, so it allows one hold in the whole cluster, and distributed DDL waits as well.
 */
const demotedRow: PauseStrategy = {
  name: 'demoted-row',
  locksNodes: true,
  coversShared: true,
  locks({ node, nodes, forceAfterMs }) {
    const { host, port } = parkedAddress(node, nodes);
    const row = `${node.nodeid}, ${pg.escapeLiteral(host)}, ${port}`;
    return [
      otherLock(
        `row of node ${node.nodeid}`,
        `SELECT pg_catalog.citus_update_node(${row}, ${forceOf(forceAfterMs)})`,
      ),
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

function forceOf(afterMs: number | undefined): string {
  return `${afterMs !== undefined}, ${Math.round(afterMs ?? 0)}`;
}

/** The best first. */
export const STRATEGIES: readonly PauseStrategy[] = [shardLocksOnly, pauseNode, demotedRow];
