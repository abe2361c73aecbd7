import type { Pool } from 'pg';
import type { OtherDatabases } from '../databases/other-databases.js';
import type { Logger } from '../logger.js';
import type { AbstractMPPHandler, Node, Prefetch, TrafficControl } from '../mpp/abstract.js';
import { attemptOf, requeueTasks } from '../tasks/finish.js';
import type { PauseSetting, Task } from '../tasks/task.js';
import { PUT_BACK_DELAY_MS } from './bounds.js';
import type { GroupSession } from './group-session.js';
import type { Hold, Holds } from './holds.js';
import { sameNodes } from './nodes.js';
import { persist, persistRows } from './persist.js';
import type { TaskCheck, Verification } from './verification.js';

/** What all tasks have in common while a controller leads. */
export interface Workplace {
  /** For statements outside a group's transaction: acknowledgements and ends. */
  readonly db: Pool;
  /** For the groups' transactions. */
  readonly sessions: Pool;
  readonly holds: Holds;
  /** Groups change pg_dist_node one after the other; see Turn. */
  readonly changes: Turn;
  readonly handler: () => AbstractMPPHandler;
  readonly traffic: TrafficControl;
  readonly verification: Verification;
  /** The other databases on the same nodes. */
  readonly otherDatabases: Pick<OtherDatabases, 'follow'>;
  /** Aborted once the controller is to stop. */
  readonly signal: AbortSignal;
  /** Id of this controller. */
  readonly controller: string;
  /** What a hold makes wait if its task does not say. */
  readonly pause: PauseSetting;
  readonly logger: Logger;
  /** Called when a hold's session broke. */
  readonly onHoldLost: (hold: Hold) => void;
  /** Set once the controller is to stop: what is interrupted then is not a failure. */
  readonly stopping: () => 'record' | 'abandon' | undefined;
}

/** One task that runs. */
export interface Work {
  readonly task: Task;
  /** The group's session: that of its hold, or one that was begun for this task. */
  readonly session: GroupSession;
  /** The hold that was there when the task began. */
  readonly hold: Hold | undefined;
  /** What was begun for a hold that it may open. */
  readonly prefetch: Prefetch | undefined;
  /** What is being asked of its nodes. */
  readonly check: TaskCheck;
  /** The group's rows, as the session sees them. */
  readonly nodes: readonly Node[];
  readonly log: Logger;
}

/** How a task's run ended. */
export interface Outcome {
  /** After how many milliseconds the queue should be looked at because of it. */
  readonly again?: number;
  /** True after an error: what is known of the server is read again. */
  readonly mustInspect?: boolean;
}

/**
 * Whether the committed rows are still those that the decision was made on. Asked once the hold's locks keep
 * them as they are: another session may have changed them while the hold waited for the locks.
 */
export async function rowsUnchanged(place: Workplace, { task, nodes }: Work): Promise<boolean> {
  const committed = await persist(() => place.handler().readNodes(place.db, task));
  return sameNodes(committed, nodes);
}

/** Whether a hold keeps everyone else from changing the catalog's rows, so that it may remember them. */
export function locksNodes(hold: Hold): boolean {
  return hold.pausing?.locksNodes ?? false;
}

/** Gives up what was done for a task that is part of no hold, and takes it from the start again. */
export async function putBack(place: Workplace, work: Work, reason: string): Promise<Outcome> {
  await work.session.rollback();
  await requeue(place, work.task, reason, PUT_BACK_DELAY_MS);
  return { again: PUT_BACK_DELAY_MS };
}

export const ROWS_CHANGED = 'another session changed pg_dist_node meanwhile; it is read again';

/** Gives a task back to the queue, to be tried again after `delayMs`. */
export async function requeue(
  { db, controller }: Workplace,
  task: Task,
  reason: string,
  delayMs: number,
): Promise<void> {
  const attempts = [attemptOf(controller, task)];
  await persistRows(db, attempts, () => requeueTasks(db, attempts, reason, delayMs));
}

/** Lets one at a time go on, in the order in which they came. */
export class Turn {
  #last: Promise<void> = Promise.resolve();

  /** Waits until all that came before has ended. @returns ends this one; idempotent */
  async take(): Promise<() => void> {
    const before = this.#last;
    let end: () => void = () => undefined;
    this.#last = new Promise((resolve) => (end = resolve));
    await before;
    return end;
  }
}
