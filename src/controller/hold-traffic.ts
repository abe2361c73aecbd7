import type { Node, Transition } from '../mpp/abstract.js';
import { attemptOf, markHolding, markReason } from '../tasks/finish.js';
import { pauseOf } from '../tasks/task.js';
import { formatAddress } from '../address.js';
import { boundsOf, growingDelay } from './retry-delays.js';
import type { Hold } from './holds.js';
import {
  putBack,
  ROWS_CHANGED,
  rowsUnchanged,
  type Outcome,
  type Work,
  type Workplace,
  persistRows,
} from './work.js';

type HoldTransition = Extract<Transition, { kind: 'hold' }>;

/** Makes the group's traffic wait, or finds it waiting, and acknowledges the task. */
export async function holdTraffic(
  place: Workplace,
  work: Work,
  transition: HoldTransition,
): Promise<Outcome> {
  const { node } = transition;
  const hold = work.hold ?? newHold(place, work, node);
  let reason: string | null = null;
  if (!work.hold) {
    reason = await pause(place, work, hold, node);
    if (!(await rowsUnchanged(place, work))) return putBack(place, work, ROWS_CHANGED);
    place.holds.add(hold);
    work.session.onLost(() => place.onHoldLost(hold));
  } else {
    reason = await pauseMore(place, work, hold, node);
  }
  if (transition.target) await retarget(work, hold, transition.target);
  if (hold.pause !== 'none') reason = await waitElsewhere(place, work, hold, reason);
  return acknowledge(place, work, hold, { nodeid: node.nodeid, reason });
}

/**
 * Waits until the group's traffic waits in the other databases, and lost locks are there again.
 *
 * @returns a sentence when less waits than was asked for
 */
async function waitElsewhere(
  place: Workplace,
  { task, hold: before }: Work,
  hold: Hold,
  reason: string | null,
): Promise<string | null> {
  const attempt = attemptOf(place.controller, task);
  const isHeld = (): boolean => place.holds.get(task.groupid) === hold;
  const report = { ...task, ...attempt, isHeld };
  const elsewhere = await place.otherDatabases.follow(report, place.signal);
  await hold.pausing?.whole();
  if (elsewhere !== null && !before) place.observer.pauseDegraded('other_database');
  const here = before ? reason : (hold.pausing?.reason ?? reason);
  return [here, elsewhere].filter((one) => one !== null).join('; ') || null;
}

async function acknowledge(
  place: Workplace,
  work: Work,
  hold: Hold,
  { nodeid, reason }: { readonly nodeid: number; readonly reason: string | null },
): Promise<Outcome> {
  const { holds, db, controller } = place;
  const { task, session } = work;
  const attempt = attemptOf(controller, task);
  const isHeld = (): boolean => holds.get(task.groupid) === hold;
  // The session may have broken meanwhile; then nothing waits, and a sweep takes the task up again.
  if (!isHeld()) return { mustInspect: true, again: growingDelay(task.attempt) };
  let remaining: number | undefined;
  await persistRows(
    db,
    [attempt],
    async () => {
      remaining = await markHolding(db, attempt, nodeid, reason);
      return remaining === undefined ? 0 : 1;
    },
    isHeld,
  );
  if (remaining === undefined) {
    // Released by an operator or taken over while the locks were waited for, or its row is locked.
    if (!work.hold && holds.remove(hold, 'lost')) await session.rollback();
    return { mustInspect: true, again: growingDelay(task.attempt) };
  }
  if (!work.hold) tellOpened(place, hold);
  hold.attempts.push(attempt);
  holds.extend(hold, remaining);
  // The deadline counts from now, the server's own bounds from the last statement: with one session of
  // the hold that may be from the start of a long drain.
  const remainingMs = holds.remaining(hold);
  await session.bound(boundsOf(task, remainingMs));
  hold.pausing?.extend(remainingMs);
  const { original, target } = hold.node;
  const node = { node: formatAddress(original), target: target && formatAddress(target) };
  const fields = { ...node, remainingMs: Math.round(remaining) };
  work.log.info(fields, work.hold ? 'hold goes on' : 'hold opened');
  return {};
}

function tellOpened({ observer }: Workplace, hold: Hold): void {
  hold.heldAt = performance.now();
  observer.holdOpened({ pause: hold.pause, openMs: hold.heldAt - hold.beganAt });
  for (const shortfall of hold.pausing?.shortfalls ?? []) observer.pauseDegraded(shortfall);
}

function newHold(place: Workplace, { task, session, nodes }: Work, node: Node): Hold {
  return {
    session,
    groupid: task.groupid,
    kind: task.event === 'before_demote' ? 'planned' : 'failover',
    beganAt: performance.now(),
    heldAt: undefined,
    pause: pauseOf(task, place.pause),
    pausing: undefined,
    before: nodes,
    node: { nodeid: node.nodeid, original: node.address, target: null },
    attempts: [],
    interventions: { terminated: 0, cancelled: 0 },
  };
}

/** @returns a sentence when less waits than was asked for. */
async function pause(
  place: Workplace,
  { task, session, nodes, prefetch, log }: Work,
  hold: Hold,
  node: Node,
): Promise<string | null> {
  if (hold.pause === 'none') return null;
  hold.pausing = await place.traffic.pause({
    session,
    node,
    nodes,
    prefetch,
    pause: hold.pause,
    planned: task.event === 'before_demote',
    means: place.handler().means,
    cooldownMs: task.cooldownMs,
    remainingMs: task.resumed ? task.remainingMs : task.timeoutMs,
    signal: place.signal,
    onBlocked: (sentence, blockers) => {
      log.warn(`the hold ${sentence}`);
      const attempt = attemptOf(place.controller, task);
      // What cannot be written is in the log.
      markReason(place.db, attempt, 'claimed', sentence, blockers).catch(() => undefined);
    },
    onTerminated: () => {
      hold.interventions.terminated += 1;
      place.observer.sessionTerminated('hold');
    },
    onCancelled: () => {
      hold.interventions.cancelled += 1;
    },
    onReason: (sentence) => {
      const attempt = hold.attempts.at(-1);
      if (attempt) markReason(place.db, attempt, 'holding', sentence).catch(() => undefined);
    },
  });
  return hold.pausing.reason;
}

/** A later report of a hold may ask for more than the one that opened it. */
async function pauseMore(
  place: Workplace,
  work: Work,
  hold: Hold,
  node: Node,
): Promise<string | null> {
  // A report that does not say leaves it as it is.
  const wanted = work.task.pause ?? hold.pause;
  if (hold.pause === 'none' && wanted !== 'none') {
    hold.pause = wanted;
    return pause(place, work, hold, node);
  }
  if (wanted !== 'all' || hold.pause === 'all') return null;
  return `what waits is what the hold was opened for: ${hold.pause}`;
}

async function retarget(
  { task, nodes }: Work,
  hold: Hold,
  target: Hold['node']['original'],
): Promise<void> {
  hold.node = { ...hold.node, target };
  await hold.pausing?.retarget(hold.node, nodes, target, task.cooldownMs);
}
