import type { ClientBase } from 'pg';
import { SessionLostError } from '../errors.js';
import { isVictim, sqlState } from '../postgres/sqlstate.js';
import { within, type Condition } from '../wait.js';
import { Interrupter, type Server } from './server.js';
import { covers, type Lock } from './lock.js';
import { Savepoints } from './savepoints.js';

/** What the owner of a session knows of the locks that the session has. */
export interface LockOwner {
  /** Whether a hold needs it; what is no longer needed is released as soon as it can be. */
  isHeld(lock: Lock): boolean;
  /** Whether it must not be yielded. */
  isKept(lock: Lock): boolean;
}

interface LockSessionOptions {
  readonly server: Server;
  /** The server process. */
  readonly pid: number;
  /** The session; a function, so that it can refuse once its transaction has ended. */
  readonly client: () => ClientBase;
  /** True when the transaction has FIRST_SAVEPOINT already. */
  readonly isFirstSet?: boolean;
  readonly owner: LockOwner;
  /** Notified at each change of what it has and waits for. */
  readonly condition: Condition;
  /** Called when it begins to take locks. */
  readonly onActive: () => void;
}

/** Locks that are asked for together, in one message. */
interface Request {
  readonly locks: readonly Lock[];
  /** True when it is dropped rather than waited for. */
  readonly nowait: boolean;
}

/**
 * One transaction that takes locks, a savepoint for each, and yields those that block a session which it
 * waits for itself: see docs/locking.md. What it yielded it queues for again at once, behind the sessions
 * that it yielded to.
 */
export class LockSession {
  readonly server: Server;
  readonly pid: number;
  readonly #owner: LockOwner;
  readonly #onActive: () => void;
  readonly #savepoints: Savepoints;
  readonly #interrupter: Interrupter;
  /** The next one first. */
  #requests: Request[] = [];
  /** Popped from the savepoints, and not asked for again yet. */
  #yielded: Lock[] = [];
  #waiting: { readonly locks: readonly Lock[]; readonly since: number } | undefined;
  /** Processes that wait for this session, and it for them. */
  #blocked: readonly number[] = [];
  #mustRelease = false;
  #isReleasing = false;
  #postponed: Request | undefined;
  /** Locks that were given up because their blockers wait for what this session keeps. */
  #unresolvable: readonly Lock[] = [];
  #running: Promise<void> | undefined;
  #failure: Error | undefined;
  /** True once the transaction has ended, or is about to. */
  #isOver = false;
  readonly #condition: Condition;
  #yields = 0;
  #waitsSince = 0;

  constructor(options: LockSessionOptions) {
    const { server, pid, client, isFirstSet, owner, condition, onActive } = options;
    this.server = server;
    this.pid = pid;
    this.#owner = owner;
    this.#savepoints = new Savepoints(client, isFirstSet ?? false);
    this.#interrupter = new Interrupter(server, pid);
    this.#condition = condition;
    this.#onActive = onActive;
  }

  /** What it waits for now, and since when, by performance.now(). */
  get waiting(): { readonly locks: readonly Lock[]; readonly since: number } | undefined {
    return this.#waiting;
  }

  /** Since when it has been waiting for any lock, yields included. */
  get waitsSince(): number {
    return this.#waitsSince;
  }

  get isActive(): boolean {
    return this.#running !== undefined;
  }

  get isOver(): boolean {
    return this.#isOver;
  }

  /** Why it stopped taking locks; undefined again once it is asked for others. */
  get failure(): Error | undefined {
    return this.#failure;
  }

  get yields(): number {
    return this.#yields;
  }

  get unresolvable(): readonly Lock[] {
    return this.#unresolvable;
  }

  /** In the order in which they were taken. */
  get taken(): Lock[] {
    return this.#savepoints.entries.flat();
  }

  /** What it waits for, will wait for, or is about to queue for again. */
  get pending(): Lock[] {
    return [...this.#yielded, ...this.#requests.flatMap(({ locks }) => locks)];
  }

  /** Whether it may have to wait. */
  get isQueueing(): boolean {
    return this.#yielded.length > 0 || this.#requests.some(({ nowait }) => !nowait);
  }

  /** Whether it has locks that it must not yield. */
  get isKept(): boolean {
    return this.#floor > 0;
  }

  has(lock: Lock): boolean {
    return this.#savepoints.entries.some((locks) => locks.some((one) => covers(one, lock)));
  }

  /** Asks for these, in one message until a blocker turns up. What it has or waits for is not asked for twice. */
  take(locks: readonly Lock[], nowait = false): void {
    const waited = [
      ...this.#yielded,
      ...this.#requests.filter((r) => !r.nowait).flatMap((r) => r.locks),
    ];
    const missing = locks.filter(
      (lock) => !this.has(lock) && !waited.some((other) => other.key === lock.key),
    );
    if (missing.length === 0) return;
    if (this.#requests.length === 0) this.#waitsSince = performance.now();
    this.#requests.push({ locks: missing, nowait });
    if (this.#isOver) return;
    this.#failure = undefined;
    this.#unresolvable = this.#unresolvable.filter((lock) => !missing.includes(lock));
    this.#start();
  }

  /**
   * Waits until it has all of these.
   *
   * @returns false when one of them is not asked for any more.
   * @throws the error of the statement that failed; what was taken before it is still there.
   */
  async taking(locks: readonly Lock[]): Promise<boolean> {
    for (;;) {
      if (locks.every((lock) => this.has(lock))) return true;
      if (this.#failure) throw this.#failure;
      const pending = new Set(this.pending.map(({ key }) => key));
      if (!this.#running || locks.some((lock) => !this.has(lock) && !pending.has(lock.key)))
        return false;
      await this.#condition.changed();
    }
  }

  /** Whether it has locks, or a place in a queue, that it may yield. */
  get canYield(): boolean {
    if (this.#failure || this.#isOver) return false;
    return this.#waiting !== undefined || this.#savepoints.entries.length > this.#floor;
  }

  /** Tells of a query that interrupts it if it is in a cycle; `yieldTo` must follow when it has. */
  expect(snapshot: Promise<unknown>): void {
    this.#interrupter.expect(snapshot);
  }

  /**
   * Yields what these processes of its server wait for.
   *
   * @param isInterrupted true when its statement has been interrupted already
   */
  yieldTo(blocked: readonly number[], isInterrupted = false): void {
    if (isInterrupted) this.#interrupter.hit();
    if (this.#blocked.length > 0 || !(isInterrupted || this.canYield)) return;
    this.#blocked = blocked;
    this.#yields += 1;
    if (!isInterrupted) this.#interrupt();
    this.#start();
  }

  /** Queues for what it waits for after all else that it is asked for. */
  postpone(): void {
    const [first] = this.#requests;
    if (this.#waiting === undefined || first === undefined || this.#requests.length < 2) return;
    this.#postponed = first;
    this.#interrupt();
  }

  /** Releases what its owner does not hold any more, as far as nothing that is kept was taken later. */
  async release(): Promise<void> {
    if (this.#isOver) return;
    this.#mustRelease = true;
    if (this.#waiting?.locks.some((lock) => !this.#owner.isHeld(lock))) this.#interrupt();
    this.#start();
    // Not until the rest is there, which may take long.
    await this.#condition.until(() => !this.#running || !(this.#mustRelease || this.#isReleasing));
  }

  /**
   * Sets what the transaction is bounded by: not while it waits for a lock, and again whenever a
   * rollback to a savepoint has taken it back.
   */
  bound(set: () => Promise<void>): void {
    this.#savepoints.bound(set);
    if (!this.#isOver) this.#start();
  }

  /** Stops for good: interrupts what waits. */
  async stop(): Promise<void> {
    this.#end(new Error('these locks are not needed any more'));
    this.#interrupt();
    while (this.#running) await this.#running;
  }

  /** The session broke: nothing is locked any more. */
  lose(): void {
    this.#end(new SessionLostError('a session that takes locks was lost'));
  }

  get #floor(): number {
    const { entries } = this.#savepoints;
    return entries.findLastIndex((locks) => locks.some((lock) => this.#owner.isKept(lock))) + 1;
  }

  #end(failure: Error): void {
    this.#isOver = true;
    this.#failure ??= failure;
    this.#forget();
    this.#savepoints.clear();
    this.#condition.notify();
  }

  #forget(): void {
    this.#isReleasing = false;
    this.#requests = [];
    this.#yielded = [];
    this.#blocked = [];
    this.#mustRelease = false;
  }

  #interrupt(): void {
    const wait = this.#waiting;
    if (wait) this.#interrupter.interrupt(() => this.#waiting === wait);
  }

  /** A function: the state may change while a statement runs. */
  #hasEnded(): boolean {
    return this.#isOver;
  }

  #isAsked(): boolean {
    return this.#isOver || this.#mustRelease || this.#blocked.length > 0;
  }

  #start(): void {
    if (this.#running) return;
    this.#running = this.#run();
    this.#onActive();
  }

  /** Never throws; `taking` throws the failure. */
  async #run(): Promise<void> {
    // #running is set by now, and unset at the moment when the work ends.
    await Promise.resolve();
    try {
      for (;;) {
        await this.#interrupter.quiet();
        if (this.#mustRelease) await this.#releaseUnheld();
        if (this.#blocked.length > 0) await this.#yield();
        await this.#savepoints.restoreBounds();
        const [request] = this.#requests;
        if (request === undefined || this.#isOver) return;
        await this.#takeNext(request);
      }
    } catch (error) {
      this.#failure ??= error instanceof Error ? error : new Error(String(error));
      if (error instanceof SessionLostError) this.#end(error);
      this.#forget();
    } finally {
      this.#running = undefined;
      this.#condition.notify();
    }
  }

  async #takeNext(request: Request): Promise<void> {
    const { locks, nowait } = request;
    await this.#savepoints.mark();
    // Asked for something else meanwhile: a statement that is sent only now would not be interrupted.
    if (this.#isAsked()) return;
    this.#waiting = { locks, since: performance.now() };
    try {
      await this.#savepoints.run(textOf(request));
      this.#waiting = undefined;
      if (this.#hasEnded()) return;
      this.#savepoints.push(locks);
      this.#remove(request);
    } catch (error) {
      this.#waiting = undefined;
      if (error instanceof SessionLostError) throw error;
      if (this.#hasEnded()) return;
      const isInterrupted = (await this.#interrupter.quiet()) && sqlState(error) === '57014';
      await this.#savepoints.undo();
      if (nowait && sqlState(error) === '55P03') {
        this.#remove(request);
        return;
      }
      if (!isInterrupted && !isVictim(error)) throw error;
      if (this.#postponed === request) {
        this.#remove(request);
        this.#requests.push(request);
      }
      this.#split();
    } finally {
      this.#postponed = undefined;
      this.#condition.notify();
    }
  }

  /** From the last savepoint downwards, until none of those processes waits for this session any more. */
  async #yield(): Promise<void> {
    let isBlocking: boolean | undefined;
    for (;;) {
      isBlocking = await this.server.blocks(this.pid, this.#blocked).catch(() => undefined);
      if (isBlocking === false) break;
      // More may have come to be kept meanwhile.
      const depth = this.#savepoints.entries.length - 1;
      if (depth < this.#floor) break;
      this.#yielded.unshift(...this.#savepoints.popTo(depth));
      await this.#savepoints.undo();
    }
    this.#split();
    const [first] = this.#requests;
    // Processes that wait for what is kept are not let through by a yield: to queue again would be a deadlock.
    if (isBlocking && this.isKept && first) {
      this.#remove(first);
      this.#unresolvable = [...this.#unresolvable, ...first.locks];
    }
    // A process that was let through has what this session waited for, so that is taken first from now on.
    const place = first && this.#requests[0] === first ? 1 : 0;
    this.#requests.splice(place, 0, ...this.#yielded.map(waitFor));
    this.#yielded = [];
    this.#blocked = [];
    this.#condition.notify();
  }

  async #releaseUnheld(): Promise<void> {
    this.#mustRelease = false;
    this.#isReleasing = true;
    const isHeld = (lock: Lock): boolean => this.#owner.isHeld(lock);
    const floor = this.#floor;
    const depth = this.#savepoints.entries.findIndex(
      (locks, index) => index >= floor && !locks.every(isHeld),
    );
    if (depth >= 0) {
      this.#yielded = this.#savepoints.popTo(depth);
      await this.#savepoints.undo();
    }
    this.#requests = [...this.#yielded.map(waitFor), ...this.#requests].flatMap((request) => {
      const locks = request.locks.filter(isHeld);
      return locks.length > 0 ? [{ ...request, locks }] : [];
    });
    this.#yielded = [];
    this.#isReleasing = false;
    this.#condition.notify();
  }

  #remove(request: Request): void {
    this.#requests = this.#requests.filter((other) => other !== request);
  }

  /** After a blocker turned up: one by one from now on, and without what was to be had at once. */
  #split(): void {
    this.#requests = this.#requests
      .filter(({ nowait }) => !nowait)
      .flatMap((request) => (request.locks.length > 1 ? request.locks.map(waitFor) : [request]));
  }
}

function waitFor(lock: Lock): Request {
  return { locks: [lock], nowait: false };
}

function textOf({ locks, nowait }: Request): string {
  return locks.map(({ text, nowait: instead }) => (nowait && instead) || text).join(';\n');
}

/** A server that does not let a statement be interrupted in this time does not answer, in milliseconds. */
const STOP_MS = 1_000;

/** @returns false when it takes longer than a server that answers would. Never throws. */
export async function inTime(work: Promise<unknown>): Promise<boolean> {
  const done = work.then(
    () => true,
    () => true,
  );
  return within(STOP_MS, done, false);
}
