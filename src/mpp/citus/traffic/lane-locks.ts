import type { LockSession } from '../../../drain/lock-session.js';
import { LockTeam, obtain } from '../../../drain/lock-team.js';
import type { LockUnit } from '../../../drain/lock-unit.js';
import type { LaneOrder } from './lane-order.js';
import type { Share, SharedLocks, TryOptions } from './shared-locks.js';
import type { Targets } from './targets.js';

type UnitsFor = (targets: Targets) => LockUnit[];

/** Locks that a lane has, or is about to have. */
export interface Held {
  readonly locks: LockSession | LockTeam;
  /** What of the targets it has locked. */
  readonly unitsFor: UnitsFor;
  units: readonly LockUnit[];
  /** Where they are shared, if nobody's session may be ended for them. */
  readonly sparing?: SharedLocks;
}

/** What one lane has of locks, in sessions of its own and in shared ones. */
export class LaneLocks {
  readonly #order: LaneOrder;
  readonly #signal: AbortSignal;
  readonly #shares = new Map<SharedLocks, Share>();
  #held: Held[] = [];
  #yields = 0;

  /** @param signal aborted once the lane is given up: then nothing is taken any more. */
  constructor(order: LaneOrder, signal: AbortSignal) {
    this.#order = order;
    this.#signal = signal;
  }

  /** How often its sessions have given way while it had to do with them. */
  get yields(): number {
    return this.#yields + this.#held.reduce((sum, { locks }) => sum + locks.yields, 0);
  }

  get complete(): boolean {
    return this.#held.every(({ locks, units }) => locks.has(units));
  }

  get held(): readonly Held[] {
    return [...this.#held];
  }

  get sessions(): LockSession[] {
    return this.#held.flatMap(({ locks }) => (locks instanceof LockTeam ? locks.members : [locks]));
  }

  /** What there is to lock has changed. */
  retarget(targets: Targets): void {
    for (const held of this.#held) held.units = held.unitsFor(targets);
  }

  keep(keeper: object): void {
    for (const { locks, units } of this.#held) locks.keep(units, keeper);
  }

  forget(): void {
    this.#held = [];
  }

  forgetOne(held: Held): void {
    this.#held = this.#held.filter((other) => other !== held);
  }

  extend(remainingMs: number): void {
    for (const share of this.#shares.values()) share.extend(remainingMs);
  }

  /** Locks of a session that is the lane's alone. */
  async hold(locks: LockSession, unitsFor: UnitsFor, targets: Targets): Promise<void> {
    const units = unitsFor(targets);
    this.#add({ locks, units, unitsFor });
    await obtain(locks, units);
  }

  async holdShared(common: SharedLocks, unitsFor: UnitsFor, targets: Targets): Promise<void> {
    const units = unitsFor(targets);
    if (units.length === 0) return;
    const { locks } = await this.join(common);
    this.#add({ locks, units, unitsFor });
    await common.take(units);
  }

  /** @returns who was in the way, or null once they are taken; see SharedLocks. */
  async tryFor(
    common: SharedLocks,
    unitsFor: UnitsFor,
    targets: Targets,
    until: number,
  ): Promise<string | null> {
    const { locks } = await this.join(common);
    const units = unitsFor(targets);
    const inTheWay = await common.tryFor(units, this.trying(until));
    if (inTheWay === null) this.#add({ locks, units, unitsFor, sparing: common });
    return inTheWay;
  }

  trying(until: number): TryOptions {
    return { busy: !this.#order.planned, until, signal: this.#signal };
  }

  async leave(common: SharedLocks, keeper: object): Promise<void> {
    const share = this.#shares.get(common);
    if (!share) return;
    this.#shares.delete(common);
    share.locks.letGo(keeper);
    this.#yields += share.locks.yields;
    this.#held = this.#held.filter(({ locks }) => locks !== share.locks);
    await share.leave();
  }

  /** Has a part in shared locks, whatever it will want of them. */
  async join(common: SharedLocks): Promise<Share> {
    const known = this.#shares.get(common);
    if (known) return known;
    const share = await common.join(this.#order.remainingMs, this.#order.onLost);
    this.#shares.set(common, share);
    if (this.#signal.aborted) await share.leave();
    return share;
  }

  /** The same, and has more sessions opened meanwhile, because they will be needed. */
  async joinInForce(common: SharedLocks): Promise<void> {
    await this.join(common);
    common.grow().catch(() => undefined);
  }

  #add(held: Held): void {
    if (!this.#signal.aborted) this.#held.push(held);
  }
}
