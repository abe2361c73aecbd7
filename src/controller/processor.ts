import type { HeldNode, Node, Prefetch, Transition } from '../mpp/abstract.js';
import type { Logger } from '../logger.js';
import { isSessionLost, sqlState } from '../postgres/sqlstate.js';
import { attemptOf, endTasks } from '../tasks/finish.js';
import { pauseOf, type Task } from '../tasks/task.js';
import {
  boundsOf,
  groupBusyDelay,
  growingDelay,
  heldRetryDelay,
  watchdogMs,
} from './retry-delays.js';
import { commitChange, movesPrimary } from './commit-change.js';
import { failureText, leaveUnconfirmed, recordFailure } from './task-failure.js';
import { beginGroupSession, groupLocker, type GroupSession, type Hold } from './holds.js';
import { holdTraffic } from './hold-traffic.js';
import {
  locksNodes,
  requeue,
  type Outcome,
  type Work,
  type Workplace,
  persistRows,
} from './work.js';

type Answer = Extract<Transition, { kind: 'discard' | 'fail' | 'nothing' }>;

/** Runs claimed tasks, one at a time for each group. */
export class Processor {
  readonly #place: Workplace;
  readonly #running = new Map<Task, GroupSession>();
  /** The text of each task's last failure, the newest last. */
  readonly #failures = new Map<string, string>();

  constructor(place: Workplace) {
    this.#place = place;
  }

  /** Runs one claimed task to its acknowledgement or end. Never throws. */
  async run(task: Task): Promise<Outcome> {
    const { holds, logger, sessions, db } = this.#place;
    const hold = holds.get(task.groupid);
    const log = logger.child({ task: task.id, groupid: task.groupid, event: task.event });
    let session = hold?.session;
    const before = hold && { hold, node: hold.node, pausing: hold.pausing };
    const check = this.#place.verification.begin(task);
    const prefetch = hold ? undefined : this.#prefetch(task);
    const watchdog = setTimeout(() => session?.destroy(), watchdogMs(task));
    try {
      if (!hold) {
        const early = await this.#leaveEarly({ task, check, log });
        if (early !== undefined) return early;
      }
      if (hold) await this.#enter(task, hold);
      else session = await beginGroupSession(sessions, db, task.groupid, boundsOf(task));
      if (session === undefined) {
        const locker = await groupLocker(db, task.groupid);
        const reason = `another session works on its group${locker ? `: ${locker}` : ''}`;
        if (locker?.includes('application mpp-controller') === false) log.warn(reason);
        const delay = groupBusyDelay(task.attempt);
        await requeue(this.#place, task, reason, delay);
        return { again: delay };
      }
      this.#running.set(task, session);
      return await this.#act({ task, session, hold, log, prefetch, check });
    } catch (error) {
      const outcome = await this.#retryInHold(task, before, error, log);
      return outcome ?? (await this.#failed(task, session, hold, error, log));
    } finally {
      clearTimeout(watchdog);
      prefetch?.end();
      this.#running.delete(task);
    }
  }

  /**
   * Without a hold, what a node says of itself is known before the task takes a session: a node that never
   * answers must not keep the sessions of other groups.
   *
   * @returns how the task ends for now; undefined where it may go on.
   */
  async #leaveEarly({
    task,
    check,
    log,
  }: Pick<Work, 'task' | 'check' | 'log'>): Promise<Outcome | undefined> {
    if (task.event !== 'after_promote') return undefined;
    const handler = this.#place.handler();
    const nodes = await handler.readNodes(this.#place.db, task);
    const transition = handler.plan(task, nodes, null);
    if (transition.kind !== 'change' || !movesPrimary(transition)) return undefined;
    const verdict = await check.primary(nodes);
    if (verdict.kind === 'confirmed') return undefined;
    return leaveUnconfirmed(this.#place, { task, log }, verdict);
  }

  /** Server processes of the tasks that run now. */
  running(which: (task: Task) => boolean): number[] {
    return [...this.#running].filter(([task]) => which(task)).map(([, session]) => session.pid);
  }

  /** Where everything fails that does not wait yet, what the wait takes is begun before all else. */
  #prefetch(task: Task): Prefetch | undefined {
    const { event, groupid, timeoutMs } = task;
    const wanted = pauseOf(task, this.#place.pause);
    if (event === 'before_demote' || event === 'after_promote' || wanted === 'none')
      return undefined;
    return this.#place.traffic.prefetch({ groupid, pause: wanted, remainingMs: timeoutMs });
  }

  async #act(begun: Omit<Work, 'nodes'>): Promise<Outcome> {
    const { task, session, hold } = begun;
    const handler = this.#place.handler();
    const nodes = await handler.readNodes(session.client, task);
    const transition = handler.plan(task, nodes, hold ? this.#heldNode(hold, nodes) : null);
    const work: Work = { ...begun, nodes };
    switch (transition.kind) {
      case 'discard':
      case 'fail':
      case 'nothing':
        return this.#answer(work, transition);
      case 'hold':
        return holdTraffic(this.#place, work, transition);
      case 'change':
        return commitChange(this.#place, work, transition);
    }
  }

  /** Where other sessions may change the primary's row, it is where it is now. */
  #heldNode(hold: Hold, nodes: readonly Node[]): HeldNode {
    const { node } = hold;
    if (locksNodes(hold)) return node;
    const row = nodes.find(({ nodeid }) => nodeid === node.nodeid);
    return row ? { ...node, original: row.address } : node;
  }

  /** Ends a task that changes nothing. A hold that is there stays. */
  async #answer({ task, session, hold, log }: Work, transition: Answer): Promise<Outcome> {
    const status = ANSWERS[transition.kind];
    const nodeid = transition.kind === 'nothing' ? transition.nodeid : null;
    const end = { status, nodeid, reason: transition.reason };
    const attempts = [attemptOf(this.#place.controller, task)];
    const { db } = this.#place;
    if (hold) await persistRows(db, attempts, () => endTasks(db, attempts, end));
    else {
      await endTasks(session.client, attempts, end);
      await session.commit();
    }
    log.info({ status, reason: transition.reason }, 'task ended without a change');
    return {};
  }

  async #enter(task: Task, hold: Hold): Promise<void> {
    const { session } = hold;
    await session.bound(boundsOf(task, this.#place.holds.remaining(hold)));
    await session.client.query('SAVEPOINT mpp_task');
  }

  /**
   * Takes back what a task has begun in a hold, and tries it again there: the locks of the hold are older than
   * the savepoint, so its traffic goes on waiting instead of running into a primary that is gone. The
   * deadline of the hold ends that.
   *
   * @param before the hold as it was when the task began
   * @returns undefined when the hold ends with the error.
   */
  async #retryInHold(
    task: Task,
    before: (Pick<Hold, 'node' | 'pausing'> & { readonly hold: Hold }) | undefined,
    error: unknown,
    log: Logger,
  ): Promise<Outcome | undefined> {
    const { holds } = this.#place;
    const delay = heldRetryDelay(task, error);
    if (before === undefined || delay === undefined || this.#place.stopping()) return undefined;
    const { hold } = before;
    // What made more traffic wait is younger than the savepoint.
    if (holds.get(task.groupid) !== hold || hold.pausing !== before.pausing) return undefined;
    try {
      await hold.session.client.query('ROLLBACK TO SAVEPOINT mpp_task; RELEASE SAVEPOINT mpp_task');
    } catch {
      return undefined;
    }
    hold.node = before.node;
    this.#tellFailure(task, error, log);
    const outcome = { mustInspect: true, again: delay };
    try {
      await requeue(this.#place, task, failureText(error), delay);
    } catch (recording) {
      log.warn({ err: recording }, FAILURE_UNRECORDED);
    }
    return outcome;
  }

  /** A task that fails in the same way at each attempt is in the log once. */
  #tellFailure(task: Task, error: unknown, log: Logger): void {
    const text = failureText(error);
    const fields = { err: error, sqlstate: sqlState(error), attempt: task.attempt };
    if (this.#failures.get(task.id) === text) log.debug(fields, 'the task failed as before');
    else log.warn(fields, `the task failed: ${text}`);
    this.#failures.delete(task.id);
    this.#failures.set(task.id, text);
    const [oldest] = this.#failures.keys();
    if (this.#failures.size > FAILURES_MOST && oldest !== undefined) this.#failures.delete(oldest);
  }

  /**
   * Where nothing of the transaction is left, a hold ends with it. A lost session leaves its tasks as they are,
   * whether its end was seen first or the failure of its statement: the sweep that follows gives them back to
   * the queue while their deadline lasts, and it alone can tell whether a commit that got no answer has happened.
   */
  async #failed(
    task: Task,
    session: GroupSession | undefined,
    hold: Hold | undefined,
    error: unknown,
    log: Logger,
  ): Promise<Outcome> {
    const { db, controller, holds } = this.#place;
    const open = hold ?? holds.get(task.groupid);
    // By the session, not by the error: Citus passes on those of its own connections to the nodes.
    const isLost = session ? !(await session.rollback()) : isSessionLost(error);
    if (open && isLost) this.#place.onHoldLost(open);
    else if (open) holds.remove(open, this.#place.stopping() ? 'stopped' : 'failed');
    this.#tellFailure(task, error, log);
    const stopping = this.#place.stopping();
    const lost = { mustInspect: true, again: growingDelay(task.attempt) };
    if (isLost || stopping === 'abandon') return lost;
    try {
      const mine = attemptOf(controller, task);
      const earlier = open?.attempts ?? [];
      const failure = { task, mine, hold: earlier, error, stopping: stopping !== undefined };
      return { mustInspect: true, again: await recordFailure(db, failure) };
    } catch (recording) {
      log.warn({ err: recording }, FAILURE_UNRECORDED);
      return lost;
    }
  }
}

const FAILURE_UNRECORDED = 'the failure could not be recorded; a sweep will see to the task';
/** Tasks whose last failure is remembered. */
const FAILURES_MOST = 1_000;

const ANSWERS = { discard: 'discarded', fail: 'failed', nothing: 'done' } as const;
