import { setTimeout as sleep } from 'node:timers/promises';
import type { Pool } from 'pg';
import type { OtherDatabases } from '../databases/other-databases.js';
import type { Logger } from '../logger.js';
import type { AbstractMPPHandler, Node, Prefetch, TrafficControl } from '../mpp/abstract.js';
import type { Queryable } from '../postgres/queries.js';
import { isSessionLost } from '../postgres/sqlstate.js';
import { type Attempt, attemptOf, countMine, requeueTasks } from '../tasks/finish.js';
import type { Observer } from '../tasks/observer.js';
import type { PauseSetting, Task } from '../tasks/task.js';
import { PUT_BACK_DELAY_MS } from './retry-delays.js';
import { type GroupSession, type Hold, type Holds, sameNodes } from './holds.js';
import type { Turn } from '../wait.js';
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
  readonly observer: Observer;
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

const TRIES = 3;
/** An operator's statement on a row takes milliseconds; one that stays has left a transaction open. */
const LOCKED_MOST_MS = 1_000;
const LOCKED_AGAIN_MS = 20;

/**
 * Runs a statement that records something, again when its session was lost: the pool has another, and
 * a hold should not end because a neighbour's session did. Only for statements that may run twice.
 *
 * @param isWanted false once what is to be recorded is not so any more: then it is not run again
 */
export async function persist<T>(
  statement: () => Promise<T>,
  isWanted: () => boolean = () => true,
): Promise<T> {
  for (let attempt = 1; ; attempt += 1) {
    try {
      return await statement();
    } catch (error) {
      if (attempt >= TRIES || !isSessionLost(error) || !isWanted()) throw error;
    }
  }
}

/**
 * Runs a statement that changes the rows of these attempts, again while another session has one of them
 * locked, for a second at most.
 *
 * @param statement returns how many rows it changed; those that it changed before it passes over
 * @param isWanted false once what is to be recorded is not so any more: then it is not run again
 * @returns false when some were not changed: they are no longer this controller's, or still locked. The
 *   tasks stay as they are, and `takeBack` sees to them.
 */
export async function persistRows(
  db: Queryable,
  attempts: readonly Attempt[],
  statement: () => Promise<number>,
  isWanted: () => boolean = () => true,
): Promise<boolean> {
  const until = performance.now() + LOCKED_MOST_MS;
  let changed = 0;
  for (;;) {
    changed += await persist(statement, isWanted);
    if (changed >= attempts.length) return true;
    if (!isWanted()) return false;
    if (performance.now() >= until || (await persist(() => countMine(db, attempts))) === 0)
      return false;
    await sleep(LOCKED_AGAIN_MS);
  }
}
