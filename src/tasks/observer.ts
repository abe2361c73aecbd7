import type { ServerIdentity } from '../postgres/identity.js';
import type { Connection } from '../postgres/session.js';
import type { Pause, TaskEvent } from './task.js';

/**
 * What a controller is:
 * - `connecting`: it has no session with the database, or may not work with it.
 * - `standby`: it has one, and another controller leads.
 * - `active`: it leads.
 * - `reconnecting`: it leads, has lost its control session, and has 2 s to open another one.
 * - `ending`: it leads no more; its holds are rolled back.
 */
export const CONTROLLER_STATES = [
  'connecting',
  'standby',
  'active',
  'reconnecting',
  'ending',
] as const;
export type ControllerState = (typeof CONTROLLER_STATES)[number];

/** How a leadership begins, and how it ends: by a stop, for a newer coordinator, or against its will. */
export const LEADERSHIP_CHANGES = ['gained', 'stopped', 'replaced', 'lost'] as const;
export type LeadershipChange = (typeof LEADERSHIP_CHANGES)[number];

/** `planned`: before_demote came first. `failover`: it did not. */
export const SWITCHOVER_KINDS = ['planned', 'failover'] as const;
export type SwitchoverKind = (typeof SWITCHOVER_KINDS)[number];

/**
 * How a hold ended:
 * - `committed`: pg_dist_node was changed.
 * - `unchanged`: the same primary is back.
 * - `deadline`, `stopped`: rolled back at its deadline, or with the controller.
 * - `released`: by an operator.
 * - `failed`: with an error of a task in it.
 * - `lost`: its session ended, or the leadership did.
 */
export const HOLD_OUTCOMES = [
  'committed',
  'unchanged',
  'deadline',
  'stopped',
  'released',
  'failed',
  'lost',
] as const;
export type HoldOutcome = (typeof HOLD_OUTCOMES)[number];

/**
 * The parts of a switchover: until the traffic waits, until after_promote is taken, and until the change is
 * committed; and all of it. Without a hold, `change` and `total` alone.
 */
export const SWITCHOVER_STEPS = ['open', 'promote', 'change', 'total'] as const;
export type SwitchoverStep = (typeof SWITCHOVER_STEPS)[number];

/**
 * Why less waits in a hold than was asked for: a node was left out, the reads of a table go on, another strategy
 * was used, or another database does without.
 */
export const PAUSE_SHORTFALLS = ['node', 'reads', 'strategy', 'other_database'] as const;
export type PauseShortfall = (typeof PAUSE_SHORTFALLS)[number];

/** What a terminated session had blocked: a hold, or the change of pg_dist_node. */
export const TERMINATION_KINDS = ['hold', 'change'] as const;
export type TerminationKind = (typeof TERMINATION_KINDS)[number];

/** What a look of the probe came to; see Failure of the probe. */
export const PROBE_RESULTS = ['answered', 'down', 'silent', 'closed'] as const;
export type ProbeResult = (typeof PROBE_RESULTS)[number];

/** A server that a controller works on, and how to reach that one alone. */
export interface ObservedServer {
  readonly connection: Connection;
  readonly identity: ServerIdentity;
}

/**
 * Hears what a controller does, for its metrics. Each method returns at once and never throws. Nothing that the
 * controller decides depends on it.
 */
export interface Observer {
  /** The control session is open. */
  connected(server: ObservedServer): void;
  stateIs(state: ControllerState): void;
  leadershipChanged(change: LeadershipChange): void;
  /** The loop of the present state has gone round once more. */
  turned(): void;
  /** The mark of this controller in mpp_controllers was renewed. */
  heartbeatWritten(): void;
  taskRetried(event: TaskEvent): void;
  /** The traffic of a group waits. */
  holdOpened(hold: { readonly pause: Pause; readonly openMs: number }): void;
  /** Less waits in it than was asked for. */
  pauseDegraded(shortfall: PauseShortfall): void;
  holdEnded(hold: {
    readonly kind: SwitchoverKind;
    readonly outcome: HoldOutcome;
    readonly heldMs: number;
  }): void;
  switchedOver(switchover: {
    readonly groupid: number;
    readonly kind: SwitchoverKind;
    readonly stepsMs: Partial<Readonly<Record<SwitchoverStep, number>>>;
  }): void;
  sessionTerminated(kind: TerminationKind): void;
  listenerReconnected(): void;
  probed(result: ProbeResult, ms: number): void;
  /** The node of a report is not what the report says. */
  verificationFailed(cause: VerificationCause): void;
}

/**
 * Why a node is not what a report says: it does not answer, is in recovery, or does not prove what it is; it is of
 * another system or group, or on an earlier timeline; it is the registered node under another name; or a secondary
 * is none.
 */
export const VERIFICATION_CAUSES = [
  'silent',
  'recovery',
  'unproven',
  'system',
  'group',
  'timeline',
  'alias',
  'secondary',
] as const;
export type VerificationCause = (typeof VERIFICATION_CAUSES)[number];

const ignore = (): void => undefined;

/** Hears nothing. */
export const NO_OBSERVER: Observer = {
  connected: ignore,
  stateIs: ignore,
  leadershipChanged: ignore,
  turned: ignore,
  heartbeatWritten: ignore,
  taskRetried: ignore,
  holdOpened: ignore,
  pauseDegraded: ignore,
  holdEnded: ignore,
  switchedOver: ignore,
  sessionTerminated: ignore,
  listenerReconnected: ignore,
  probed: ignore,
  verificationFailed: ignore,
};

/** Passes on to each of them, in their order. */
export function joinObservers(observers: readonly Observer[]): Observer {
  return {
    connected: (server) => observers.forEach((one) => one.connected(server)),
    stateIs: (state) => observers.forEach((one) => one.stateIs(state)),
    leadershipChanged: (change) => observers.forEach((one) => one.leadershipChanged(change)),
    turned: () => observers.forEach((one) => one.turned()),
    heartbeatWritten: () => observers.forEach((one) => one.heartbeatWritten()),
    taskRetried: (event) => observers.forEach((one) => one.taskRetried(event)),
    holdOpened: (hold) => observers.forEach((one) => one.holdOpened(hold)),
    pauseDegraded: (shortfall) => observers.forEach((one) => one.pauseDegraded(shortfall)),
    holdEnded: (hold) => observers.forEach((one) => one.holdEnded(hold)),
    switchedOver: (switchover) => observers.forEach((one) => one.switchedOver(switchover)),
    sessionTerminated: (kind) => observers.forEach((one) => one.sessionTerminated(kind)),
    listenerReconnected: () => observers.forEach((one) => one.listenerReconnected()),
    probed: (result, ms) => observers.forEach((one) => one.probed(result, ms)),
    verificationFailed: (cause) => observers.forEach((one) => one.verificationFailed(cause)),
  };
}
