import { setTimeout as sleep } from 'node:timers/promises';
import type { Pool, PoolClient } from 'pg';
import { type Logger, OncePerChange } from '../logger.js';
import type { AbstractMPP, AbstractMPPHandler, TrafficControl } from '../mpp/abstract.js';
import { remedyOf } from '../postgres/sqlstate.js';
import { errorText } from '../postgres/session.js';
import { type Claimed, claimTask, othersWait } from '../tasks/claim.js';
import { endTasks, readRelease, readUnfinishedChange, stillHolding } from '../tasks/finish.js';
import { takeBack, Expiry } from '../tasks/sweep.js';
import type { HoldOutcome } from '../tasks/observer.js';
import type { PauseSetting, Task } from '../tasks/task.js';
import { Turn, WakeUp } from '../wait.js';
import { type Hold, Holds, summarize } from './holds.js';
import { Processor } from './processor.js';
import { type Outcome, type Workplace, persistRows } from './work.js';

interface TaskLoopOptions extends Pick<Workplace, 'otherDatabases' | 'verification' | 'observer'> {
  readonly db: Pool;
  readonly sessions: Pool;
  readonly mpp: AbstractMPP;
  readonly handler: AbstractMPPHandler;
  readonly traffic: TrafficControl;
  readonly controller: string;
  readonly pause: PauseSetting;
  readonly maxHolds: number;
  readonly pollMs: number;
  readonly retentionMs: number;
  /** Called when a hold has ended, however, and what became of its tasks is written down. */
  readonly onHoldEnded: () => void;
  readonly logger: Logger;
}

/** How long a stop waits for a commit before it cancels it, in milliseconds. */
const COMMIT_GRACE_MS = 5_000;
const CANCEL_AGAIN_MS = 100;
/** How long the transaction of mpp_release may take after it has ended the session of a hold. */
const RELEASE_COMMIT_MS = 300;

/**
 * The work of the active controller: claim, run, look again. All it knows of the queue is in the
 * table; what it keeps in memory are the open transactions of the groups it holds.
 */
export class TaskLoop {
  readonly #options: TaskLoopOptions;
  readonly #signal = new WakeUp();
  readonly #holds: Holds;
  readonly #processor: Processor;
  /** Groups that something is running for, and what. */
  readonly #busy = new Map<number, Promise<void>>();
  readonly #alarms = new Alarms();
  readonly #expiry: Expiry;
  /** What failed the last time, by step. */
  readonly #trouble = new Map<string, OncePerChange>();
  #handler: AbstractMPPHandler;
  #rebuiltAt: string | null = null;
  #mustInspect = false;
  #suspended = false;
  #finishing = false;
  readonly #interrupt = new AbortController();
  #stopping: 'record' | 'abandon' | undefined;
  #loop: Promise<void> | undefined;

  constructor(options: TaskLoopOptions) {
    this.#options = options;
    this.#expiry = new Expiry({ ...options, signal: this.#interrupt.signal });
    this.#handler = options.handler;
    const onDue = (hold: Hold): void => this.#occupy(hold.groupid, () => this.#expire(hold));
    this.#holds = new Holds(onDue, options.observer);
    this.#processor = new Processor({
      ...options,
      holds: this.#holds,
      changes: new Turn(),
      handler: () => this.#handler,
      signal: this.#interrupt.signal,
      onHoldLost: (hold) => this.#lose(hold),
      stopping: () => this.#stopping,
    });
  }

  start(): void {
    this.#loop ??= this.#run();
    this.#expiry.start();
  }

  /** Something may have happened: look at the table. */
  wake(): void {
    this.#signal.raise();
  }

  /** No new claims until `resume`; the holds stay. */
  suspend(): void {
    this.#suspended = true;
  }

  resume(): void {
    this.#suspended = false;
    this.wake();
  }

  /** From now on takes only what belongs to groups that are held. */
  finish(): void {
    this.#finishing = true;
  }

  /** True while no group is held, and no task runs. */
  get isIdle(): boolean {
    return this.#active().length === 0;
  }

  get heldGroups(): number[] {
    return this.#holds.groups();
  }

  get strategy(): string {
    return this.#handler.strategy;
  }

  /**
   * Ends the work: no new claims, what runs is interrupted, holds are rolled back.
   *
   * @param how `record` writes down that the holds were rolled back; `abandon` leaves their tasks to
   *   the next active controller, which takes them up again while their deadlines last.
   */
  async stop(how: 'record' | 'abandon'): Promise<void> {
    this.#stopping ??= how;
    this.#interrupt.abort(new Error('the controller is to stop'));
    this.wake();
    await Promise.all([this.#loop, this.#expiry.stop()]);
    await this.#settle();
    const reason = how === 'record' ? 'the controller was stopped' : null;
    const outcome = how === 'record' ? 'stopped' : 'lost';
    await Promise.all(this.#holds.all().map((hold) => this.#end(hold, reason, outcome)));
  }

  /** Deletes some of what has been finished for longer than the retention; the rest next time. */
  async prune(): Promise<void> {
    await this.#expiry.prune();
  }

  async #run(): Promise<void> {
    const { pollMs } = this.#options;
    let takeBackAt = 0;
    while (!this.#stopping) {
      this.#options.observer.turned();
      if (!this.#suspended) {
        // By the clock: wake-ups that never cease must not put it off.
        if (this.#mustInspect || performance.now() >= takeBackAt) {
          takeBackAt = performance.now() + pollMs;
          await this.#attempt('lost tasks could not be taken back', () => this.#takeBack());
        }
        const claimed = await this.#attempt('the queue could not be read', async () => {
          await this.#claimAll();
          await this.#endReleased();
        });
        if (!claimed) takeBackAt = 0;
      }
      if ((await this.#signal.wait(pollMs)) === 'timeout') takeBackAt = 0;
    }
  }

  /** Each step by itself: one that fails keeps no other from being done. Says once what fails. */
  async #attempt(failure: string, step: () => Promise<void>): Promise<boolean> {
    try {
      await step();
      this.#trouble.get(failure)?.clear();
      return true;
    } catch (error) {
      const trouble = this.#trouble.get(failure) ?? new OncePerChange();
      this.#trouble.set(failure, trouble);
      const text = `${failure}: ${errorText(error)}; ${remedyOf(error) ?? 'it is tried again'}`;
      trouble.say(text, () => this.#options.logger.warn({ err: error }, text));
      return false;
    }
  }

  async #claimAll(): Promise<void> {
    while (!this.#stopping && !this.#suspended) {
      const claimed = (await this.#claim(false)) ?? (await this.#claim(true));
      if (claimed === undefined) return;
      if (claimed.rebuildAt !== this.#rebuiltAt || this.#mustInspect)
        await this.#inspect(claimed.rebuildAt);
      // The deadline of its group's hold may have passed while it was claimed.
      await this.#busy.get(claimed.task.groupid);
      this.#occupy(claimed.task.groupid, () => this.#process(claimed.task));
    }
  }

  /** @param further whether it may be for a group that is not held. */
  async #claim(further: boolean): Promise<Claimed | undefined> {
    const held = this.#holds.groups();
    if (further && this.#finishing) return undefined;
    if (further ? !(await this.#mayOpen()) : held.length === 0) return undefined;
    return claimTask(this.#options.db, {
      controller: this.#options.controller,
      busy: [...this.#busy.keys()],
      held,
      open: further,
    });
  }

  /** Whether a task of a further group may be taken beside those that are held or running. */
  async #mayOpen(): Promise<boolean> {
    const active = this.#active();
    if (active.length === 0) return true;
    if (active.length >= this.#options.maxHolds) return false;
    if (!(await othersWait(this.#options.db, active))) return false;
    return this.#withSession((session) => this.#handler.canHoldAnother(session));
  }

  #active(): number[] {
    return [...new Set([...this.#busy.keys(), ...this.#holds.groups()])];
  }

  async #process(task: Task): Promise<void> {
    const outcome: Outcome = await this.#processor.run(task);
    if (outcome.mustInspect) this.#mustInspect = true;
    if (outcome.again) this.#options.observer.taskRetried(task.event);
    if (outcome.again !== undefined) this.#alarms.set(() => this.wake(), outcome.again);
    const hold = this.#holds.get(task.groupid);
    if (hold && this.#holds.remaining(hold) <= 0) await this.#expire(hold);
  }

  /** Runs something for a group while nothing else is; then looks at the queue again. */
  #occupy(groupid: number, work: () => Promise<void>): void {
    // A deadline that passes while a task of the group runs is looked at when that ends.
    if (this.#busy.has(groupid)) return;
    const hold = this.#holds.get(groupid);
    const running = work().finally(() => {
      this.#busy.delete(groupid);
      if (hold !== undefined && this.#holds.get(groupid) !== hold) this.#sayHoldEnded();
      this.wake();
    });
    this.#busy.set(groupid, running);
  }

  async #takeBack(): Promise<void> {
    const { db, logger } = this.#options;
    const scope = { busy: [...this.#busy.keys()], held: this.#holds.groups() };
    for (const { id, groupid, status } of await takeBack(db, scope)) {
      logger.info({ task: id, groupid, status }, 'taken back from a lost attempt');
      if (status !== 'pending') this.#sayHoldEnded();
    }
  }

  /** What an operator released, by status alone when the session could not be ended. */
  async #endReleased(): Promise<void> {
    const holds = this.#holds.all().filter(({ groupid }) => !this.#busy.has(groupid));
    if (holds.length === 0) return;
    const still = await stillHolding(
      this.#options.db,
      holds.flatMap(({ attempts }) => attempts),
    );
    for (const hold of holds) {
      if (hold.attempts.some(({ id }) => still.has(id))) continue;
      void this.#logLoss(hold);
      this.#occupy(hold.groupid, () => this.#end(hold, null, 'unknown'));
    }
  }

  async #expire(hold: Hold): Promise<void> {
    if (this.#holds.remaining(hold) > 0) return;
    this.#options.logger.warn({ groupid: hold.groupid }, 'hold ended at its deadline');
    await this.#end(hold, await this.#lateReason(hold), 'deadline');
  }

  async #lateReason({ groupid }: Hold): Promise<string> {
    const task = await readUnfinishedChange(this.#options.db, groupid).catch(() => undefined);
    if (task === undefined) return 'its deadline passed before after_promote was reported';
    return `its deadline passed before task ${task.id} could change pg_dist_node: ${task.reason}`;
  }

  /** Rolls a hold back, and then writes it down if there is something to say. */
  async #end(hold: Hold, reason: string | null, outcome: HoldOutcome | 'unknown'): Promise<void> {
    const { db, logger } = this.#options;
    if (!this.#holds.remove(hold, outcome)) return;
    await hold.session.rollback();
    if (reason === null) return;
    try {
      const summary = summarize(hold, undefined);
      const end = { status: 'rolled_back', reason, ...(summary && { summary }) } as const;
      await persistRows(db, hold.attempts, () => endTasks(db, hold.attempts, end));
    } catch (error) {
      logger.warn({ err: error }, 'the end of a hold could not be recorded; a sweep will do it');
      this.#mustInspect = true;
    }
  }

  #lose(hold: Hold): void {
    if (!this.#holds.remove(hold, 'unknown')) return;
    hold.session.destroy();
    // mpp_release ends the session first and commits the end of the tasks right after it.
    void sleep(RELEASE_COMMIT_MS)
      .then(() => this.#logLoss(hold))
      .then(() => this.#sayHoldEnded());
    this.#mustInspect = true;
    this.wake();
  }

  /** The same line, whether the end of its session is noticed first or that of its tasks. Never throws. */
  async #logLoss(hold: Hold): Promise<void> {
    const { db, logger } = this.#options;
    const reason = await readRelease(db, hold.attempts).catch(() => undefined);
    this.#holds.tellEnd(hold, reason === undefined ? 'lost' : 'released');
    const fields = { groupid: hold.groupid, sessionPid: hold.session.pid };
    if (reason === undefined) logger.warn(fields, 'hold lost');
    else logger.info({ ...fields, reason }, 'hold ended by an operator');
  }

  #sayHoldEnded(): void {
    if (!this.#stopping) this.#options.onHoldEnded();
  }

  async #inspect(rebuildAt: string | null): Promise<void> {
    this.#handler = await this.#withSession((session) => this.#options.mpp.inspect(session));
    this.#rebuiltAt = rebuildAt;
    this.#mustInspect = false;
  }

  async #withSession<T>(work: (session: PoolClient) => Promise<T>): Promise<T> {
    const session = await this.#options.db.connect();
    try {
      const result = await work(session);
      session.release();
      return result;
    } catch (error) {
      // A session that has timed out may have its statement running still.
      session.release(true);
      throw error;
    }
  }

  /** Waits for running tasks: those that open a hold are cancelled, a commit gets a moment. */
  async #settle(): Promise<void> {
    const settled = Promise.all(this.#busy.values()).then(() => true);
    const graceEnd = performance.now() + COMMIT_GRACE_MS;
    do {
      // Again and again: a task may have been between two statements.
      const late = performance.now() > graceEnd;
      await this.#cancel((task) => late || task.event !== 'after_promote');
    } while (!(await Promise.race([settled, this.#alarms.after(CANCEL_AGAIN_MS)])));
    this.#alarms.clear();
  }

  async #cancel(which: (task: Task) => boolean): Promise<void> {
    const pids = this.#processor.running(which);
    if (pids.length === 0) return;
    await this.#options.db
      .query('SELECT pg_cancel_backend(pid) FROM unnest($1::integer[]) AS pid', [pids])
      .catch(() => undefined);
  }
}

/** Timers that end together. */
class Alarms {
  readonly #timers = new Set<NodeJS.Timeout>();

  /** Calls `ring` once, after `ms`. */
  set(ring: () => void, ms: number): void {
    const timer = setTimeout(() => {
      this.#timers.delete(timer);
      ring();
    }, ms);
    this.#timers.add(timer);
  }

  /** Resolves after `ms`; not after `clear`. */
  async after(ms: number): Promise<false> {
    return new Promise((resolve) => this.set(() => resolve(false), ms));
  }

  clear(): void {
    for (const timer of this.#timers) clearTimeout(timer);
    this.#timers.clear();
  }
}
