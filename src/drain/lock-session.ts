import { SessionLostError } from '../errors.js';
import { errorText } from '../postgres/session.js';
import { isVictim, sqlState } from '../postgres/sqlstate.js';
import { Interrupter } from './interrupter.js';
import type { LockSessionOptions } from './lock-session-options.js';
import { LockStack } from './lock-stack.js';
import { keysOf, partsOf, type LockUnit } from './lock-unit.js';
import type { Server } from './server.js';
import { vertexOf, type Vertex } from './wait-graph.js';

/**
 * Takes locks in an open transaction, one savepoint a unit, and gives back what others need to go on:
 * see docs/draining.md. What it gave back it wants again at once, behind those it gave it back for.
 */
export class LockSession {
  readonly server: Server;
  readonly pid: number;
  readonly vertex: Vertex;
  readonly #onActive: () => void;
  readonly #stack: LockStack;
  readonly #interrupter: Interrupter;
  #wanted: LockUnit[] = [];
  /** For each keeper, so many of what it has are not given back. */
  readonly #floors = new Map<object, number>();
  #waiting: { readonly unit: LockUnit; readonly since: number } | undefined;
  /** Processes that cannot go on because of us. */
  #blocked: readonly number[] = [];
  #unwanted: ReadonlySet<string> = new Set();
  #running: Promise<void> | undefined;
  #failure: Error | undefined;
  #bounds: { readonly set: () => Promise<void>; after: number } | undefined;
  /** True once the transaction has ended, or is about to. */
  #over = false;
  #listeners: (() => void)[] = [];
  #yields = 0;
  #wantedSince = 0;

  constructor({ server, pid, client, onActive }: LockSessionOptions) {
    this.server = server;
    this.pid = pid;
    this.vertex = vertexOf(server.key, pid);
    this.#stack = new LockStack(client);
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

  /** Whether it has all of these now. What is not kept can be lost again to somebody it yields to. */
  has(units: readonly LockUnit[]): boolean {
    const taken = new Set(this.order);
    return units.flatMap(keysOf).every((key) => taken.has(key));
  }

  /** Wants these too; what it has or wants already is not wanted twice. */
  want(units: readonly LockUnit[]): void {
    const known = new Set([...this.order, ...this.#wanted.flatMap(keysOf)]);
    const isNew = (unit: LockUnit): boolean => !keysOf(unit).some((key) => known.has(key));
    if (this.#wanted.length === 0) this.#wantedSince = performance.now();
    this.#wanted.push(
      ...units.flatMap((unit) => (isNew(unit) ? unit : partsOf(unit).filter(isNew))),
    );
    if (this.#over || this.#wanted.length === 0) return;
    this.#failure = undefined;
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
      if (!this.#running) return false;
      await new Promise<void>((resolve) => this.#listeners.push(resolve));
    }
    return true;
  }

  /** These are not given back, nor what was taken before them, until the keeper lets go. */
  keep(units: readonly LockUnit[], keeper: object): void {
    const keys = new Set(units.flatMap(keysOf));
    const height = this.#stack.heightOf((unit) => keysOf(unit).some((key) => keys.has(key)));
    this.#floors.set(keeper, Math.max(this.#floors.get(keeper) ?? 0, height));
  }

  letGo(keeper: object): void {
    this.#floors.delete(keeper);
  }

  /** So many of what it has are not given back. */
  get #floor(): number {
    return Math.max(0, ...this.#floors.values());
  }

  get canYield(): boolean {
    if (this.#failure || this.#over) return false;
    return this.#waiting !== undefined || this.#stack.depth > this.#floor;
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
    this.#unwanted = new Set([...this.#unwanted, ...units.flatMap(keysOf)]);
    if (this.#waiting && this.#isUnwanted(this.#waiting.unit)) this.#interrupt();
    this.#start();
    await this.#running?.catch(() => undefined);
  }

  /**
   * Sets what the transaction is bounded by: not while a lock is waited for, and again whenever a
   * rollback to a savepoint has taken it back.
   */
  bound(set: () => Promise<void>): void {
    this.#bounds = { set, after: -1 };
    if (!this.#over) this.#start();
  }

  async #restoreBounds(): Promise<void> {
    const bounds = this.#bounds;
    if (!bounds || bounds.after === this.#stack.rollbacks) return;
    bounds.after = this.#stack.rollbacks;
    await bounds.set();
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
    this.#wanted = [];
    this.#blocked = [];
    this.#unwanted = new Set();
    this.#stack.clear();
    this.#tell();
  }

  #interrupt(): void {
    const wait = this.#waiting;
    if (wait) this.#interrupter.interrupt(() => this.#waiting === wait);
  }

  #isAsked(): boolean {
    return this.#over || this.#unwanted.size > 0 || this.#blocked.length > 0;
  }

  #isUnwanted(unit: LockUnit): boolean {
    return keysOf(unit).some((key) => this.#unwanted.has(key));
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
        await this.#restoreBounds();
        const [unit] = this.#wanted;
        if (unit === undefined || this.#over) return;
        await this.#take(unit);
      }
    } catch (error) {
      const failure = error instanceof Error ? error : new Error(String(error));
      if (error instanceof SessionLostError) this.#end(failure);
      this.#failure ??= failure;
      this.#wanted = [];
      this.#blocked = [];
      this.#unwanted = new Set();
    } finally {
      this.#running = undefined;
      this.#tell();
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
      this.#wanted = this.#wanted.filter((other) => other !== unit);
    } catch (error) {
      this.#waiting = undefined;
      // Without a SQLSTATE the session is lost, and its transaction with it.
      if (sqlState(error) === undefined)
        throw new SessionLostError(
          `a session that takes locks was lost: ${errorText(error)}`,
          error,
        );
      if (this.#over) return;
      const isOurs = (await this.#interrupter.quiet()) && sqlState(error) === '57014';
      await this.#stack.undo();
      if (unit.once && sqlState(error) === '55P03') {
        this.#wanted = this.#wanted.filter((other) => other !== unit);
        return;
      }
      if (!isOurs && !isVictim(error)) throw error;
      this.#wanted = this.#wanted.flatMap(partsOf);
    } finally {
      this.#tell();
    }
  }

  /** From the last unit downwards, until none of those waits for us any more. */
  async #giveWay(): Promise<void> {
    const returned: LockUnit[] = [];
    for (;;) {
      const blocks = await this.server.blocks(this.pid, this.#blocked).catch(() => true);
      // What there is may have come to be kept meanwhile.
      if (!blocks || this.#stack.depth <= this.#floor) break;
      returned.unshift(...(await this.#stack.giveBack(this.#stack.depth - 1)));
    }
    // Who is let through has what we waited for, so that is taken first from now on.
    const [first, ...rest] = this.#wanted;
    const next = first ? [first, ...returned, ...rest] : returned;
    this.#wanted = next.flatMap(partsOf);
    this.#blocked = [];
  }

  async #discard(): Promise<void> {
    this.#wanted = this.#wanted.filter((unit) => !this.#isUnwanted(unit));
    const first = this.#stack.firstFrom(this.#floor, (unit) => this.#isUnwanted(unit));
    if (first >= 0) {
      const returned = await this.#stack.giveBack(first);
      this.#wanted.unshift(...returned.filter((unit) => !this.#isUnwanted(unit)));
    }
    this.#unwanted = new Set();
  }

  #tell(): void {
    const listeners = this.#listeners;
    this.#listeners = [];
    for (const listener of listeners) listener();
  }
}
