import type { ReportInput } from '../kit/harness.js';
import { Random } from './random.js';

/**
 * The node that a report names: where the group was last reported to be, its other address, a server of
 * another group, or an address that no server listens on.
 */
export type Where = 'here' | 'there' | 'stranger' | 'nowhere';

export interface ReportStep {
  readonly do: 'report';
  readonly groupid: number;
  readonly event: ReportInput['event'];
  readonly where: Where;
  readonly timeoutMs: number;
  readonly pause: 'writes' | 'all' | 'none' | null;
}

/** What a session of a controller is for, by its application_name. */
export const PURPOSES = ['control', 'listen', 'queue', 'group', 'shared', 'pause', ''] as const;
export type Purpose = (typeof PURPOSES)[number];

export const LINK_FAULTS = ['cut', 'half open', 'black hole'] as const;
export type LinkFault = (typeof LINK_FAULTS)[number];

/** Places where a session that is none of the controllers' keeps a lock. */
export const LOCKS = [
  'tasks of the group',
  'table mpp_tasks',
  'row of mpp_groups',
  'row of mpp_leadership',
  'rows of mpp_controllers',
  'pg_dist_node',
] as const;
export type LockPlace = (typeof LOCKS)[number];

export type Fault =
  | { readonly kind: 'kill'; readonly slot: number }
  | { readonly kind: 'freeze'; readonly slot: number }
  | { readonly kind: 'suspend'; readonly slot: number }
  | { readonly kind: 'terminate' | 'cancel'; readonly purpose: Purpose; readonly groupid: number }
  | { readonly kind: 'stop coordinator'; readonly mode: 'fast' | 'immediate' }
  | {
      readonly kind: 'stop worker';
      readonly groupid: number;
      readonly mode: 'fast' | 'immediate';
    }
  | { readonly kind: 'controller link'; readonly slot: number; readonly how: LinkFault }
  | { readonly kind: 'worker link'; readonly groupid: number; readonly how: LinkFault }
  | { readonly kind: 'read-only' }
  | { readonly kind: 'xmin' }
  | { readonly kind: 'open transaction'; readonly groupid: number }
  | { readonly kind: 'operator transaction'; readonly groupid: number }
  | { readonly kind: 'lock'; readonly place: LockPlace; readonly groupid: number }
  | { readonly kind: 'notifications'; readonly count: number }
  | { readonly kind: 'rows'; readonly groupid: number; readonly count: number };

export type FaultKind = Fault['kind'];

export type Step =
  | ReportStep
  | { readonly do: 'wait' | 'cancel' | 'release'; readonly groupid: number }
  | { readonly do: 'strike'; readonly id: number; readonly fault: Fault }
  | { readonly do: 'lift'; readonly id: number };

export interface ScheduleOptions {
  readonly groups: number;
  /** How many faults one schedule has. */
  readonly faults: number;
  /** How many rows `rows` inserts at most. */
  readonly rows: number;
  /** Whether controllers are killed. */
  readonly kills: boolean;
}

/** What an HA side may report in a row: all of it, a part, twice the same, or what is not true. */
const STORIES = {
  switchover: 6,
  crash: 4,
  fact: 2,
  restart: 2,
  'nothing follows': 2,
  burst: 2,
  'not there yet': 2,
  'wrong node': 1,
  stale: 1,
  cancelled: 2,
  released: 2,
} as const;

const KINDS: Weights = {
  kill: 8,
  freeze: 5,
  suspend: 5,
  terminate: 16,
  cancel: 10,
  'stop coordinator': 4,
  'stop worker': 4,
  'controller link': 8,
  'worker link': 6,
  'read-only': 3,
  xmin: 3,
  'open transaction': 6,
  'operator transaction': 5,
  lock: 8,
  notifications: 3,
  rows: 2,
};

/** The same schedule for the same seed. When each step happens depends on the controllers, too. */
export function schedule(seed: number, options: ScheduleOptions): Step[] {
  const random = new Random(seed);
  const steps = interleave(random, reports(random, options.groups));
  // Few kinds at a time: with all of them together some hide what others would show.
  const kinds = some(random, options.kills ? KINDS : { ...KINDS, kill: 0 });
  for (let id = 0; id < options.faults; id += 1) {
    const at = random.below(steps.length + 1);
    const until = at + 1 + random.below(5);
    steps.splice(Math.min(until, steps.length), 0, { do: 'lift', id });
    steps.splice(at, 0, { do: 'strike', id, fault: fault(random, kinds, options) });
  }
  return steps;
}

export function describe(step: Step): string {
  switch (step.do) {
    case 'report': {
      const { event, groupid, where, timeoutMs, pause } = step;
      return `report ${event} of group ${groupid}: ${where}, timeout ${timeoutMs} ms, pause ${pause ?? 'as set'}`;
    }
    case 'strike':
      return `strike ${step.id}: ${Object.values(step.fault).join(', ')}`;
    case 'lift':
      return `lift ${step.id}`;
    default:
      return `${step.do} group ${step.groupid}`;
  }
}

function reports(random: Random, groups: number): Step[][] {
  return Array.from({ length: groups }, (_, index) => {
    const stories = Array.from({ length: 1 + random.below(2) }, () => random.weighted(STORIES));
    return stories.flatMap((story) => tell(random, story, index + 1));
  });
}

function tell(random: Random, story: keyof typeof STORIES, groupid: number): Step[] {
  const report = (
    event: ReportStep['event'],
    where: Where,
    timeoutMs = 1_000 + random.below(4) * 500,
  ): Step => {
    const pause = random.pick([null, null, 'writes', 'all', 'none'] as const);
    return { do: 'report', groupid, event, where, timeoutMs, pause };
  };
  const wait: Step = { do: 'wait', groupid };
  switch (story) {
    case 'switchover':
      return [
        ...[report('before_demote', 'here'), wait],
        ...[report('before_promote', 'there'), ...(random.chance(0.7) ? [wait] : [])],
        ...[report('after_promote', 'there'), wait],
      ];
    case 'crash':
      return [
        report(random.pick(['suspect', 'before_promote']), random.pick(['here', 'there'])),
        ...(random.chance(0.7) ? [wait] : []),
        ...[report('after_promote', 'there'), wait],
      ];
    case 'fact':
      return [report('after_promote', 'there'), wait];
    case 'restart':
      return [report('before_demote', 'here'), wait, report('after_promote', 'here'), wait];
    case 'nothing follows':
      return [report('before_demote', 'here', 300 + random.below(500)), wait];
    case 'burst':
      return Array.from({ length: 3 }, () => report('after_promote', 'there'));
    case 'not there yet':
      return [
        ...(random.chance(0.5) ? [report('before_demote', 'here'), wait] : []),
        report('after_promote', 'nowhere'),
        ...[report('after_promote', 'there'), wait],
      ];
    case 'wrong node':
      return [report('after_promote', 'stranger'), wait];
    case 'stale':
      return [report('before_demote', 'there'), wait];
    case 'cancelled':
      return [
        ...[report('before_demote', 'here'), report('after_promote', 'there')],
        ...[{ do: 'cancel', groupid } as const, report('after_promote', 'there'), wait],
      ];
    case 'released':
      return [
        ...[report('before_demote', 'here'), wait, { do: 'release', groupid } as const],
        ...(random.chance(0.7) ? [report('after_promote', 'there'), wait] : []),
      ];
  }
}

/** Each list in its order, mixed at random. */
function interleave(random: Random, lists: readonly (readonly Step[])[]): Step[] {
  const left = lists.map((list) => [...list]).filter((list) => list.length > 0);
  const steps: Step[] = [];
  while (left.length > 0) {
    const list = random.pick(left);
    const step = list.shift();
    if (step !== undefined) steps.push(step);
    if (list.length === 0) left.splice(left.indexOf(list), 1);
  }
  return steps;
}

type Weights = Readonly<Record<FaultKind, number>>;

function some(random: Random, weights: Weights): Weights {
  const left = Object.entries(weights).map(([kind, weight]) => [
    kind,
    random.chance(0.4) ? weight : 0,
  ]);
  const picked = Object.fromEntries(left) as Weights;
  return Object.values(picked).some((weight) => weight > 0) ? picked : weights;
}

function fault(random: Random, kinds: Weights, { groups, rows }: ScheduleOptions): Fault {
  const kind = random.weighted(kinds);
  const slot = random.below(2);
  const groupid = 1 + random.below(groups);
  switch (kind) {
    case 'kill':
    case 'freeze':
    case 'suspend':
      return { kind, slot };
    case 'terminate':
    case 'cancel':
      // Group 0 is the coordinator, which has most of the sessions.
      return { kind, purpose: random.pick(PURPOSES), groupid: random.chance(0.75) ? 0 : groupid };
    case 'stop coordinator':
      return { kind, mode: random.pick(['fast', 'immediate']) };
    case 'stop worker':
      return { kind, groupid, mode: random.pick(['fast', 'immediate']) };
    case 'controller link':
      return { kind, slot, how: random.pick(LINK_FAULTS) };
    case 'worker link':
      return { kind, groupid, how: random.pick(LINK_FAULTS) };
    case 'read-only':
    case 'xmin':
      return { kind };
    case 'open transaction':
    case 'operator transaction':
      return { kind, groupid };
    case 'lock':
      return { kind, place: random.pick(LOCKS), groupid };
    case 'notifications':
      return { kind, count: 100 + random.below(900) };
    case 'rows':
      return { kind, groupid, count: 1 + random.below(rows) };
  }
}
