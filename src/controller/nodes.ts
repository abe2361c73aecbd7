import type { Node } from '../mpp/abstract.js';

/** The primary of a group among rows of the catalog. */
export function primaryOf(nodes: readonly Node[], groupid: number): Node | undefined {
  return nodes.find(
    (node) => node.isInCluster && node.groupid === groupid && node.role === 'primary',
  );
}

/** A group's rows as mpp_task_log shows them. */
export function describeGroup(nodes: readonly Node[], groupid: number): Record<string, unknown>[] {
  return nodes
    .filter((node) => node.isInCluster && node.groupid === groupid)
    .map(({ nodeid, role, address }) => ({
      nodeid,
      noderole: role,
      nodename: address.host,
      nodeport: address.port,
    }));
}

/** Whether two readings of the same rows say the same. */
export function sameNodes(one: readonly Node[], other: readonly Node[]): boolean {
  return JSON.stringify(one) === JSON.stringify(other);
}
