import type { Address } from '../address.js';

/** The events that a client can report; see the comment on mpp_tasks.event. */
export const TASK_EVENTS = ['before_demote', 'before_promote', 'after_promote', 'suspect'] as const;
export type TaskEvent = (typeof TASK_EVENTS)[number];

/** What waits while a group is held. */
export const PAUSES = ['writes', 'all', 'none'] as const;
export type Pause = (typeof PAUSES)[number];

/** MPP_PAUSE: what waits in a hold whose task does not say; see pauseOf. */
export type PauseSetting = Pause | 'auto';

/** How a task can end, but for what SQL functions and triggers do (superseded, cancelled). */
export type TaskEnd = 'done' | 'discarded' | 'rolled_back' | 'failed';

/** All statuses that are ends. */
export const TASK_ENDS = [
  'done',
  'superseded',
  'discarded',
  'expired',
  'rolled_back',
  'failed',
  'cancelled',
] as const;

/** Who made a task: a client, the comparison, or the probe. */
export const TASK_SOURCES = ['client', 'sync', 'probe'] as const;

/** One row of mpp_tasks, as claimed. */
export interface Task {
  /** bigint; node-postgres gives these as strings and nothing here computes with them. */
  readonly id: string;
  readonly event: TaskEvent;
  readonly groupid: number;
  readonly address: Address;
  /** The group's other nodes; null leaves them as they are. */
  readonly secondaries: readonly Address[] | null;
  readonly timeoutMs: number;
  readonly cooldownMs: number;
  /** null takes the controller's setting. */
  readonly pause: Pause | null;
  readonly source: (typeof TASK_SOURCES)[number];
  readonly attempt: number;
  /**
   * How long it may still take, in milliseconds, by the server's clock: until the deadline of the
   * hold it was part of, else until its timeout has passed since it was created.
   */
  readonly remainingMs: number;
  /** True when it was part of a hold before and is taken up again. */
  readonly resumed: boolean;
}

/**
 * What waits in a hold that a task opens. A task's own word comes first.
 *
 * `auto`: everything for a planned before_demote, whose hold lasts as long as a stop and a promotion, so
 * that no statement fails. Only writes after a crash: there the hold lasts for the detection time of the HA
 * manager, and with `all` the readers of the other groups would wait that long as well.
 */
export function pauseOf(
  { pause, event }: Pick<Task, 'pause' | 'event'>,
  setting: PauseSetting,
): Pause {
  if (pause !== null) return pause;
  if (setting !== 'auto') return setting;
  return event === 'before_demote' ? 'all' : 'writes';
}

/** A session that blocks a task, as the view mpp_blockers shows it. */
export interface BlockerNote {
  /** host:port; null for the coordinator. */
  readonly server: string | null;
  /** Null for a prepared transaction. */
  readonly pid: number | null;
  readonly usename: string | null;
  readonly application_name: string | null;
  readonly state: string | null;
  /** ISO 8601. */
  readonly since: string | null;
  readonly blocks: 'hold' | 'change';
  /** ISO 8601; null where it is waited for. */
  readonly ends_at: string | null;
  readonly described: string;
}
