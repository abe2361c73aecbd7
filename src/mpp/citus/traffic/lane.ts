import type { DatabaseStateError } from '../../../errors.js';
import type { LockSession } from '../../../drain/lock-session.js';
import type { LockUnit } from '../../../drain/lock-unit.js';
import { obtain } from '../../../drain/lock-team.js';
import type { Watch } from '../../../drain/watch.js';
import { within } from '../../../within.js';
import type { LaneOrder, OwnLocks } from './lane-order.js';
import type { TrafficNode } from './node.js';
import { LaneLocks, type Held } from './lane-locks.js';
import { LaneSession } from './lane-session.js';
import { LaneTargets } from './lane-targets.js';
import type { SharedLocks } from './shared-locks.js';
import { doorsOf, isGone, notLockable, readersOf, writersOf, type Targets } from './targets.js';

/** How soon a lock is there that nobody has, in milliseconds; a busy server may take longer. */
const AT_ONCE_MS = 5;
/** A table or shard may be dropped between a look and the lock; so often what there is is read again. */
const GONE_TRIES = 3;

/** One node's part in a hold: what enters through this node and was asked to wait, waits. */
export class Lane {
  readonly node: TrafficNode;
  readonly #watch: Watch;
  readonly #order: LaneOrder;
  readonly #own: LaneSession;
  /** By performance.now(). */
  #patientUntil = Infinity;
  readonly #over = new AbortController();
  readonly #locks: LaneLocks;
  #impatience: NodeJS.Timeout | undefined;
  readonly #targets: LaneTargets;
  #reason: string | null = null;
  #kept = false;

  /** @param own the group's own session, on the coordinator; on other nodes the lane opens one. */
  constructor(node: TrafficNode, watch: Watch, order: LaneOrder, own?: OwnLocks) {
    this.node = node;
    this.#watch = watch;
    this.#order = order;
    this.#own = new LaneSession(node, watch, order, this.#over.signal, own);
    this.#locks = new LaneLocks(order, this.#over.signal);
    this.#targets = new LaneTargets(node.targets, order.groupid);
  }

  /** A sentence when less waits than was asked for, else null. */
  get reason(): string | null {
    return this.#reason;
  }

  /** How often its sessions have given way while they had to do with it. */
  get yields(): number {
    return this.#locks.yields;
  }

  /** True while what was taken makes traffic wait. */
  get isHeld(): boolean {
    return this.#kept;
  }

  /** True when it has all its locks at this moment, or has been left out. */
  get complete(): boolean {
    if (this.#over.signal.aborted) return true;
    return this.#targets.upToDate && this.#locks.complete;
  }

  /** Opens the sessions that it will need, and reads what there is to lock. */
  async prepare(): Promise<void> {
    const { pause, planned } = this.#order;
    const opens = pause === 'writes' && !this.#own.commits;
    const joining = planned
      ? this.#joinIfNeeded()
      : Promise.all([this.#targets.guess(), this.#joinInForce()]);
    await Promise.all([opens ? this.#own.open() : undefined, joining]);
  }

  async #joinIfNeeded(): Promise<void> {
    const { tables, shared } = await this.#targets.read();
    const needed = this.#order.pause === 'all' ? tables : this.#own.coversShared ? [] : shared;
    if (needed.length > 0) await this.#locks.join(this.node.shared);
  }

  /** Without a look at what is to be locked, and whether somebody is in the way: somebody is. */
  async #joinInForce(): Promise<void> {
    const { shared, gate, holds } = this.node;
    const all = this.#order.pause === 'all';
    if (all || holds === 0) await this.#locks.joinInForce(all ? shared : gate);
  }

  /**
   * Takes the locks: tables, then shards.
   *
   * @throws DatabaseStateError when this role may not lock here or there is no room for the locks;
   *   the error of a statement that failed.
   */
  async take(): Promise<void> {
    if (this.#over.signal.aborted) return;
    this.#patientUntil = Math.min(this.#patientUntil, performance.now() + this.#order.cooldownMs);
    for (let attempt = 1; ; attempt += 1) {
      try {
        await this.#takeAll();
        return;
      } catch (error) {
        // What was remembered may also be somebody else's by now.
        if (attempt === GONE_TRIES || !(isGone(error) || this.#targets.isGuess)) throw error;
        this.#locks.forget();
        this.#targets.forget();
      }
    }
  }

  async #takeAll(): Promise<void> {
    const { pause } = this.#order;
    const { lockSpace } = this.node;
    let targets = this.#targets.found ?? (await this.#targets.read());
    let refusal = this.#refusal(targets);
    if (refusal && this.#targets.isGuess) {
      targets = await this.#targets.read();
      refusal = this.#refusal(targets);
    }
    const mayNot = refusal?.code === 'NOT_OWNER' && this.#own.coversShared;
    if (refusal && !mayNot) throw refusal;
    if (refusal && pause === 'all') this.#reason = `writes wait, reads do not: ${refusal.message}`;
    lockSpace.claim(this, targets.shards.length);
    const all = pause === 'all' && !refusal && (await this.#takeTables(targets));
    // Who can touch no table can touch no shard: only what commits the change needs those, too.
    if (!all || this.#own.commits) await this.#takeWrites(targets, all || mayNot);
    this.#targets.doubt();
  }

  #refusal(targets: Targets): DatabaseStateError | undefined {
    const { lockSpace, server } = this.node;
    const locksTaken = Math.max(targets.locksTaken, lockSpace.claimedBeside(this));
    return notLockable({ ...targets, locksTaken }, this.#order.groupid, server.name);
  }

  /**
   * Resolves once it has again what it had to yield, and what came to the group while it waited: a
   * table that was made, a shard that was moved.
   */
  async settle(): Promise<void> {
    if (this.#over.signal.aborted) return;
    try {
      if (!this.#targets.upToDate) this.#locks.retarget(await this.#targets.renew());
      for (const held of this.#locks.held) await this.#regain(held);
    } catch (error) {
      if (!isGone(error)) throw error;
      this.#locks.forget();
      this.#targets.forget();
      await this.take();
    }
  }

  async #regain(held: Held): Promise<void> {
    if (held.locks.has(held.units)) return;
    if (!held.sparing) return obtain(held.locks, held.units);
    const trying = this.#locks.trying(this.#patientUntil);
    const inTheWay = await held.sparing.tryFor(held.units, trying);
    if (inTheWay === null) return;
    this.#locks.forgetOne(held);
    if (held.sparing === this.node.gate) return this.#leave(this.node.gate);
    this.#sayReadsGoOn(inTheWay);
    const { found } = this.#targets;
    if (found) await this.#takeWrites(found, false);
  }

  /** Nothing is given back from now on; whom only the drain kept waiting goes on. */
  async keep(): Promise<void> {
    if (this.#over.signal.aborted) return;
    clearTimeout(this.#impatience);
    this.#watch.regainPatience(this.#locks);
    this.#locks.keep(this);
    this.#kept = true;
    this.node.holds += 1;
    await this.#leave(this.node.gate);
  }

  /** The hold may last so many milliseconds from now. */
  async extend(remainingMs: number): Promise<void> {
    this.#locks.extend(remainingMs);
    await this.#own.extend(remainingMs);
  }

  /** Lets the traffic of this node go on. */
  async release(): Promise<void> {
    clearTimeout(this.#impatience);
    this.#watch.regainPatience(this.#locks);
    this.node.lockSpace.give(this);
    if (this.#kept) this.node.holds -= 1;
    this.#kept = false;
    this.#over.abort(new Error('this part of the hold was given up'));
    this.#locks.forget();
    await Promise.all([
      this.#leave(this.node.gate),
      this.#leave(this.node.shared),
      this.#own.release(),
    ]);
  }

  /** The hold goes on without this node. */
  async leaveOut(why: string): Promise<void> {
    if (this.#over.signal.aborted) return;
    this.#reason = `what enters through ${this.node.server.name} does not wait: ${why}`;
    await this.release();
  }

  async #takeTables(targets: Targets): Promise<boolean> {
    if (targets.tables.length === 0) return true;
    const inTheWay = await this.#tryFor(this.node.shared, targets, ({ tables }) =>
      readersOf(tables),
    );
    if (inTheWay === null) return true;
    this.#sayReadsGoOn(inTheWay);
    return false;
  }

  #sayReadsGoOn(inTheWay: string): void {
    const where = this.node.server.name;
    this.#reason = `writes wait, reads do not: in the way on ${where} was ${inTheWay}`;
  }

  async #takeWrites(targets: Targets, tablesDone: boolean): Promise<void> {
    this.#over.signal.throwIfAborted();
    const patienceMs = this.#patientUntil - performance.now();
    clearTimeout(this.#impatience);
    this.#impatience = setTimeout(() => this.#losePatience(), Math.max(0, patienceMs));
    const own = await this.#own.open();
    const keptOf = ({ shared }: Targets): readonly string[] =>
      own.coversShared || tablesDone ? [] : shared;
    const keptUnits = (found: Targets): LockUnit[] => writersOf(keptOf(found));
    const keeping = this.#locks.holdShared(this.node.shared, keptUnits, targets);
    keeping.catch(() => undefined);
    const units = own.unitsFor(targets);
    if (!tablesDone && !(await this.#takeAtOnce(own.locks, units))) {
      await own.locks.drop(units);
      await this.#closeDoors(targets, (found) => {
        const locked = new Set([...this.node.shared.things, ...keptOf(found)]);
        return doorsOf(found.tables.filter((table) => !locked.has(table)));
      });
    }
    const holding = this.#locks.hold(own.locks, own.unitsFor, targets);
    await Promise.all([keeping, holding]);
  }

  #losePatience(): void {
    this.#watch.losePatience(this.#locks);
    // Those in the way are ended from now on, so nobody else need be kept out.
    const { gate } = this.node;
    if (this.#locks.held.some(({ sparing }) => sparing === gate)) void this.#leave(gate);
  }

  /** Where nobody is in the way there is no need for doors. */
  async #takeAtOnce(locks: LockSession, units: readonly LockUnit[]): Promise<boolean> {
    locks.want(units);
    const taken = locks.obtain(units);
    taken.catch(() => undefined);
    for (;;) {
      const done = await within(AT_ONCE_MS, taken, undefined);
      if (done !== undefined) return done;
      if (await this.node.server.isBlocked(locks.pid).catch(() => true)) return false;
    }
  }

  /**
   * Keeps new writers from all tables of the group until those in the middle are through. Not where
   * another group is held: its writers wait inside these doors, for as long as that hold lasts.
   */
  async #closeDoors(targets: Targets, unitsFor: Held['unitsFor']): Promise<void> {
    const { gate, holds } = this.node;
    if (holds > 0 || unitsFor(targets).length === 0) return;
    // Who is in the way of a door need not be in the way of the hold: no reason to give.
    if ((await this.#tryFor(gate, targets, unitsFor)) !== null) await this.#leave(gate);
  }

  async #tryFor(
    common: SharedLocks,
    targets: Targets,
    unitsFor: Held['unitsFor'],
  ): Promise<string | null> {
    return this.#locks.tryFor(common, unitsFor, targets, this.#patientUntil);
  }

  async #leave(common: SharedLocks): Promise<void> {
    await this.#locks.leave(common, this);
  }
}
