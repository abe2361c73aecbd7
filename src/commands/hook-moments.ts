import { ConfigError } from '../errors.js';

/** What `mpp_report` says of the node that the hook runs for. */
export interface MemberState {
  readonly role: 'primary' | 'replica';
  readonly state: 'running' | 'stopped';
}

/** A task that a hook reports. */
export interface HookTask {
  readonly event: 'before_demote' | 'before_promote' | 'after_promote' | 'suspect';
  /** Of which node: the hook's own, or the one that `pg_dist_node` has as the primary of its group. */
  readonly node: 'own' | 'registered';
  /** What the node must say of itself first; null where it is not asked. */
  readonly unless: 'not-primary' | 'answers' | null;
  /** How long its acknowledgement is waited for; 0 for a report alone. */
  readonly waitMs: number;
  /** How long its hold may last; null for the default of the event. */
  readonly timeoutMs: number | null;
}

/** What one moment of an HA manager means. */
export type HookPlan =
  | { readonly kind: 'nothing'; readonly reason: string }
  | {
      readonly kind: 'report';
      readonly task: HookTask | null;
      readonly member: MemberState | null;
    };

/** repmgr reports success with its events, and gives up on a primary after attempts x interval. */
export interface RepmgrFlags {
  /** %s of repmgr: 1 or 0. */
  readonly success: string | undefined;
  readonly suspectMs: number;
}

/** The old primary stops only after it; in an unplanned demotion that delays giving up the lost lock. */
const BEFORE_DEMOTE_MS = 5_000;
/** The promotion comes only after it, and the traffic is interrupted meanwhile. */
const BEFORE_PROMOTE_MS = 3_000;
/** repmgr's defaults, 6 attempts 10 s apart, and what the promotion takes. */
export const SUSPECT_MS = 75_000;

/** The words of Patroni for a node's role: `master` before 4.0, `primary` since. */
const PRIMARY_WORDS = ['master', 'primary', 'promoted'];
const REPLICA_WORDS = ['replica', 'demoted', 'standby_leader'];
/** A node without data. */
const UNINITIALIZED = 'uninitialized';

const CALLBACKS = ['on_role_change', 'on_start', 'on_restart', 'on_stop'];

/**
 * What a call by Patroni means.
 *
 * @param words the moment as the configuration names it, if it does, then what Patroni appends to a callback: action,
 *   role and scope
 * @throws ConfigError for words that are not Patroni's
 */
export function patroniPlan(words: readonly string[]): HookPlan {
  const [moment, ...rest] = words;
  if (moment === undefined) throw unknownMoment('', 'Patroni', PATRONI_MOMENTS);
  if (moment === 'before_stop') return BEFORE_STOP;
  if (moment === 'pre_promote') return BEFORE_PROMOTE;
  if (moment === 'on_reload') return nothing('on_reload changes no role');
  if (!CALLBACKS.includes(moment)) throw unknownMoment(moment, 'Patroni', PATRONI_MOMENTS);
  const [role] = rest[0] === moment ? rest.slice(1) : rest;
  if (role === UNINITIALIZED) return nothing('the node is uninitialized');
  const member = roleOf(moment, role);
  if (moment === 'on_stop') return report(null, { role: member, state: 'stopped' });
  return member === 'primary' ? PROMOTED : report(null, { role: member, state: 'running' });
}

function roleOf(moment: string, role: string | undefined): MemberState['role'] {
  if (role !== undefined && PRIMARY_WORDS.includes(role)) return 'primary';
  if (role !== undefined && REPLICA_WORDS.includes(role)) return 'replica';
  const given = role === undefined ? 'no role' : JSON.stringify(role);
  throw new ConfigError(
    `${moment} was called with ${given}; Patroni appends ${[...PRIMARY_WORDS, ...REPLICA_WORDS].join(', ')} ` +
      `or ${UNINITIALIZED}: give the hook in postgresql.callbacks of Patroni`,
  );
}

/**
 * What a call by repmgr means.
 *
 * @param event `service_stop_command`, `promote_command`, or the name of an event of repmgr
 * @throws ConfigError for an event without its success
 */
export function repmgrPlan(event: string | undefined, flags: RepmgrFlags): HookPlan {
  if (event === undefined) throw unknownMoment('', 'repmgr', REPMGR_MOMENTS);
  if (event === 'service_stop_command') return BEFORE_STOP;
  if (event === 'promote_command') return BEFORE_PROMOTE;
  const { success, suspectMs } = flags;
  if (success === undefined) {
    throw new ConfigError(
      `--success is missing, which every event of repmgr has: give --success %s; without it only ` +
        `service_stop_command and promote_command are known, not ${JSON.stringify(event)}`,
    );
  }
  if (success !== '0' && success !== '1') {
    throw new ConfigError(`--success cannot be ${JSON.stringify(success)}; give %s of repmgr`);
  }
  const change = changeOf(event, suspectMs);
  if (change === undefined) return nothing(`${event} of repmgr says nothing of the primary`);
  return change.always || success === '1' ? change.plan : nothing(`${event} has failed`);
}

/** @returns the plan, and whether it holds without success, too; undefined where repmgr's event does not matter. */
function changeOf(
  event: string,
  suspectMs: number,
): { readonly plan: HookPlan; readonly always?: true } | undefined {
  switch (event) {
    case 'standby_promote':
      return { plan: PROMOTED };
    case 'standby_follow':
    case 'standby_register':
    case 'node_rejoin':
      return { plan: report(null, { role: 'replica', state: 'running' }) };
    case 'repmgrd_local_disconnect':
      return { always: true, plan: suspect('own', suspectMs) };
    case 'repmgrd_upstream_disconnect':
      return { always: true, plan: suspect('registered', suspectMs) };
    case 'repmgrd_local_reconnect':
      return { always: true, plan: back('own') };
    case 'repmgrd_upstream_reconnect':
      return { always: true, plan: back('registered') };
    default:
      return undefined;
  }
}

/** Every node is stopped through the same hook: only of a primary is it reported. */
const BEFORE_STOP = report(
  task('before_demote', { unless: 'not-primary', waitMs: BEFORE_DEMOTE_MS }),
  null,
);
const BEFORE_PROMOTE = report(task('before_promote', { waitMs: BEFORE_PROMOTE_MS }), null);
const PROMOTED = report(task('after_promote', {}), { role: 'primary', state: 'running' });

/** A standby may follow another standby: what it has lost need not be the primary. */
function suspect(node: HookTask['node'], timeoutMs: number): HookPlan {
  return report(task('suspect', { node, unless: 'answers', timeoutMs }), null);
}

/** The same node is the primary again; a standby that is back is none. */
function back(node: HookTask['node']): HookPlan {
  return report(task('after_promote', { node, unless: 'not-primary' }), null);
}

function task(event: HookTask['event'], rest: Partial<HookTask>): HookTask {
  return { event, node: 'own', unless: null, waitMs: 0, timeoutMs: null, ...rest };
}

function report(task: HookTask | null, member: MemberState | null): HookPlan {
  return { kind: 'report', task, member };
}

function nothing(reason: string): HookPlan {
  return { kind: 'nothing', reason };
}

export const PATRONI_MOMENTS = ['before_stop', 'pre_promote', ...CALLBACKS];
export const REPMGR_MOMENTS = ['service_stop_command', 'promote_command', 'an event (%e)'];

function unknownMoment(moment: string, manager: string, moments: readonly string[]): ConfigError {
  const what = moment === '' ? 'is missing' : `cannot be ${JSON.stringify(moment)}`;
  return new ConfigError(`the moment of ${manager} ${what}; give one of ${moments.join(', ')}`);
}
