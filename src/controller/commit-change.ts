import type { Node, Step, Transition, WaitingClients } from '../mpp/abstract.js';
import type { Queryable } from '../postgres/queries.js';
import { addDetail, isCancelled, isTaken } from '../postgres/sqlstate.js';
import {
  addFollowUp,
  attemptOf,
  completeTasks,
  endTasks,
  lockTasks,
  markReason,
  recordChange,
  requeueTasks,
} from '../tasks/finish.js';
import type { BlockerNote, Task } from '../tasks/task.js';
import { type Address, formatAddress, sameAddress } from '../address.js';
import { within } from '../wait.js';
import { PUT_BACK_DELAY_MS, SECONDARY_ATTEMPTS, unconfirmedDelay } from './retry-delays.js';
import { ChangeWatch, NAMED_AFTER_MS } from './change-watch.js';
import { type Hold, describeGroup, type Interventions, primaryOf, summarize } from './holds.js';
import { leaveUnconfirmed } from './task-failure.js';
import type { Unconfirmed } from './verification.js';
import {
  locksNodes,
  type Outcome,
  putBack,
  requeue,
  ROWS_CHANGED,
  rowsUnchanged,
  type Work,
  type Workplace,
  persist,
  persistRows,
} from './work.js';

const LOCKED_DELAY_MS = 100;
/** How long the end of a hold may wait to know which clients wait. */
const WAITING_MS = 20;
/** How long the answer of a node may keep pg_dist_node locked. */
const LOCKED_CHECK_MS = 500;
const NOT_ANSWERED = {
  kind: 'notYet',
  reason: 'the node has not answered yet',
  cause: 'silent',
} as const;
const WAITS_FOR_TURN = 'waits for another group to change pg_dist_node first';
const ROWS_LOCKED = 'another session has locked a task of the change; it is tried again';

type ChangeTransition = Extract<Transition, { kind: 'change' }>;

/** What is seen and done while rows change, for the log. */
interface ChangeNotes extends Interventions {
  /** The clients that waited, once that is known. */
  waiting: { readonly clients: WaitingClients; readonly readAt: number } | undefined;
}

/** The rows to change, and what the log is to say of it. */
interface Change extends ChangeTransition {
  /** Undefined where no primary moves. */
  readonly notes?: ChangeNotes;
  /** Which secondaries are left out for now, and why. */
  readonly left?: string | undefined;
}

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
  const endTurn = hold ? await takeTurn(place, work, hold) : undefined;
  if (hold && endTurn === undefined) return waitForTurn(place, task);
  try {
    return await changeAndCommit(place, work, transition, isFirst);
  } finally {
    endTurn?.();
  }
}

/**
 * Of two groups that wait for pg_dist_node, the one that comes first is served first. The turn is waited for
 * until the deadline of the hold at most: its traffic must not wait longer for another group's trouble.
 *
 * @returns undefined when it did not come in time.
 */
async function takeTurn(
  place: Workplace,
  work: Work,
  hold: Hold,
): Promise<(() => void) | undefined> {
  const taking = place.changes.take();
  const naming = setTimeout(() => tellWaiting(place, work, WAITS_FOR_TURN), NAMED_AFTER_MS);
  try {
    const endTurn = await within(place.holds.remaining(hold), taking, undefined);
    if (endTurn === undefined) void taking.then((end) => end());
    return endTurn;
  } finally {
    clearTimeout(naming);
  }
}

async function waitForTurn(place: Workplace, task: Task): Promise<Outcome> {
  await requeue(place, task, WAITS_FOR_TURN, PUT_BACK_DELAY_MS);
  return { again: PUT_BACK_DELAY_MS };
}

/** Says what a change waits for: once in the log for each change of it, and in `reason`. */
function tellWaiting(
  place: Workplace,
  { task, log }: Work,
  sentence: string,
  blockers?: readonly BlockerNote[],
): void {
  log.warn(sentence);
  const attempt = attemptOf(place.controller, task);
  // What cannot be written is in the log.
  markReason(place.db, attempt, 'claimed', sentence, blockers).catch(() => undefined);
}

async function changeAndCommit(
  place: Workplace,
  work: Work,
  transition: ChangeTransition,
  isFirst: boolean,
): Promise<Outcome> {
  const { task, session, hold, log } = work;
  const { steps } = transition;
  const beganAt = performance.now();
  hold?.pausing?.expectCommit();
  const notes: ChangeNotes = { terminated: 0, cancelled: 0, waiting: undefined };
  noteWaiting(hold, notes);
  const undone = await changeRows(place, work, { ...transition, notes });
  if (undone !== undefined) return undone;
  if (isFirst) {
    // pg_dist_node is locked by now, for every group.
    const verdict = await within(LOCKED_CHECK_MS, work.check.primary(work.nodes), NOT_ANSWERED);
    if (verdict.kind !== 'confirmed') return leaveUnconfirmed(place, work, verdict, 'steps');
  }
  await session.commit();
  if (hold) place.holds.remove(hold, 'committed');
  tellSwitchover(place, work, transition, beganAt);
  work.check.confirmed();
  const primary = formatAddress(task.address);
  log.info({ primary, steps, heldBy: hold?.attempts.length }, 'pg_dist_node changed');
  return transition.followUp ? { again: 0 } : {};
}

/** Asks which clients wait while the rows change. The change does not wait for the answer. */
function noteWaiting(hold: Hold | undefined, notes: ChangeNotes): void {
  hold?.pausing?.waitingClients().then(
    (clients) => (notes.waiting = { clients, readAt: performance.now() }),
    () => undefined,
  );
}

/** Those that were seen waiting wait on. */
function waitingNow({ waiting }: ChangeNotes): WaitingClients | undefined {
  if (waiting === undefined) return undefined;
  const { sessions, longestMs } = waiting.clients;
  const since = performance.now() - waiting.readAt;
  return { sessions, longestMs: longestMs === null ? null : Math.round(longestMs + since) };
}

/** The first primary of a group is none: there was no other before. */
function tellSwitchover(
  { observer }: Workplace,
  { task: { groupid }, hold }: Work,
  { steps, nodeid }: ChangeTransition,
  beganAt: number,
): void {
  const isSwitchover = steps.some(
    (step) => step.op === 'coordinator' || (step.op === 'update' && step.nodeid === nodeid),
  );
  if (!isSwitchover) return;
  const now = performance.now();
  const change = now - beganAt;
  const kind = hold?.kind ?? 'failover';
  const { beganAt: openedAt = beganAt, heldAt } = hold ?? {};
  const before = heldAt === undefined ? {} : { open: heldAt - openedAt, promote: beganAt - heldAt };
  observer.switchedOver({ groupid, kind, stepsMs: { ...before, change, total: now - openedAt } });
}

/**
 * Runs the steps and writes down what they did. The rows of mpp_tasks that the change ends are looked at
 * before pg_dist_node is locked, because a session that has one of them must not keep other groups waiting
 * for that; and locked after it, because while the steps wait their `reason` says for whom.
 *
 * @returns how the task ends when that cannot be done now.
 */
async function changeRows(
  place: Workplace,
  work: Work,
  change: Change,
): Promise<Outcome | undefined> {
  const { client } = work.session;
  await client.query('SAVEPOINT mpp_change');
  const busy = await lockRows(place, work, place.db);
  if (busy !== undefined) return busy;
  if (!(await runSteps(place, work, change)))
    return tryAgain(place, work, ROWS_CHANGED, PUT_BACK_DELAY_MS);
  const busyNow = await lockRows(place, work, client);
  if (busyNow !== undefined) return busyNow;
  if (!(await record(place, work, change))) return releasedMeanwhile(place, work);
  return undefined;
}

/**
 * Locks the rows of mpp_tasks that the change ends.
 *
 * @param db the session of the change, or another one for a look that keeps no lock.
 * @returns how the task ends when they cannot be had.
 */
async function lockRows(place: Workplace, work: Work, db: Queryable): Promise<Outcome | undefined> {
  const { task, hold, log } = work;
  const attempts = [...(hold?.attempts ?? []), attemptOf(place.controller, task)];
  const state = await persist(() => lockTasks(db, attempts));
  if (state === 'locked') return undefined;
  if (state === 'lost') return releasedMeanwhile(place, work);
  log.warn('another session has locked a task of the change; it is tried again');
  return tryAgain(place, work, ROWS_LOCKED, LOCKED_DELAY_MS);
}

/** A task of the hold is no longer this controller's: the hold was released. The report itself is a fact. */
async function releasedMeanwhile(place: Workplace, work: Work): Promise<Outcome> {
  if (work.hold) place.holds.remove(work.hold, 'released');
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
    return leaveUnconfirmed(place, work, {
      kind,
      cause: 'secondary',
      reason: isLast ? `${left}; report again` : left,
    });
  }
  const change = { ...transition, steps, left };
  const undone = await changeRows(place, work, change);
  if (undone !== undefined) return undone;
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
  const asked = hold.pausing?.waitingClients().catch(() => undefined);
  const waiting = await within(WAITING_MS, asked ?? Promise.resolve(undefined), undefined);
  place.holds.remove(hold, 'unchanged');
  await session.rollback();
  const mine = attemptOf(place.controller, task);
  const reason = 'the primary is the same; its traffic goes on';
  const ended = [...hold.attempts, ...(followUp ? [] : [mine])];
  const summary = summarize(hold, followUp ? undefined : task.id, { waiting });
  const end = { status: 'done', nodeid, reason, ...(summary && { summary }) } as const;
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

/** @returns false when another session has changed the rows that the steps were planned from. */
async function runSteps(place: Workplace, work: Work, { steps, notes }: Change): Promise<boolean> {
  const { hold } = work;
  const [first, ...others] = steps;
  if (first === undefined) return true;
  const isLocked = hold !== undefined && locksNodes(hold);
  try {
    await applyWatched(place, work, first, notes);
  } catch (error) {
    if (hold && !isLocked && isTaken(error)) return false;
    throw error;
  }
  // The first step locks the rows of pg_dist_node; until then they may change.
  if (!isLocked && !(await rowsUnchanged(place, work))) return false;
  for (const step of others) await apply(place, work, step);
  return true;
}

async function apply(
  place: Workplace,
  { task, session }: Work,
  step: Step,
  force?: 'force',
): Promise<void> {
  const cooldownMs = force ? 0 : task.cooldownMs;
  await place.handler().apply(session.client, step, cooldownMs, force !== undefined);
}

/**
 * Runs the step that waits for locks. The controller terminates the sessions that block it past the cooldown,
 * because it knows for how long each has and who is to be waited for; Citus does it where this role may not.
 *
 * @throws the step's error; its detail names what the step has waited for.
 */
async function applyWatched(
  place: Workplace,
  work: Work,
  step: Step,
  notes: ChangeNotes | undefined,
): Promise<void> {
  const watch = watchChange(place, work, notes);
  try {
    await apply(place, work, step).catch(async (error: unknown) => {
      const { forced } = watch;
      if (forced.length === 0 || !isCancelled(error)) throw error;
      const named = forced.map(({ described }) => described).join('; ');
      work.log.warn(
        `Citus terminates what this role may not, ${named}: past the cooldown it still blocks the change of pg_dist_node`,
      );
      await work.session.client.query('ROLLBACK TO SAVEPOINT mpp_change');
      watch.force();
      await apply(place, work, step, 'force');
    });
  } catch (error) {
    if (watch.sentence !== undefined) addDetail(error, watch.sentence);
    throw error;
  } finally {
    // Before the next statement, which a late cancel would hit.
    await watch.stop();
  }
}

function watchChange(place: Workplace, work: Work, notes: ChangeNotes | undefined): ChangeWatch {
  const { pid } = work.session;
  const handler = place.handler();
  return new ChangeWatch({
    read: (overdue) => handler.changeBlockers(place.db, pid, overdue),
    interrupt: () => handler.cancelStatement(place.db, pid),
    waitersForHold: () => work.hold?.pausing?.waiters() ?? Promise.resolve(new Set()),
    cancel: async (blocker) => {
      await handler.cancelStatement(place.db, blocker.pid);
      if (notes) notes.cancelled += 1;
      work.log.warn(
        `cancelled the statement of ${blocker.described}, which waited for this hold and blocked its change of pg_dist_node`,
      );
    },
    cooldownMs: work.task.cooldownMs,
    onBlocked: (sentence, blockers) => tellWaiting(place, work, sentence, blockers),
    onEnded: ({ described }, blockedMs) => {
      const seconds = (blockedMs / 1_000).toFixed(1);
      if (notes) notes.terminated += 1;
      place.observer.sessionTerminated('change');
      work.log.warn(
        `terminated ${described}, which had blocked the change of pg_dist_node for ${seconds} s`,
      );
    },
  });
}

/**
 * Writes down what the transaction has done, in it.
 *
 * @returns false when one of the tasks was claimed by another attempt.
 */
async function record(
  place: Workplace,
  work: Work,
  { followUp, nodeid, left, notes }: Change,
): Promise<boolean> {
  const { task, hold, nodes } = work;
  const { client } = work.session;
  const after = await place.handler().readNodes(client, task);
  const before = describeGroup(hold?.before ?? nodes, task.groupid);
  const summary = notes && summarize(hold, task.id, { ...notes, waiting: waitingNow(notes) });
  await recordChange(client, { before, after: describeGroup(after, task.groupid), summary });
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

/**
 * The steps that only add or change secondaries, without those whose nodes were not confirmed. A row that
 * was to be given to such a node has lost its own, and is removed.
 *
 * @param unconfirmed addresses of those nodes.
 */
export function withoutSecondaries(
  steps: readonly Step[],
  unconfirmed: readonly Address[],
  nodes: readonly Node[],
): Step[] {
  const isOut = (address: Address): boolean =>
    unconfirmed.some((other) => sameAddress(other, address));
  return steps.flatMap((step): Step[] => {
    if (step.op === 'add' && isOut(step.node)) return [];
    if (step.op !== 'update' || !isOut(step.to)) return [step];
    const row = nodes.find(({ nodeid }) => nodeid === step.nodeid);
    return row ? [{ op: 'remove', node: row.address }] : [];
  });
}

/** The addresses that such steps make secondaries. */
export function addedSecondaries(steps: readonly Step[]): Address[] {
  return steps.flatMap((step) => {
    if (step.op === 'add') return [step.node];
    return step.op === 'update' ? [step.to] : [];
  });
}

/** The first few, for people. */
export function describeMissing(missing: readonly Unconfirmed[]): string {
  const shown = missing.slice(0, MOST_SHOWN).map(({ reason }) => `secondary ${reason}`);
  const more = missing.length - shown.length;
  return [...shown, ...(more > 0 ? [`and ${more} more`] : [])].join('; ');
}

const MOST_SHOWN = 3;
