import type { LockSession } from '../../../drain/lock-session.js';
import type { LockUnit } from '../../../drain/lock-unit.js';
import type { Pause } from '../../../tasks/task.js';
import type { Targets } from './targets.js';

/** What a lane is to make wait. */
export interface LaneOrder {
  readonly groupid: number;
  readonly pause: Exclude<Pause, 'none'>;
  /** False when everything fails that is not held yet. */
  readonly planned: boolean;
  readonly cooldownMs: number;
  /** How long the hold may last, in milliseconds from now. */
  readonly remainingMs: number;
  /** Called when a session breaks that traffic waits for. */
  readonly onLost: () => void;
}

/** What the group's own session takes on the coordinator. */
export interface OwnLocks {
  readonly locks: LockSession;
  readonly unitsFor: (targets: Targets) => LockUnit[];
  /** True when they lock shards that other groups have, too. */
  readonly coversShared: boolean;
}
