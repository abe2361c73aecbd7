import type { Verdict } from '../mpp/node-answer.js';
import { attemptOf, endTasks } from '../tasks/finish.js';
import { unconfirmedDelay } from './bounds.js';
import { persistRows } from './persist.js';
import { requeue, type Outcome, type Work, type Workplace } from './work.js';

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
