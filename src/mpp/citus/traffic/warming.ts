import type { TrafficNode } from './node.js';

/** So many nodes are connected to at the same time. */
const AT_ONCE = 8;

/** Has nodes connected to ahead of holds, until the signal. `onFailure` is told of each that cannot be. */
export async function warmNodes(
  nodes: readonly TrafficNode[],
  onFailure: (node: TrafficNode, error: unknown) => void,
  signal: AbortSignal,
): Promise<void> {
  const next = nodes.values();
  const work = async (): Promise<void> => {
    for (const node of next) {
      if (signal.aborted) return;
      await node.warm().catch((error: unknown) => onFailure(node, error));
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, work));
}
