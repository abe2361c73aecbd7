import { SessionLostError } from '../errors.js';
import { isVictim, sqlState } from '../postgres/sqlstate.js';
import { Bell } from './bell.js';
import { Interrupter } from './interrupter.js';
import type { LockSessionOptions } from './lock-session-options.js';
import { LockStack } from './lock-stack.js';
import { areKeysOf, hasKeyOf, keysOf, type LockUnit } from './lock-unit.js';
import type { Server } from './server.js';
import { WantList } from './want-list.js';

/**
 * Takes locks in an open transaction, one savepoint a unit, and gives back what others need to go on:
 * see docs/draining.md. What it gave back it wants again at once, behind those it gave it back for.
 */
export class LockSession {
  readonly server: Server;
  readonly pid: number;
  readonly #onActive: () => void;
  readonly #stack: LockStack;
  readonly #interrupter: Interrupter;
  readonly #wanted = new WantList();
  /** Taken away from what it has, and not wanted again yet. */
  #returned: LockUnit[] = [];
  #waiting: { readonly unit: LockUnit; readonly since: number } | undefined;
  /** Processes that cannot go on because of us. */
  #blocked: readonly number[] = [];
  #unwanted: ReadonlySet<string> = new Set();
  /** Processes that wait for what is kept, and it for them: no yield helps there. */
  #deadEnd: readonly number[] = [];
  #running: Promise<void> | undefined;
  #failure: Error | undefined;
  /** True once the transaction has ended, or is about to. */
  #over = false;
  /** Rings when what it has or wants is not what it was. */
  readonly #changed = new Bell();
  #yields = 0;
  #wantedSince = 0;

  constructor({ server, pid, client, marked, onActive }: LockSessionOptions) {
    this.server = server;
    this.pid = pid;
    this.#stack = new LockStack(client, marked);
    this.#interrupter = new Interrupter(server, pid);
    this.#onActive = onActive;
  }

  get waiting(): { readonly unit: LockUnit; readonly since: number } | undefined {
    return this.#waiting;
  }

  /** Since when it has wanted what it has not got, by performance.now(). */
  get wantedSince(): number {
    return this.#wantedSince;
  }

  get active(): boolean {
    return this.#running !== undefined;
  }

  get yields(): number {
    return this.#yields;
  }

  /** The keys of what it has, in the order in which it was taken: the best guess for next time. */
  get order(): string[] {
    return this.#stack.keys;
  }

  /** What it has, wants, or is about to want again. */
  get units(): LockUnit[] {
    return [...this.#stack.units, ...this.#returned, ...this.#wanted.units];
  }

  /** Whether it wants something that it may wait for. */
  get queues(): boolean {
    return this.#returned.length > 0 || this.#wanted.units.some(({ once }) => !once);
  }

  /** Whether some of what it has is not given back. */
  get isKept(): boolean {
    return this.#stack.isKept;
  }

  /** Processes for which it has given up what it wanted, because they wait for what is kept. */
  get deadEnd(): readonly number[] {
    return this.#deadEnd;
  }

  /** Whether it has all of these now. What is not kept can be lost again to somebody it yields to. */
  has(units: readonly LockUnit[]): boolean {
    return areKeysOf(units, this.order);
  }

  /** Wants these too; what it has or wants already is not wanted twice. */
  want(units: readonly LockUnit[]): void {
    if (!this.#wanted.next) this.#wantedSince = performance.now();
    this.#wanted.add(units, [...this.order, ...this.#returned.flatMap(keysOf)]);
    if (this.#over || !this.#wanted.next) return;
    this.#failure = undefined;
    this.#deadEnd = [];
    this.#start();
  }

  /**
   * Resolves to true once it has all of these, to false when they are not wanted any more.
   *
   * @throws the error of the statement that failed; what was taken before it is still there.
   */
  async obtain(units: readonly LockUnit[]): Promise<boolean> {
    while (!this.has(units)) {
      if (this.#failure) throw this.#failure;
      if (!this.#running || !areKeysOf(units, this.units.flatMap(keysOf))) return false;
      await this.#changed.next();
    }
    return true;
  }

  /** These are not given back, nor what was taken before them, until the keeper lets go. */
  keep(units: readonly LockUnit[], keeper: object): void {
    const keys = new Set(units.flatMap(keysOf));
    this.#stack.keep((unit) => hasKeyOf(unit, keys), keeper);
  }

  letGo(keeper: object): void {
    this.#stack.letGo(keeper);
  }

  get canYield(): boolean {
    return !this.#failure && !this.#over && (this.#waiting !== undefined || this.#stack.loose > 0);
  }

  /** Tells of a look that interrupts it if need be; `giveWayTo` must follow when it has. */
  lookedAt(look: Promise<unknown>): void {
    this.#interrupter.lookedAt(look);
  }

  /**
   * Gives back what these processes of its server wait for.
   *
   * @param interrupted true when its statement has been interrupted already
   */
  giveWayTo(blocked: readonly number[], interrupted = false): void {
    if (interrupted) this.#interrupter.hit();
    if (this.#blocked.length > 0 || !(interrupted || this.canYield)) return;
    this.#blocked = blocked;
    this.#yields += 1;
    if (!interrupted) this.#interrupt();
    this.#start();
  }

  /** Stops wanting these, and gives back what of them is not kept. */
  async drop(units: readonly LockUnit[]): Promise<void> {
    const keys = units.flatMap(keysOf);
    this.#unwanted = new Set([...this.#unwanted, ...keys]);
    if (this.#waiting && hasKeyOf(this.#waiting.unit, this.#unwanted)) this.#interrupt();
    this.#start();
    // Not until the rest is there, which may take long.
    while (this.#running && keys.some((key) => this.#unwanted.has(key))) await this.#changed.next();
  }

  /**
   * Sets what the transaction is bounded by: not while a lock is waited for, and again whenever a
   * rollback to a savepoint has taken it back.
   */
  bound(set: () => Promise<void>): void {
    this.#stack.bound(set);
    if (!this.#over) this.#start();
  }

  /** Stops for good: interrupts what waits. */
  async stop(): Promise<void> {
    this.#end(new Error('these locks are not wanted any more'));
    this.#interrupt();
    while (this.#running) await this.#running;
  }

  /** Nothing is had or taken any more. */
  #end(failure: Error): void {
    this.#over = true;
    this.#failure ??= failure;
    this.#forget();
    this.#stack.clear();
    this.#changed.ring();
  }

  #forget(): void {
    this.#wanted.clear();
    this.#returned = [];
    this.#blocked = [];
    this.#unwanted = new Set();
  }

  #interrupt(): void {
    const wait = this.#waiting;
    if (wait) this.#interrupter.interrupt(() => this.#waiting === wait);
  }

  #isAsked(): boolean {
    return this.#over || this.#unwanted.size > 0 || this.#blocked.length > 0;
  }

  #start(): void {
    if (this.#running) return;
    this.#running = this.#run();
    this.#onActive();
  }

  /** Never throws; whoever waits in `obtain` is told of the failure. */
  async #run(): Promise<void> {
    // #running is set by now, and unset at the moment when the work ends.
    await Promise.resolve();
    try {
      for (;;) {
        await this.#interrupter.quiet();
        if (this.#unwanted.size > 0) await this.#discard();
        if (this.#blocked.length > 0) await this.#giveWay();
        await this.#stack.restoreBounds();
        const unit = this.#wanted.next;
        if (unit === undefined || this.#over) return;
        await this.#take(unit);
      }
    } catch (error) {
      this.#failure ??= error instanceof Error ? error : new Error(String(error));
      if (error instanceof SessionLostError) this.#end(error);
      this.#forget();
    } finally {
      this.#running = undefined;
      this.#changed.ring();
    }
  }

  async #take(unit: LockUnit): Promise<void> {
    await this.#stack.mark();
    // Asked meanwhile: nobody would interrupt what is sent only now.
    if (this.#isAsked()) return;
    this.#waiting = { unit, since: performance.now() };
    try {
      await this.#stack.run(unit);
      this.#waiting = undefined;
      if (this.#over) return;
      this.#stack.push(unit);
      this.#wanted.remove(unit);
    } catch (error) {
      this.#waiting = undefined;
      if (error instanceof SessionLostError) throw error;
      if (this.#over) return;
      const isOurs = (await this.#interrupter.quiet()) && sqlState(error) === '57014';
      await this.#stack.undo();
      if (unit.once && sqlState(error) === '55P03') {
        this.#wanted.remove(unit);
        return;
      }
      if (!isOurs && !isVictim(error)) throw error;
      this.#wanted.split();
    } finally {
      this.#changed.ring();
    }
  }

  /** From the last unit downwards, until none of those waits for us any more. */
  async #giveWay(): Promise<void> {
    let blocks: boolean | undefined;
    for (;;) {
      blocks = await this.server.blocks(this.pid, this.#blocked).catch(() => undefined);
      if (blocks === false) break;
      // What there is may have come to be kept meanwhile.
      const [unit] = this.#stack.pop();
      if (unit === undefined) break;
      this.#returned.unshift(unit);
      await this.#stack.undo();
    }
    this.#wanted.split();
    const first = this.#wanted.next;
    // Who waits for what is kept is not let through by this: to queue again would be a deadlock.
    if (blocks && first?.sparing) {
      this.#wanted.remove(first);
      this.#deadEnd = this.#blocked;
    }
    // Who is let through has what we waited for, so that is taken first from now on.
    this.#wanted.insert(this.#returned, this.#wanted.next === first ? 1 : 0);
    this.#returned = [];
    this.#blocked = [];
    this.#changed.ring();
  }

  async #discard(): Promise<void> {
    const unwanted = this.#unwanted;
    this.#returned = this.#stack.popFrom((unit) => hasKeyOf(unit, unwanted));
    if (this.#returned.length > 0) await this.#stack.undo();
    this.#wanted.insert(this.#returned, 0);
    this.#wanted.removeKeys(unwanted);
    this.#returned = [];
    this.#unwanted = new Set([...this.#unwanted].filter((key) => !unwanted.has(key)));
    this.#changed.ring();
  }
}
