import { formatAddress, sameAddress, type Address } from '../address.js';

/** One fresh report of one source on a member of the group. Times are ages in milliseconds. */
export interface ComparedMember extends Address {
  readonly source: string;
  readonly role: 'primary' | 'secondary';
  readonly isUp: boolean;
  /** True once it has left the group. */
  readonly isRemoved: boolean;
  readonly timeline: number | null;
  /** How long it has been so. */
  readonly sinceMs: number;
  /** When it was seen last. */
  readonly reportedMs: number;
  /** True when any source says that it is to serve no reads. */
  readonly servesNoReads: boolean;
}

/** A row of the catalog: of the group, or at the address of one of its members. */
export interface ComparedNode extends Address {
  readonly nodeid: number;
  readonly role: string;
  /** True for a row of the group in the node cluster `default`. */
  readonly isOfGroup: boolean;
  readonly isInCluster: boolean;
  /** The node that it is a clone of. */
  readonly cloneOf: number | null;
}

/** What is known of a group whose members may differ from the catalog. Times are ages in milliseconds. */
export interface ComparedGroup {
  readonly members: readonly ComparedMember[];
  readonly nodes: readonly ComparedNode[];
  /** When a client reported what has come true last; what was seen before it counts no more. */
  readonly confirmedMs: number | null;
  /** Since when the probe suspects the primary; a claim to be it has to be seen again. */
  readonly suspectedMs: number | null;
  /** The primaries that open tasks name. */
  readonly asked: readonly Address[];
  /** The newest task of the comparison, where it failed or was ended within five minutes. */
  readonly refused: {
    readonly primary: Address;
    readonly secondaries: readonly string[] | null;
  } | null;
}

/** An after_promote; null leaves the secondaries as they are. */
export interface SyncTask {
  readonly primary: Address;
  readonly secondaries: readonly Address[] | null;
}

export type SyncDecision =
  | { readonly kind: 'nothing' }
  | { readonly kind: 'task'; readonly task: SyncTask }
  | { readonly kind: 'problem'; readonly problem: string };

/** Secondaries that a task may name, the same as in mpp_tasks. */
const MOST_SECONDARIES = 64;

/**
 * Decides what the catalog lacks of one group. Pure.
 *
 * @param ttlMs how long a node must be down to lose its row
 */
export function decideSync(group: ComparedGroup, ttlMs: number): SyncDecision {
  const opinions = opinionsOf(countingReports(group), ttlMs);
  const primary = findPrimary(opinions);
  if (primary === undefined) return conflictOf(opinions);
  const { nodes } = group;
  const stranger = findStranger(nodes, primary);
  if (stranger !== undefined) {
    const problem =
      `${formatAddress(primary)} is reported as its primary, and is another group's or cluster's node ` +
      `${stranger.nodeid} in the catalog`;
    return { kind: 'problem', problem };
  }
  const registered = nodes.find(({ isOfGroup, role }) => isOfGroup && role === 'primary');
  const moves = registered === undefined || !sameAddress(registered, primary);
  const secondaries = wantedSecondaries(nodes, opinions, primary);
  const task: SyncTask = { primary: addressOf(primary), secondaries };
  const isAsked = group.asked.some((address) => sameAddress(address, primary));
  const isOutdated = group.asked.length > 0 && !isAsked;
  const isDue = moves || secondaries !== null || isOutdated || group.suspectedMs !== null;
  if (isAsked || !isDue || isRefused(group.refused, task)) return { kind: 'nothing' };
  return { kind: 'task', task };
}

function claimsPrimary({ isUp, role }: ComparedMember): boolean {
  return isUp && role === 'primary';
}

/**
 * The reports that are not old news: a report is, when another source saw the same node change after it. So is
 * what a hook said of a primary when another node has become it since: hooks report changes, and the old
 * primary's may have died with it. A source that looks time and again is believed until it looks again.
 */
function countingReports({ members, confirmedMs, suspectedMs }: ComparedGroup): ComparedMember[] {
  const fresh = members.filter(
    (member) =>
      (confirmedMs === null || member.reportedMs < confirmedMs) &&
      (suspectedMs === null || member.reportedMs < suspectedMs || !claimsPrimary(member)),
  );
  // What changed before the oldest report can make none of them old news.
  const oldest = Math.max(...fresh.map(({ reportedMs }) => reportedMs));
  const changes = fresh.filter(({ sinceMs }) => sinceMs < oldest);
  return fresh.filter((report) => !changes.some((change) => outdates(change, report)));
}

function outdates(change: ComparedMember, report: ComparedMember): boolean {
  if (change.sinceMs >= report.reportedMs) return false;
  if (sameAddress(change, report)) return change.source !== report.source;
  return report.source === 'table' && claimsPrimary(report) && claimsPrimary(change);
}

/** What the sources say together of one node. */
interface Opinion extends Address {
  /** Any says that it is the primary. */
  readonly isClaimed: boolean;
  /** All say so. */
  readonly isPrimary: boolean;
  /** The highest that is known of it as the primary. */
  readonly timeline: number | null;
  readonly isFollower: boolean;
  /** It is to have no row: removed, down for as long as a report counts, or not to serve reads. */
  readonly isGone: boolean;
}

/** What is reported of one node. */
type Reports = readonly [ComparedMember, ...ComparedMember[]];

function opinionsOf(reports: readonly ComparedMember[], ttlMs: number): Opinion[] {
  const byNode = new Map<string, Reports>();
  for (const report of reports) {
    const key = formatAddress(report);
    byNode.set(key, [report, ...(byNode.get(key) ?? [])]);
  }
  return [...byNode.values()].map((ofNode) => opinionOf(ofNode, ttlMs));
}

function opinionOf(reports: Reports, ttlMs: number): Opinion {
  const [{ host, port, servesNoReads }] = reports;
  const timelines = reports
    .filter(claimsPrimary)
    .flatMap(({ timeline }) => (timeline === null ? [] : [timeline]));
  const isLost = ({ isUp, isRemoved, sinceMs }: ComparedMember): boolean =>
    isRemoved || (!isUp && sinceMs >= ttlMs);
  return {
    host,
    port,
    isClaimed: reports.some(claimsPrimary),
    isPrimary: reports.every(claimsPrimary),
    timeline: timelines.length === 0 ? null : Math.max(...timelines),
    isFollower: !servesNoReads && reports.every(({ isUp, role }) => isUp && role === 'secondary'),
    isGone: servesNoReads || reports.every(isLost),
  };
}

/**
 * The node that all say is the primary, if no other claims to be, or if the timelines of all that do are known
 * and its own is higher. Otherwise no node is, and the group is left alone.
 */
function findPrimary(opinions: readonly Opinion[]): Opinion | undefined {
  const claimed = opinions.filter(({ isClaimed }) => isClaimed);
  return claimed.find(
    (one) =>
      one.isPrimary &&
      claimed.every((other) => other === one || isOlderPrimary(other, one.timeline)),
  );
}

function isOlderPrimary({ isPrimary, timeline }: Opinion, than: number | null): boolean {
  return isPrimary && timeline !== null && than !== null && timeline < than;
}

function conflictOf(opinions: readonly Opinion[]): SyncDecision {
  const claimed = opinions.filter(({ isClaimed }) => isClaimed).sort(byAddress);
  const [only] = claimed;
  if (only === undefined) return { kind: 'nothing' };
  if (claimed.length === 1) {
    const problem = `the sources differ whether ${formatAddress(only)} is the primary`;
    return { kind: 'problem', problem };
  }
  const all = claimed.map((one) => `${formatAddress(one)} (timeline ${one.timeline ?? 'unknown'})`);
  return { kind: 'problem', problem: `claim to be the primary: ${all.join(', ')}` };
}

/** A row at the primary's address that is no node of the group, nor a clone of its primary. */
function findStranger(nodes: readonly ComparedNode[], primary: Address): ComparedNode | undefined {
  const primaries = nodes.filter(({ isOfGroup, role }) => isOfGroup && role === 'primary');
  const isClone = ({ isInCluster, cloneOf }: ComparedNode): boolean =>
    isInCluster && primaries.some(({ nodeid }) => nodeid === cloneOf);
  return nodes.find((node) => sameAddress(node, primary) && !isNodeOfGroup(node) && !isClone(node));
}

function isNodeOfGroup({ isOfGroup, role }: ComparedNode): boolean {
  return isOfGroup && role !== 'unavailable';
}

/**
 * The secondaries as they are to be, null where no report asks for a change: a node about which nothing is
 * known stays as it is.
 */
function wantedSecondaries(
  nodes: readonly ComparedNode[],
  opinions: readonly Opinion[],
  primary: Address,
): Address[] | null {
  const own = nodes.filter(({ isOfGroup }) => isOfGroup);
  // A swap makes a secondary of the old primary.
  const swaps = own.some((node) => node.role === 'secondary' && sameAddress(node, primary));
  const after = own.filter(
    (node) =>
      !sameAddress(node, primary) &&
      (node.role === 'secondary' || (swaps && node.role === 'primary')),
  );
  const gone = new Set(opinions.filter(({ isGone }) => isGone).map(formatAddress));
  const kept = after.filter((node) => !gone.has(formatAddress(node)));
  const known = new Set(after.map(formatAddress));
  const strangers = new Set(nodes.filter((node) => !isNodeOfGroup(node)).map(formatAddress));
  const found = opinions.filter(
    (one) => one.isFollower && !known.has(formatAddress(one)) && !strangers.has(formatAddress(one)),
  );
  if (kept.length === after.length && found.length === 0) return null;
  return [...kept.sort(byAddress), ...found.sort(byAddress)]
    .slice(0, MOST_SECONDARIES)
    .sort(byAddress)
    .map(addressOf);
}

function isRefused(refused: ComparedGroup['refused'], { primary, secondaries }: SyncTask): boolean {
  if (refused === null || !sameAddress(refused.primary, primary)) return false;
  const named = secondaries && secondaries.map(formatAddress);
  return JSON.stringify(refused.secondaries) === JSON.stringify(named);
}

function addressOf({ host, port }: Address): Address {
  return { host, port };
}

function byAddress(one: Address, other: Address): number {
  if (one.host !== other.host) return one.host < other.host ? -1 : 1;
  return one.port - other.port;
}
