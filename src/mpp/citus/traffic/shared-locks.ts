import { setTimeout as delay } from 'node:timers/promises';
import type { Pool } from 'pg';
import { partsOf, thingsOf, type LockUnit } from '../../../drain/lock-unit.js';
import { obtain, type LockTeam } from '../../../drain/lock-team.js';
import { Obstacle } from '../../../drain/obstacle.js';
import type { Server } from '../../../drain/server.js';
import type { Watch } from '../../../drain/watch.js';
import { SessionLostError } from '../../../errors.js';
import { within } from '../../../within.js';
import { SharedSet, type User } from './shared-set.js';

/** One hold's part in shared locks. */
export interface Share {
  readonly locks: LockTeam;
  /** They may be needed for so many milliseconds from now; the longest of all shares counts. */
  extend(remainingMs: number): void;
  /** The last one that leaves gives all of it back. */
  leave(): Promise<void>;
}

export interface TryOptions {
  /** True when somebody is sure to be in the way: it is not tried without waiting first. */
  readonly busy: boolean;
  /** When to give up in any case, by performance.now(). */
  readonly until: number;
  /** Makes it give up at once. */
  readonly signal: AbortSignal;
}

const ANOTHER_HOLD = 'what another hold has or wants';

/** How often it is tried, when somebody in the way does not go on. */
const TRIES = 3;
const BETWEEN_TRIES_MS = 100;
const LOOK_MS = 20;
/** So long a failure stands for those who would try the same. */
const REMEMBER_MS = 2_000;

export interface SharedLocksOptions {
  readonly server: Server;
  readonly sessions: Pool;
  readonly watch: Watch;
  /**
   * Others for the same tables, which matter more: what those have or want is not taken here, and given
   * back if it is there, or they would wait for our own sessions.
   */
  readonly before?: SharedLocks;
}

/** Table locks on one node that several holds need at once: two sessions could not have them side by side. */
export class SharedLocks {
  readonly #options: SharedLocksOptions;
  #set: SharedSet | undefined;
  #team: LockTeam | undefined;
  #turn: Promise<unknown> = Promise.resolve();
  /** Those that have this before them. */
  readonly #behind: SharedLocks[] = [];
  #failed: { readonly at: number; readonly keys: string; readonly inTheWay: string } | undefined;

  constructor(options: SharedLocksOptions) {
    this.#options = options;
    if (options.before) options.before.#behind.push(this);
  }

  /** What its sessions have or want. */
  get things(): ReadonlySet<string> {
    return thingsOf(this.#team?.units ?? []);
  }

  /** @param onLost called when one of the sessions breaks while it is shared. */
  async join(remainingMs: number, onLost: () => void): Promise<Share> {
    const user: User = { dueAt: performance.now() + remainingMs, onLost };
    const set = (this.#set ??= this.#newSet());
    const locks = await set.join(user);
    if (this.#set === set) this.#team = locks;
    const extend = (ms: number): void => {
      user.dueAt = performance.now() + ms;
      set.renew();
    };
    return { locks, extend, leave: () => set.leave(user) };
  }

  /** Opens all sessions at once, for whoever has joined. */
  async grow(): Promise<void> {
    if (this.#set && this.#team) await this.#set.grow(this.#team);
  }

  /** Takes locks, and waits for them for as long as it takes. */
  async take(units: readonly LockUnit[]): Promise<void> {
    // Not for a while only: another hold that comes to want the same would have them dropped as well.
    const locks = await this.#grown((team) => team.takeAtOnce(units));
    if (locks.has(units)) return;
    this.#want(locks, units);
    await obtain(locks, units);
  }

  /**
   * Takes locks that nobody's session may be ended for: gives up when somebody in the way does not go
   * on, and lets traffic through between tries.
   *
   * @returns who was in the way, or null once they are taken.
   */
  async tryFor(units: readonly LockUnit[], options: TryOptions): Promise<string | null> {
    const turn = this.#turn.then(() => this.#tryFor(units, options));
    this.#turn = turn.catch(() => undefined);
    return turn;
  }

  /** Nobody of ours may be in the way: neither now, nor once this is wanted. */
  #want(locks: LockTeam, units: readonly LockUnit[]): void {
    locks.want(units);
    this.#haveGivenUp(units);
  }

  #haveGivenUp(units: readonly LockUnit[]): void {
    for (const other of this.#behind) other.#giveUp(thingsOf(units));
  }

  #giveUp(things: ReadonlySet<string>): void {
    const units = (this.#team?.units ?? []).flatMap(partsOf);
    void this.#team?.drop(
      units.filter(({ things: own = [] }) => own.some((one) => things.has(one))),
    );
  }

  #isOthers(units: readonly LockUnit[]): boolean {
    const theirs = this.#options.before?.things;
    return theirs !== undefined && [...thingsOf(units)].some((thing) => theirs.has(thing));
  }

  #newSet(): SharedSet {
    const set: SharedSet = new SharedSet({
      ...this.#options,
      onOver: () => {
        if (this.#set !== set) return;
        this.#set = undefined;
        this.#team = undefined;
      },
    });
    return set;
  }

  /** One session while nobody is in the way, else all. */
  async #grown(take: (team: LockTeam) => Promise<boolean>): Promise<LockTeam> {
    const [set, team] = [this.#set, this.#team];
    if (!set || !team) throw new SessionLostError('the sessions that holds share were lost');
    if (!(await take(team))) await set.grow(team);
    return team;
  }

  async #tryFor(
    units: readonly LockUnit[],
    { busy, until, signal }: TryOptions,
  ): Promise<string | null> {
    signal.throwIfAborted();
    if (this.#isOthers(units)) return ANOTHER_HOLD;
    const keys = units.map(({ key }) => key).join();
    if (this.#failed?.keys === keys && performance.now() - this.#failed.at < REMEMBER_MS) {
      return this.#failed.inTheWay;
    }
    const locks = await this.#grown((team) => {
      if (!busy) return team.takeAtOnce(units);
      this.#haveGivenUp(units);
      return team.takeSoon(units);
    });
    if (locks.has(units)) return null;
    let inTheWay = 'more than one after the other';
    for (let attempt = 1; ; attempt += 1) {
      if (this.#isOthers(units)) return ANOTHER_HOLD;
      const obstacle = await this.#tryOnce(locks, units, until, signal);
      if (obstacle === null) return null;
      inTheWay = obstacle ?? inTheWay;
      await locks.drop(units);
      signal.throwIfAborted();
      if (attempt === TRIES || performance.now() >= until) {
        this.#failed = { at: performance.now(), keys, inTheWay };
        return inTheWay;
      }
      await delay(BETWEEN_TRIES_MS);
    }
  }

  /** @returns null once they are taken, else who was in the way all the time, if it was the same. */
  async #tryOnce(
    locks: LockTeam,
    units: readonly LockUnit[],
    until: number,
    signal: AbortSignal,
  ): Promise<string | null | undefined> {
    this.#want(locks, units);
    const taken = locks.obtain(units);
    taken.catch(() => undefined);
    const obstacle = new Obstacle(this.#options.server);
    while (!signal.aborted && performance.now() < until) {
      const done = await within(LOOK_MS, taken, undefined);
      if (done === true) return null;
      if (done === false) return obstacle.name(locks.deadEnd);
      const inTheWay = await obstacle.look(locks.longestWaiting);
      if (inTheWay !== undefined) return inTheWay;
    }
    return undefined;
  }
}
