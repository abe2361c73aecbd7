import type { Transition } from '../mpp/abstract.js';
import {
  addFollowUp,
  attemptOf,
  completeTasks,
  endTasks,
  recordChange,
  requeueTasks,
} from '../tasks/finish.js';
import { isTaken } from '../postgres/sqlstate.js';
import { formatAddress } from '../tasks/task.js';
import { PUT_BACK_DELAY_MS } from './bounds.js';
import type { Hold } from './holds.js';
import { describeGroup, primaryOf } from './nodes.js';
import { persist } from './persist.js';
import {
  locksNodes,
  putBack,
  requeue,
  ROWS_CHANGED,
  rowsUnchanged,
  type Outcome,
  type Work,
  type Workplace,
} from './work.js';

type ChangeTransition = Extract<Transition, { kind: 'change' }>;

/** Changes pg_dist_node, ends the task and those of the hold, and commits all of it together. */
export async function commitChange(
  place: Workplace,
  work: Work,
  transition: ChangeTransition,
): Promise<Outcome> {
  const { task, session, hold, log } = work;
  const { steps } = transition;
  if (hold && steps.length === 0) return endUnchanged(place, work, hold, transition);
  if (!(await runSteps(place, work, transition))) return planAgain(place, work);
  if (!(await record(place, work, transition))) {
    // A task of the hold is no longer ours: the hold was released. The report itself is a fact.
    if (hold) place.holds.remove(hold);
    log.warn('the hold was released while the task ran; it is taken again without it');
    return putBack(place, work, 'its hold was released meanwhile');
  }
  await session.commit();
  if (hold) place.holds.remove(hold);
  const primary = formatAddress(task.address);
  log.info({ primary, steps, heldBy: hold?.attempts.length }, 'pg_dist_node changed');
  return transition.followUp ? { again: 0 } : {};
}

/** The primary is where it was: the hold is taken back as a whole, and nothing was changed. */
async function endUnchanged(
  place: Workplace,
  { task, session, log }: Work,
  hold: Hold,
  { nodeid, followUp }: ChangeTransition,
): Promise<Outcome> {
  place.holds.remove(hold);
  await session.rollback();
  const mine = attemptOf(place.controller, task);
  const reason = 'the primary is the same; its traffic goes on';
  const ended = [...hold.attempts, ...(followUp ? [] : [mine])];
  await persist(() => endTasks(place.db, ended, { status: 'done', nodeid, reason }));
  if (followUp) await requeue(place, task, 'the primary is the same; its secondaries follow', 0);
  log.info({ heldBy: hold.attempts.length }, 'hold ended without a change');
  return { again: 0 };
}

/** Takes back what was planned from rows that are no longer so. A hold stays, and so does its pause. */
async function planAgain(place: Workplace, work: Work): Promise<Outcome> {
  if (!work.hold) return putBack(place, work, ROWS_CHANGED);
  await work.session.client.query('ROLLBACK TO SAVEPOINT mpp_change');
  await requeue(place, work.task, ROWS_CHANGED, PUT_BACK_DELAY_MS);
  return { again: PUT_BACK_DELAY_MS };
}

/** @returns false when somebody has changed the rows that the steps were planned from. */
async function runSteps(
  place: Workplace,
  work: Work,
  { steps }: ChangeTransition,
): Promise<boolean> {
  const { task, hold } = work;
  const { client } = work.session;
  const handler = place.handler();
  const [first, ...others] = steps;
  if (first && !(hold && locksNodes(hold))) {
    // The first step locks the rows; until then they may change.
    await client.query('SAVEPOINT mpp_change');
    try {
      await handler.apply(client, first, task.cooldownMs);
    } catch (error) {
      if (hold && isTaken(error)) return false;
      throw error;
    }
    if (!(await rowsUnchanged(place, work))) return false;
  } else if (first) {
    await handler.apply(client, first, task.cooldownMs);
  }
  for (const step of others) await handler.apply(client, step, task.cooldownMs);
  return true;
}

/**
 * Writes down what the transaction has done, in it.
 *
 * @returns false when one of the tasks is no longer ours.
 */
async function record(
  place: Workplace,
  work: Work,
  { followUp, nodeid }: ChangeTransition,
): Promise<boolean> {
  const { task, hold, nodes } = work;
  const { client } = work.session;
  const after = await place.handler().readNodes(client, task);
  const before = describeGroup(hold?.before ?? nodes, task.groupid);
  await recordChange(client, { before, after: describeGroup(after, task.groupid) });
  const attempt = attemptOf(place.controller, task);
  // While somebody has an uncommitted report for the group, the rest stays with this task.
  const wholly = !followUp || (await addFollowUp(client, task));
  if (!wholly) {
    await requeueTasks(client, [attempt], 'the primary has moved; its secondaries follow', 0);
  }
  return completeTasks(client, [...(hold?.attempts ?? []), ...(wholly ? [attempt] : [])], {
    nodeid: nodeid ?? primaryOf(after, task.groupid)?.nodeid ?? null,
    reason: null,
  });
}
