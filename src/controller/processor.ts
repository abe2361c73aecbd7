import type { Pool } from 'pg';
import type { AbstractMPPHandler, Node, Transition } from '../mpp/abstract.js';
import type { Logger } from '../observe/logger.js';
import { isSessionLost, sqlState } from '../postgres/sqlstate.js';
import {
  addFollowUp,
  attemptOf,
  completeTasks,
  endTasks,
  markHolding,
  recordChange,
  requeueTasks,
} from '../tasks/finish.js';
import { formatAddress, type Pause, type Task } from '../tasks/task.js';
import { boundsOf, GROUP_BUSY_DELAY_MS, growingDelay, watchdogMs } from './bounds.js';
import { recordFailure } from './failure.js';
import { GroupSession } from './group-session.js';
import type { Hold, Holds } from './holds.js';
import { describeGroup, primaryOf } from './nodes.js';
import { persist } from './persist.js';

export interface ProcessorOptions {
  /** For statements outside a group's transaction: acknowledgements and ends. */
  readonly db: Pool;
  /** For the groups' transactions. */
  readonly sessions: Pool;
  readonly holds: Holds;
  readonly handler: () => AbstractMPPHandler;
  readonly controller: string;
  readonly pause: Pause;
  readonly logger: Logger;
  /** Called when a hold's session broke. */
  readonly onHoldLost: (hold: Hold) => void;
  /** Set once the controller is to stop: what is interrupted then is not a failure. */
  readonly stopping: () => 'record' | 'abandon' | undefined;
}

/** How a task's run ended. */
export interface Outcome {
  /** After how many milliseconds the queue should be looked at because of it. */
  readonly again?: number;
  /** True when a session was lost: its tasks wait for a sweep. */
  readonly lost?: boolean;
  /** True after an error: what we know of the server is read anew. */
  readonly doubt?: boolean;
}

/** Runs claimed tasks, one at a time for each group. */
export class Processor {
  readonly #options: ProcessorOptions;
  readonly #running = new Map<Task, GroupSession>();

  constructor(options: ProcessorOptions) {
    this.#options = options;
  }

  /** Runs one claimed task to its acknowledgement or end. Never throws. */
  async run(task: Task): Promise<Outcome> {
    const { holds, logger, db, controller } = this.#options;
    const hold = holds.get(task.groupid);
    const log = logger.child({ task: task.id, groupid: task.groupid, event: task.event });
    let session = hold?.session;
    const watchdog = setTimeout(() => session?.destroy(), watchdogMs(task));
    try {
      if (hold) await hold.session.bound(boundsOf(task, holds.remaining(hold)));
      else session = await this.#begin(task);
      if (session === undefined) {
        await requeueTasks(
          db,
          [attemptOf(controller, task)],
          'another session works on its group',
          GROUP_BUSY_DELAY_MS,
        );
        return { again: GROUP_BUSY_DELAY_MS };
      }
      this.#running.set(task, session);
      return await this.#act(task, session, hold, log);
    } catch (error) {
      return await this.#failed(task, session, hold, error, log);
    } finally {
      clearTimeout(watchdog);
      this.#running.delete(task);
    }
  }

  /** Server processes of the tasks that run now. */
  running(which: (task: Task) => boolean): number[] {
    return [...this.#running].filter(([task]) => which(task)).map(([, session]) => session.pid);
  }

  async #begin(task: Task): Promise<GroupSession | undefined> {
    return GroupSession.begin(this.#options.sessions, task.groupid, boundsOf(task));
  }

  async #act(
    task: Task,
    session: GroupSession,
    hold: Hold | undefined,
    log: Logger,
  ): Promise<Outcome> {
    const handler = this.#options.handler();
    const nodes = await handler.readNodes(session.client, task);
    const transition = handler.plan(task, nodes, hold?.node ?? null);
    switch (transition.kind) {
      case 'discard':
      case 'fail':
      case 'nothing':
        return this.#answer(task, session, hold, transition, log);
      case 'hold':
        return this.#hold(task, session, hold, nodes, transition, log);
      case 'change':
        return this.#change(task, session, hold, nodes, transition, log);
    }
  }

  /** Ends a task that changes nothing. A hold that is there stays. */
  async #answer(
    task: Task,
    session: GroupSession,
    hold: Hold | undefined,
    transition: Extract<Transition, { kind: 'discard' | 'fail' | 'nothing' }>,
    log: Logger,
  ): Promise<Outcome> {
    const status = ANSWERS[transition.kind];
    const nodeid = transition.kind === 'nothing' ? transition.nodeid : null;
    const end = { status, nodeid, reason: transition.reason };
    const attempts = [attemptOf(this.#options.controller, task)];
    if (hold) await persist(() => endTasks(this.#options.db, attempts, end));
    else {
      await endTasks(session.client, attempts, end);
      await session.commit();
    }
    log.info({ status, reason: transition.reason }, 'task ended without a change');
    return {};
  }

  /** Makes the group's traffic wait, or finds it waiting, and acknowledges the task. */
  async #hold(
    task: Task,
    session: GroupSession,
    held: Hold | undefined,
    nodes: Node[],
    transition: Extract<Transition, { kind: 'hold' }>,
    log: Logger,
  ): Promise<Outcome> {
    const { holds, db, controller } = this.#options;
    const handler = this.#options.handler();
    const hold = held ?? this.#newHold(task, session, nodes, transition.node);
    let reason: string | null = null;
    if (!held) {
      const { client } = session;
      const paused = await handler.pause(
        client,
        transition.node,
        nodes,
        hold.pause,
        task.cooldownMs,
      );
      reason = paused.reason;
      holds.add(hold);
      session.onLost(() => this.#options.onHoldLost(hold));
    }
    if (transition.target) {
      hold.node = { ...hold.node, target: transition.target };
      if (hold.pause !== 'none') {
        const { client } = session;
        await handler.retarget(client, hold.node, nodes, transition.target, task.cooldownMs);
      }
    }
    const attempt = attemptOf(controller, task);
    const { nodeid } = transition.node;
    const remaining = await persist(() => markHolding(db, attempt, nodeid, reason));
    if (remaining === undefined) {
      // Released by an operator, or taken over, while we waited for the locks.
      if (!held && holds.remove(hold)) await session.rollback();
      return {};
    }
    hold.attempts.push(attempt);
    holds.extend(hold, remaining);
    log.info(
      {
        node: formatAddress(hold.node.original),
        target: hold.node.target && formatAddress(hold.node.target),
        remainingMs: remaining,
      },
      held ? 'hold goes on' : 'hold opened',
    );
    return {};
  }

  #newHold(task: Task, session: GroupSession, nodes: Node[], node: Node): Hold {
    return {
      session,
      groupid: task.groupid,
      pause: task.pause ?? this.#options.pause,
      before: nodes,
      node: { nodeid: node.nodeid, original: node.address, target: null },
      attempts: [],
    };
  }

  /** Changes pg_dist_node, ends the task and those of the hold, and commits all of it together. */
  async #change(
    task: Task,
    session: GroupSession,
    hold: Hold | undefined,
    nodes: Node[],
    transition: Extract<Transition, { kind: 'change' }>,
    log: Logger,
  ): Promise<Outcome> {
    const { controller, holds } = this.#options;
    const handler = this.#options.handler();
    const { client } = session;
    if (transition.steps.length === 0) await handler.resume(client);
    for (const step of transition.steps) await handler.apply(client, step, task.cooldownMs);
    const after = await handler.readNodes(client, task);
    const changed = transition.steps.length > 0;
    if (changed) {
      const before = describeGroup(hold?.before ?? nodes, task.groupid);
      await recordChange(client, { before, after: describeGroup(after, task.groupid) });
    }
    const attempt = attemptOf(controller, task);
    const wholly = !transition.followUp || (await addFollowUp(client, task));
    const attempts = [...(hold?.attempts ?? []), ...(wholly ? [attempt] : [])];
    if (!wholly)
      await requeueTasks(client, [attempt], 'the primary has moved; secondaries follow', 0);
    const mine = await completeTasks(client, attempts, {
      nodeid: transition.nodeid ?? primaryOf(after, task.groupid)?.nodeid ?? null,
      reason: changed ? null : 'the primary is the same; its traffic goes on',
    });
    if (!mine) return this.#lostAttempt(task, session, hold, log);
    await session.commit();
    if (hold) holds.remove(hold);
    log.info(
      {
        primary: formatAddress(task.address),
        steps: transition.steps,
        heldBy: hold?.attempts.length,
      },
      changed ? 'pg_dist_node changed' : 'hold ended without a change',
    );
    return transition.followUp ? { again: 0 } : {};
  }

  /** A task of the change is no longer ours: the hold was released. The report itself is a fact. */
  async #lostAttempt(
    task: Task,
    session: GroupSession,
    hold: Hold | undefined,
    log: Logger,
  ): Promise<Outcome> {
    const { db, controller, holds } = this.#options;
    if (hold) holds.remove(hold);
    await session.rollback();
    await requeueTasks(db, [attemptOf(controller, task)], 'its hold was released meanwhile', 0);
    log.warn('the hold was released while the task ran; it is taken again without it');
    return { again: 0 };
  }

  /**
   * After an error nothing of the transaction is left, so a hold ends with it. A lost session leaves
   * its tasks as they are: the sweep that follows gives them back to the queue while their deadline
   * lasts, and it alone can tell whether a commit that got no answer has happened.
   */
  async #failed(
    task: Task,
    session: GroupSession | undefined,
    hold: Hold | undefined,
    error: unknown,
    log: Logger,
  ): Promise<Outcome> {
    const { db, controller, holds } = this.#options;
    const open = hold ?? holds.get(task.groupid);
    if (open) holds.remove(open);
    await session?.rollback();
    log.warn({ err: error, sqlstate: sqlState(error), attempt: task.attempt }, 'task failed');
    const stopping = this.#options.stopping();
    const lost = { lost: true, doubt: true, again: growingDelay(task.attempt) };
    if (isSessionLost(error) || stopping === 'abandon') return lost;
    try {
      const mine = attemptOf(controller, task);
      const earlier = open?.attempts ?? [];
      const failure = { task, mine, hold: earlier, error, stopping: stopping !== undefined };
      return { doubt: true, again: await recordFailure(db, failure) };
    } catch (recording) {
      log.warn(
        { err: recording },
        'the failure could not be recorded; a sweep will see to the task',
      );
      return lost;
    }
  }
}

const ANSWERS = { discard: 'discarded', fail: 'failed', nothing: 'done' } as const;
