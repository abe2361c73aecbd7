import type { PauseNode } from './node.js';

/** So many nodes are connected to at the same time. */
const AT_ONCE = 8;
/** Of so many groups, counted for each node, the list of locks is kept: some 40 MB at the most. */
const MOST_KNOWN = 1_024;

/**
 * Makes nodes ready for holds, until the signal.
 *
 * @param onFailure called for each that cannot be connected to
 */
export async function prewarmNodes(
  nodes: readonly PauseNode[],
  groupids: readonly number[],
  onFailure: (node: PauseNode, error: unknown) => void,
  signal: AbortSignal,
): Promise<void> {
  const next = nodes.values();
  const known = nodes.length * groupids.length > MOST_KNOWN ? [] : groupids;
  const work = async (): Promise<void> => {
    for (const node of next) {
      if (signal.aborted) return;
      await node.prewarm(known).catch((error: unknown) => onFailure(node, error));
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, work));
}
