import type { ClientBase } from 'pg';
import type { Address, Pause } from '../../tasks/task.js';
import type { HeldNode, Node, PauseResult } from '../abstract.js';
import { applyStep, updateNode } from './nodes.js';
import { parkedAddress, planTransition } from './transition.js';

/** How traffic is made to wait: one way of several, chosen by setting and by what the server has. */
export interface PauseStrategy {
  readonly name: StrategyName;
  /**
   * True when a pause leaves pg_dist_node alone, so that two groups can be held at once as long as
   * they share no shard; false when it locks pg_dist_node for everyone else.
   */
  readonly sideBySide: boolean;
  /** Makes writes to the node's shards wait. */
  pause(session: ClientBase, node: Node, nodes: readonly Node[], cooldownMs: number): Promise<void>;
  /** Writes the target down as soon as it is known, if the strategy does. */
  retarget(
    session: ClientBase,
    held: HeldNode,
    nodes: readonly Node[],
    target: Address,
    cooldownMs: number,
  ): Promise<void>;
}

export type StrategyName = 'demoted-row' | 'pause-node';

/**
 * Gives the row a name that nobody has: works from Citus 10 on. It locks pg_dist_node until the
 * transaction ends, so it allows one hold in the whole cluster, and distributed DDL waits as well.
 */
export const demotedRow: PauseStrategy = {
  name: 'demoted-row',
  sideBySide: false,
  async pause(session, node, nodes, cooldownMs) {
    await updateNode(session, node.nodeid, parkedAddress(node, nodes), cooldownMs);
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

/**
 * Takes the locks of the group's shards alone, from Citus 12.1 on. pg_dist_node is locked only from
 * the update at after_promote to the commit.
 */
export const pauseNode: PauseStrategy = {
  name: 'pause-node',
  sideBySide: true,
  async pause(session, node, _nodes, cooldownMs) {
    await session.query({
      name: 'mpp-pause-node',
      text: 'SELECT pg_catalog.citus_pause_node_within_txn($1, true, $2)',
      values: [node.nodeid, Math.round(cooldownMs)],
    });
  },
  retarget: () => Promise.resolve(),
};

/** What a strategy cannot do, in a sentence for the task's reason. */
export function pauseShortfall(pause: Pause, strategy: PauseStrategy): PauseResult {
  if (pause !== 'all') return { reason: null };
  return { reason: `writes wait, reads do not: ${strategy.name} cannot make reads wait` };
}
