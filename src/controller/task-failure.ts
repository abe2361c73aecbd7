import type pg from 'pg';
import type { Pool } from 'pg';
import { sqlState } from '../postgres/sqlstate.js';
import { type Attempt, attemptOf, endTasks, requeueTasks } from '../tasks/finish.js';
import type { Verdict } from '../mpp/node-answer.js';
import { errorText } from '../postgres/session.js';
import type { Task } from '../tasks/task.js';
import { retryDelay, unconfirmedDelay } from './retry-delays.js';
import { type Outcome, persistRows, requeue, type Work, type Workplace } from './work.js';

/** A task that an error ended, and what else ends with it. */
export interface Failure {
  readonly task: Task;
  readonly mine: Attempt;
  /** The acknowledged tasks of the hold that was rolled back with it. */
  readonly hold: readonly Attempt[];
  readonly error: unknown;
  /** True when the controller is to stop and interrupted the task itself. */
  readonly stopping: boolean;
}

/**
 * Writes down what becomes of a task after an error, and of those of its hold.
 *
 * @returns milliseconds until the queue should be looked at.
 */
export async function recordFailure(db: Pool, failure: Failure): Promise<number> {
  const { task, mine, hold, error } = failure;
  const text = failureText(error);
  if (hold.length > 0) {
    const reason = `the hold ended with an error in task ${task.id}: ${text}`;
    await persistRows(db, hold, () => endTasks(db, hold, { status: 'rolled_back', reason }));
  }
  if (failure.stopping && task.event !== 'after_promote') {
    const reason = 'the controller was stopped';
    await persistRows(db, [mine], () => endTasks(db, [mine], { status: 'rolled_back', reason }));
    return 0;
  }
  const delay = retryDelay(task, error);
  if (delay === undefined) {
    await persistRows(db, [mine], () => endTasks(db, [mine], { status: 'failed', reason: text }));
    return 0;
  }
  await persistRows(db, [mine], () => requeueTasks(db, [mine], text, delay));
  return delay;
}

/** One line: what PostgreSQL or Citus said, with its detail and its hint. */
export function failureText(error: unknown): string {
  const state = sqlState(error);
  if (state === undefined) return errorText(error);
  const { detail, hint } = error as pg.DatabaseError;
  const parts = [`${errorText(error)} (SQLSTATE ${state})`, detail, hint];
  return parts
    .filter((part) => part !== undefined && part !== '')
    .join('; ')
    .replace(/\s+/g, ' ');
}

/**
 * Takes back what was done for a node that is not what its report says. A hold stays, and so does its
 * pause: the node may be promoted in a moment, or another one be reported.
 *
 * @param done what the transaction of a hold has to undo: `steps` when they were run.
 */
export async function leaveUnconfirmed(
  place: Workplace,
  work: Pick<Work, 'task' | 'log'> & Partial<Pick<Work, 'session' | 'hold'>>,
  verdict: Exclude<Verdict, { kind: 'confirmed' }>,
  done?: 'steps',
): Promise<Outcome> {
  const { task, session, hold, log } = work;
  if (done === 'steps') await session?.client.query('ROLLBACK TO SAVEPOINT mpp_change');
  else if (!hold) await session?.rollback();
  const { reason } = verdict;
  place.observer.verificationFailed(verdict.cause);
  if (verdict.kind === 'notYet') {
    const delay = unconfirmedDelay(task.attempt, hold !== undefined);
    await requeue(place, task, reason, delay);
    if (task.attempt === 1) log.info({ reason }, 'the node is not yet what was reported');
    return { again: delay };
  }
  const status = verdict.kind === 'refused' ? 'failed' : 'discarded';
  const attempts = [attemptOf(place.controller, task)];
  await persistRows(place.db, attempts, () => endTasks(place.db, attempts, { status, reason }));
  if (status === 'failed') log.error({ reason }, 'the report was refused');
  else log.info({ reason }, 'task ended without a change');
  return {};
}
