import { type Task } from '../../tasks/task.js';
import { type Address, formatAddress, sameAddress } from '../../address.js';
import type { HeldNode, Node, Step, Transition } from '../abstract.js';

/** What the decision needs of a task. */
export type Report = Pick<Task, 'event' | 'groupid' | 'address' | 'secondaries'>;

/**
 * Decides what a report means for its group. Pure: the same rows and hold give the same answer.
 *
 * @param nodes the group's rows, and any row at an address that the report names. The row of a held
 *   primary may carry the address that the hold has given it.
 * @param held the group's hold, if it is held.
 */
export function planTransition(
  report: Report,
  nodes: readonly Node[],
  held: HeldNode | null,
): Transition {
  const rows = nodes.filter((node) => isMember(node, report.groupid));
  const found = rows.find((node) => node.role === 'primary');
  const primary = found && held ? { ...found, address: held.original } : found;
  switch (report.event) {
    case 'before_demote':
      return planDemote(report, primary, held);
    case 'suspect':
      return held && primary
        ? nothing(primary, 'its group is held already')
        : planDemote(report, primary, held);
    case 'before_promote':
      return planPromote(report, nodes, primary, held);
    case 'after_promote':
      if (found === undefined || primary === undefined) {
        return refuseTaken(report, [], nodes) ?? planRegistration(report, rows);
      }
      return (
        refuseTaken(report, [], nodes) ?? planCommit(report, nodes, rows, found, primary, held)
      );
  }
}

function planDemote(report: Report, primary: Node | undefined, held: HeldNode | null): Transition {
  if (primary === undefined) return discard(`group ${report.groupid} has no primary to demote`);
  const isTarget = held?.target && sameAddress(report.address, held.target);
  if (sameAddress(report.address, primary.address) || isTarget) {
    return { kind: 'hold', node: primary, target: held?.target ?? null };
  }
  return discard(
    `${formatAddress(report.address)} is not the primary of group ${report.groupid}: ` +
      `that is ${formatAddress(primary.address)}`,
  );
}

function planPromote(
  report: Report,
  nodes: readonly Node[],
  primary: Node | undefined,
  held: HeldNode | null,
): Transition {
  if (primary === undefined) {
    return discard(`group ${report.groupid} has no primary to replace; report after_promote`);
  }
  const stranger = occupant(report, nodes);
  if (stranger) return discard(taken(report.address, stranger));
  if (held === null && sameAddress(report.address, primary.address)) {
    return nothing(primary, `${formatAddress(report.address)} is the primary already`);
  }
  return { kind: 'hold', node: primary, target: report.address };
}

/** @param found the primary's row as it is now, perhaps changed by the hold; `primary`: as it was. */
function planCommit(
  report: Report,
  nodes: readonly Node[],
  rows: readonly Node[],
  found: Node,
  primary: Node,
  held: HeldNode | null,
): Transition {
  const clones = cloneSteps(report.address, nodes, primary);
  const displaced = rows.find(
    (node) => node.nodeid !== found.nodeid && sameAddress(node.address, primary.address),
  );
  const others = rows
    .filter((node) => node.nodeid !== found.nodeid)
    .map((node) => (node === displaced ? { ...node, address: found.address } : node));

  const move = [
    ...clones.before,
    ...moveSteps(report, nodes, others, found, primary, displaced),
    ...clones.after,
  ];
  const after = others.map((node) =>
    sameAddress(node.address, report.address) ? { ...node, address: primary.address } : node,
  );
  const rest = [...clones.later, ...secondarySteps(report, after, nodes)];
  if (held || move.length > 0) {
    return { kind: 'change', nodeid: primary.nodeid, steps: move, followUp: rest.length > 0 };
  }
  if (rest.length > 0) {
    // Not before the primary has moved: a wrong secondary must not keep the traffic waiting.
    const refused = refuseTaken(report, wantedSecondaries(report, nodes), nodes);
    return refused ?? { kind: 'change', nodeid: primary.nodeid, steps: rest, followUp: false };
  }
  return nothing(primary, 'pg_dist_node says so already');
}

function refuseTaken(
  report: Report,
  secondaries: readonly Address[],
  nodes: readonly Node[],
): Transition | undefined {
  const stranger = [report.address, ...secondaries]
    .map((address) => occupant({ ...report, address }, nodes))
    .find((node) => node !== undefined);
  return stranger && { kind: 'fail', reason: taken(stranger.address, stranger) };
}

function planRegistration(report: Report, group: readonly Node[]): Transition {
  if (group.some((node) => sameAddress(node.address, report.address))) {
    return {
      kind: 'fail',
      reason:
        `${formatAddress(report.address)} is a secondary of group ${report.groupid}, which has no ` +
        'primary; remove that row with citus_remove_node and report again',
    };
  }
  const step: Step =
    report.groupid === 0
      ? { op: 'coordinator', node: report.address }
      : { op: 'add', groupid: report.groupid, role: 'primary', node: report.address };
  const followUp = secondarySteps(report, group, group).length > 0;
  return { kind: 'change', nodeid: null, steps: [step], followUp };
}

/**
 * The updates that bring the primary's row to its new address. It keeps its nodeid, which the
 * placements of its shards refer to. A swap with a registered secondary takes three, because an
 * address is unique and each update is checked at once.
 *
 * @param others the group's other rows, as before the hold
 * @param displaced the row that the hold has swapped with the primary's already; it goes back first
 *   when the primary turns out to be another node.
 */
function moveSteps(
  report: Report,
  nodes: readonly Node[],
  others: readonly Node[],
  found: Node,
  primary: Node,
  displaced: Node | undefined,
): Step[] {
  // A hold that ends where it began is taken back as a whole.
  if (sameAddress(report.address, primary.address)) return [];
  const toNew: Step = { op: 'update', nodeid: primary.nodeid, to: report.address };
  if (sameAddress(report.address, found.address)) return [toNew];
  const swaps: Step[] = [];
  if (displaced) swaps.push({ op: 'update', nodeid: displaced.nodeid, to: found.address });
  const promoted = others.find((node) => sameAddress(node.address, report.address));
  if (promoted) swaps.push({ op: 'update', nodeid: promoted.nodeid, to: primary.address });
  const hasAddress = displaced ?? sameAddress(found.address, primary.address);
  if (swaps.length === 0 || !hasAddress) return [...swaps, toNew];
  const parked = parkedAddress(primary, [...nodes, ...others]);
  return [{ op: 'update', nodeid: primary.nodeid, to: parked }, ...swaps, toNew];
}

/**
 * What makes the secondaries those of the report. A row that has lost its node is given one that
 * has no row, so that its nodeid lives on; then the rest is removed and added.
 */
function secondarySteps(
  report: Report,
  secondaries: readonly Node[],
  nodes: readonly Node[],
): Step[] {
  if (report.secondaries === null) return [];
  const wanted = wantedSecondaries(report, nodes);
  const lost = secondaries.filter(
    (node) => !wanted.some((address) => sameAddress(address, node.address)),
  );
  const missing = wanted.filter(
    (address) => !secondaries.some((node) => sameAddress(node.address, address)),
  );
  const reused = Math.min(lost.length, missing.length);
  return [
    ...missing.slice(0, reused).flatMap((to, index): Step[] => {
      const node = lost[index];
      return node ? [{ op: 'update', nodeid: node.nodeid, to }] : [];
    }),
    ...lost.slice(reused).map((node): Step => ({ op: 'remove', node: node.address })),
    ...missing
      .slice(reused)
      .map((node): Step => ({ op: 'add', groupid: report.groupid, role: 'secondary', node })),
  ];
}

/** Those of the report without the nodes that are neither primary nor secondary, such as clones. */
function wantedSecondaries(report: Report, nodes: readonly Node[]): Address[] {
  return uniqueAddresses(report.secondaries ?? []).filter(
    (address) =>
      !nodes.some(
        (node) =>
          node.isInCluster && node.role === 'unavailable' && sameAddress(node.address, address),
      ),
  );
}

function isMember(node: Node, groupid: number): boolean {
  return node.isInCluster && node.groupid === groupid && node.role !== 'unavailable';
}

/**
 * An address that no node has, for the row of a primary that is between two. The name is the one
 * that the strategy demoted-row gives it, so that a swap does not move it twice.
 */
export function parkedAddress(primary: Node, nodes: readonly Node[]): Address {
  const { host, port } = primary.address;
  const plain = { host: `${host}-demoted`, port };
  const occupied = nodes.some(
    (node) => node.nodeid !== primary.nodeid && sameAddress(node.address, plain),
  );
  return occupied ? { host: `${host}-demoted-${primary.nodeid}`, port } : plain;
}

/** The row at the report's address, if it is not one of the report's own group or of its primary's clones. */
function occupant(
  { groupid, address }: Pick<Report, 'groupid' | 'address'>,
  nodes: readonly Node[],
): Node | undefined {
  const primary = nodes.find((node) => isMember(node, groupid) && node.role === 'primary');
  return nodes.find(
    (node) =>
      sameAddress(node.address, address) &&
      !isMember(node, groupid) &&
      !(primary && isCloneOf(node, primary)),
  );
}

function taken(address: Address, node: Node): string {
  const kind = node.role === 'unavailable' ? ' as an unavailable node' : '';
  const owner = node.isInCluster ? `group ${node.groupid}${kind}` : 'another node cluster';
  return (
    `${formatAddress(address)} belongs to ${owner} (nodeid ${node.nodeid}); ` +
    'remove or move that row, then report again'
  );
}

function uniqueAddresses(addresses: readonly Address[]): Address[] {
  return addresses.filter(
    (address, index) => addresses.findIndex((other) => sameAddress(other, address)) === index,
  );
}

function discard(reason: string): Transition {
  return { kind: 'discard', reason };
}

function nothing(primary: Node, reason: string): Transition {
  return { kind: 'nothing', nodeid: primary.nodeid, reason };
}

/** Of the row of a clone that was promoted by another hand than Citus's, until it is removed. */
const PROMOTED_SUFFIX = '-promoted';

/**
 * What becomes of a clone's row when the clone itself is the new primary. It cannot be removed in the same
 * transaction, because Citus tells every node with metadata, and the old primary does not answer. It is
 * given another name, and removed once the metadata is in sync.
 */
function cloneSteps(
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
function isCloneOf(node: Node, primary: Node): boolean {
  return node.isInCluster && node.role === 'unavailable' && node.cloneOf === primary.nodeid;
}
