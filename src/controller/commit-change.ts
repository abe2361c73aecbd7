import type { Transition } from '../mpp/abstract.js';
import {
  addFollowUp,
  attemptOf,
  completeTasks,
  endTasks,
  lockTasks,
  recordChange,
  requeueTasks,
} from '../tasks/finish.js';
import { isTaken } from '../postgres/sqlstate.js';
import { formatAddress } from '../tasks/task.js';
import { PUT_BACK_DELAY_MS, SECONDARY_ATTEMPTS, unconfirmedDelay } from './bounds.js';
import type { Hold } from './holds.js';
import { describeGroup, primaryOf } from './nodes.js';
import { persistRows } from './persist.js';
import { addedSecondaries, describeMissing, withoutSecondaries } from './secondaries.js';
import { within } from '../within.js';
import { leaveUnconfirmed } from './unconfirmed.js';
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

const LOCKED_DELAY_MS = 100;
/** How long the answer of a node may keep pg_dist_node locked. */
const LOCKED_CHECK_MS = 500;
const NOT_ANSWERED = { kind: 'notYet', reason: 'the node has not answered yet' } as const;
const ROWS_LOCKED = 'another session has locked a task of the change; it is tried again';

type ChangeTransition = Extract<Transition, { kind: 'change' }>;

/** Changes pg_dist_node, ends the task and those of the hold, and commits all of it together. */
export async function commitChange(
  place: Workplace,
  work: Work,
  transition: ChangeTransition,
): Promise<Outcome> {
  const { task, hold } = work;
  const { steps } = transition;
  if (!hold && !movesPrimary(transition)) return changeSecondaries(place, work, transition);
  // Without a hold the steps would make traffic wait for the answer; with one it waits already.
  const isFirst = hold !== undefined && steps.length > 0 && task.attempt === 1;
  if (!isFirst) {
    const verdict = await work.check.primary(work.nodes);
    if (verdict.kind !== 'confirmed') return leaveUnconfirmed(place, work, verdict);
  }
  if (hold && steps.length === 0) return endUnchanged(place, work, hold, transition);
  // Of two that wait for pg_dist_node, Citus would have the one with the shorter cooldown end the other.
  const endTurn = hold ? await place.changes.take() : undefined;
  try {
    return await changeAndCommit(place, work, transition, isFirst);
  } finally {
    endTurn?.();
  }
}

async function changeAndCommit(
  place: Workplace,
  work: Work,
  transition: ChangeTransition,
  isFirst: boolean,
): Promise<Outcome> {
  const { task, session, hold, log } = work;
  const { steps } = transition;
  const busy = await lockRows(place, work);
  if (busy !== undefined) return busy;
  hold?.pausing?.expectCommit();
  if (!(await runSteps(place, work, transition)))
    return tryAgain(place, work, ROWS_CHANGED, PUT_BACK_DELAY_MS);
  if (!(await record(place, work, transition))) return releasedMeanwhile(place, work);
  if (isFirst) {
    // pg_dist_node is locked by now, for every group.
    const verdict = await within(LOCKED_CHECK_MS, work.check.primary(work.nodes), NOT_ANSWERED);
    if (verdict.kind !== 'confirmed') return leaveUnconfirmed(place, work, verdict, 'steps');
  }
  await session.commit();
  if (hold) place.holds.remove(hold);
  work.check.confirmed();
  const primary = formatAddress(task.address);
  log.info({ primary, steps, heldBy: hold?.attempts.length }, 'pg_dist_node changed');
  return transition.followUp ? { again: 0 } : {};
}

/**
 * Locks the rows of mpp_tasks that the change ends, before pg_dist_node is locked: a session that has one of
 * them must not keep other groups waiting for that.
 *
 * @returns how the task ends when they cannot be had.
 */
async function lockRows(place: Workplace, work: Work): Promise<Outcome | undefined> {
  const { task, session, hold, log } = work;
  const attempts = [...(hold?.attempts ?? []), attemptOf(place.controller, task)];
  await session.client.query('SAVEPOINT mpp_change');
  const state = await lockTasks(session.client, attempts);
  if (state === 'locked') return undefined;
  if (state === 'lost') return releasedMeanwhile(place, work);
  log.warn('another session has locked a task of the change; it is tried again');
  return tryAgain(place, work, ROWS_LOCKED, LOCKED_DELAY_MS);
}

/** A task of the hold is no longer this controller's: the hold was released. The report itself is a fact. */
async function releasedMeanwhile(place: Workplace, work: Work): Promise<Outcome> {
  if (work.hold) place.holds.remove(work.hold);
  work.log.warn('the hold was released while the task ran; it is taken again without it');
  return putBack(place, work, 'its hold was released meanwhile');
}

export function movesPrimary({ steps, nodeid }: ChangeTransition): boolean {
  return steps.some(
    (step) =>
      step.op === 'coordinator' ||
      (step.op === 'add' && step.role === 'primary') ||
      (step.op === 'update' && step.nodeid === nodeid),
  );
}

/**
 * Adds and removes secondaries. Those that do not answer as standbys of the group are left out: the task
 * stays, and they are asked again later.
 */
async function changeSecondaries(
  place: Workplace,
  work: Work,
  transition: ChangeTransition,
): Promise<Outcome> {
  const { task, session, nodes, log } = work;
  const missing = await work.check.secondaries(addedSecondaries(transition.steps), nodes);
  const left = missing.length > 0 ? `left out for now: ${describeMissing(missing)}` : undefined;
  const addresses = missing.map(({ address }) => address);
  const steps = withoutSecondaries(transition.steps, addresses, nodes);
  const isLast = task.attempt >= SECONDARY_ATTEMPTS;
  if (left !== undefined && (isLast || steps.length === 0)) {
    const kind = isLast ? 'refused' : 'notYet';
    return leaveUnconfirmed(place, work, { kind, reason: isLast ? `${left}; report again` : left });
  }
  const change = { ...transition, steps, left };
  const busy = await lockRows(place, work);
  if (busy !== undefined) return busy;
  if (!(await runSteps(place, work, change)))
    return tryAgain(place, work, ROWS_CHANGED, PUT_BACK_DELAY_MS);
  if (!(await record(place, work, change))) return releasedMeanwhile(place, work);
  await session.commit();
  log.info({ primary: formatAddress(task.address), steps, left }, 'pg_dist_node changed');
  return left === undefined ? {} : { again: unconfirmedDelay(task.attempt, false) };
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
  const end = { status: 'done', nodeid, reason } as const;
  await persistRows(place.db, ended, () => endTasks(place.db, ended, end));
  if (followUp) await requeue(place, task, 'the primary is the same; its secondaries follow', 0);
  log.info({ heldBy: hold.attempts.length }, 'hold ended without a change');
  return { again: 0 };
}

/** Takes back what was begun of the change, to try it again. A hold stays, and so does its pause. */
async function tryAgain(
  place: Workplace,
  work: Work,
  reason: string,
  delayMs: number,
): Promise<Outcome> {
  if (!work.hold) return putBack(place, work, reason);
  await work.session.client.query('ROLLBACK TO SAVEPOINT mpp_change');
  await requeue(place, work.task, reason, delayMs);
  return { again: delayMs };
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
    // The first step locks the rows of pg_dist_node; until then they may change.
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
  { followUp, nodeid, left }: ChangeTransition & { readonly left?: string | undefined },
): Promise<boolean> {
  const { task, hold, nodes } = work;
  const { client } = work.session;
  const after = await place.handler().readNodes(client, task);
  const before = describeGroup(hold?.before ?? nodes, task.groupid);
  await recordChange(client, { before, after: describeGroup(after, task.groupid) });
  if (followUp) await addFollowUp(client, task);
  const mine = attemptOf(place.controller, task);
  if (left !== undefined) {
    await requeueTasks(client, [mine], left, unconfirmedDelay(task.attempt, false));
  }
  const attempts = [...(hold?.attempts ?? []), ...(left === undefined ? [mine] : [])];
  return completeTasks(client, attempts, {
    nodeid: nodeid ?? primaryOf(after, task.groupid)?.nodeid ?? null,
    reason: null,
  });
}
