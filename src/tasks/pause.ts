import type { Pause, PauseSetting, Task } from './task.js';

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
