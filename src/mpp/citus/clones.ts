import { sameAddress, type Address } from '../../tasks/task.js';
import type { Node, Step } from '../abstract.js';

/** Of the row of a clone that was promoted by another hand than Citus's, until it is removed. */
const PROMOTED_SUFFIX = '-promoted';

/**
 * What becomes of a clone's row when the clone itself is the new primary. It cannot be removed in the same
 * transaction, because Citus tells every node with metadata, and the old primary does not answer. It is
 * given another name, and removed once the metadata is in sync.
 */
export function cloneSteps(
  promoted: Address,
  nodes: readonly Node[],
  primary: Node,
): Record<'before' | 'after' | 'later', Step[]> {
  const steps = { before: [] as Step[], after: [] as Step[], later: [] as Step[] };
  for (const clone of nodes.filter((node) => isCloneOf(node, primary))) {
    const { host, port } = clone.address;
    const parked = { host: `${promoted.host}${PROMOTED_SUFFIX}`, port: promoted.port };
    if (sameAddress(clone.address, promoted)) {
      steps.before.push({ op: 'update', nodeid: clone.nodeid, to: parked });
      steps.later.push({ op: 'removeClone', node: parked });
    } else if (sameAddress(clone.address, parked)) {
      steps.later.push({ op: 'removeClone', node: parked });
    } else if (host.endsWith(PROMOTED_SUFFIX)) {
      // A hold had given it that name, and the primary is another node now.
      const to = { host: host.slice(0, -PROMOTED_SUFFIX.length), port };
      steps.after.push({ op: 'update', nodeid: clone.nodeid, to });
    }
  }
  return steps;
}

/** Whether it is a clone that Citus may promote to a group of its own, of this primary. */
export function isCloneOf(node: Node, primary: Node): boolean {
  return node.isInCluster && node.role === 'unavailable' && node.cloneOf === primary.nodeid;
}
