import type { VerificationCause } from '../tasks/observer.js';

/** What a node says of itself. */
export interface NodeAnswer {
  readonly inRecovery: boolean;
  /** Of a primary; null while it is in recovery. */
  readonly timeline: number | null;
  /** null where this role may not ask for it. */
  readonly systemIdentifier: string | null;
  /** The group that the node itself says it is of. null, or 0 on a worker, where it does not say. */
  readonly localGroup: number | null;
  /** When its postmaster started, to the microsecond: with the system identifier it names one server. */
  readonly startedAt: string;
}

/** The result of asking a node. */
export type NodeCheck = { readonly answer: NodeAnswer } | { readonly silence: string };

/** The PostgreSQL cluster that a group is. */
export interface KnownSystem {
  readonly systemIdentifier: string | null;
  /** Highest timeline that a primary of the group was seen on. */
  readonly timeline: number | null;
  /** True when an operator has said that the next node may be of any system. */
  readonly isAccepted: boolean;
}

/** Whether a node is what a report says. A reason is one sentence. */
export type Verdict =
  | { readonly kind: 'confirmed' }
  /** It may come true: asked again later. */
  | { readonly kind: 'notYet'; readonly reason: string; readonly cause: VerificationCause }
  /** It cannot come true without a person. */
  | { readonly kind: 'refused'; readonly reason: string; readonly cause: VerificationCause }
  /** It is the registered node under another name. */
  | { readonly kind: 'alias'; readonly reason: string; readonly cause: 'alias' };

export interface Candidate {
  /** `host:port`. */
  readonly node: string;
  readonly groupid: number;
  readonly check: NodeCheck;
  /** null when nothing is known of the group. */
  readonly known: KnownSystem | null;
  /** True when the group has no primary in the catalog: its first node need not know its group yet. */
  readonly isFirst: boolean;
}

/** Decides whether a node is the primary of a group. Pure. */
export function classifyPrimary(candidate: Candidate): Verdict {
  const { node, groupid, check, known } = candidate;
  if ('silence' in check) return notYet('silent', `${node} does not answer: ${check.silence}`);
  const { answer } = check;
  const stranger = classifyStranger(candidate, answer);
  if (stranger !== undefined) return stranger;
  if (answer.inRecovery) return notYet('recovery', `${node} is still in recovery`);
  const reached = known?.timeline ?? null;
  if (reached !== null && answer.timeline !== null && answer.timeline < reached) {
    return refused(
      'timeline',
      `${node} is an old primary: it is on timeline ${answer.timeline}, group ${groupid} is on ` +
        `timeline ${reached} already; rebuild it as a standby, or run ` +
        `SELECT mpp_accept_system(${groupid}) and report again`,
    );
  }
  if (isProven(candidate, answer)) return { kind: 'confirmed' };
  return notYet('unproven', unproven(node));
}

/** Decides whether a node is a standby of a group. Pure. */
export function classifySecondary(candidate: Candidate): Verdict {
  const { node, check } = candidate;
  if ('silence' in check) return notYet('silent', `${node} does not answer: ${check.silence}`);
  const { answer } = check;
  const stranger = classifyStranger(candidate, answer);
  if (stranger !== undefined) return stranger;
  if (!answer.inRecovery)
    return notYet('secondary', `${node} is not a standby: it is not in recovery`);
  if (isProven(candidate, answer)) return { kind: 'confirmed' };
  return notYet('unproven', unproven(node));
}

/** True when both answers are of one server. Copies of a virtual machine may share their identifier. */
export function isSameServer(one: NodeAnswer, other: NodeAnswer): boolean {
  return one.startedAt === other.startedAt && one.systemIdentifier === other.systemIdentifier;
}

function classifyStranger(
  { node, groupid, known }: Candidate,
  { systemIdentifier, localGroup }: NodeAnswer,
): Verdict | undefined {
  const wanted = known?.systemIdentifier ?? null;
  if (wanted !== null && systemIdentifier !== null && systemIdentifier !== wanted) {
    return refused(
      'system',
      `${node} is of another PostgreSQL cluster: its system identifier is ${systemIdentifier}, that ` +
        `of group ${groupid} is ${wanted}; report the right address, or after pg_upgrade or a ` +
        `restore run SELECT mpp_accept_system(${groupid}) and report again`,
    );
  }
  if (isOfOtherGroup(localGroup, groupid)) {
    return refused(
      'group',
      `${node} is a node of group ${localGroup}, as its pg_dist_local_group says, and not of group ` +
        `${groupid}; report the right address`,
    );
  }
  return undefined;
}

/** A standby may have yet to replay its registration, and before Citus 11 workers say 0. */
export function isOfOtherGroup(localGroup: number | null, groupid: number): boolean {
  return localGroup !== null && localGroup !== 0 && localGroup !== groupid;
}

function isProven(
  { groupid, known, isFirst }: Candidate,
  { systemIdentifier, localGroup }: NodeAnswer,
): boolean {
  if (isFirst || known?.isAccepted === true) return true;
  const wanted = known?.systemIdentifier ?? null;
  return (wanted !== null && systemIdentifier === wanted) || localGroup === groupid;
}

function unproven(node: string): string {
  return (
    `${node} does not say which system or group it is of: let the role of MPP_NODE_URL execute ` +
    'pg_control_system() and read pg_dist_local_group there, or set MPP_VERIFY to off'
  );
}

function notYet(cause: VerificationCause, reason: string): Verdict {
  return { kind: 'notYet', reason, cause };
}

function refused(cause: VerificationCause, reason: string): Verdict {
  return { kind: 'refused', reason, cause };
}
