import { within } from '../within.js';
import type { LockSession } from './lock-session.js';
import { areKeysOf, lotsOf, partsOf, type LockUnit } from './lock-unit.js';

/** How long one session may take for all, in milliseconds, before several do it. */
const SOON_MS = 100;
const LOOK_MS = 5;

/**
 * Several sessions that take locks side by side, as if they were one. A session queues for one lock at
 * a time, and while it does, who comes new goes on to take the others; a team closes all doors at once.
 * Who takes what is what its sessions have and want: a lot that one of them has to do with is its own.
 */
export class LockTeam {
  readonly #members: LockSession[];

  constructor(first: LockSession) {
    this.#members = [first];
  }

  get members(): readonly LockSession[] {
    return this.#members;
  }

  /** What they have or want. */
  get units(): LockUnit[] {
    return this.#members.flatMap(({ units }) => units);
  }

  /** How many may wait: whoever waits for what one of the others keeps would wait in a circle with it. */
  get free(): number {
    return this.#members.filter(({ isKept }) => !isKept).length;
  }

  add(members: readonly LockSession[]): void {
    this.#members.push(...members);
  }

  /**
   * Takes what is free, on one session and without waiting.
   *
   * @returns false when some of it is not free; nothing is taken then.
   */
  async takeAtOnce(units: readonly LockUnit[]): Promise<boolean> {
    if (this.has(units)) return true;
    const taker = this.#only(units);
    if (!taker) return false;
    // What is given back of it later is wanted again as it was.
    const once = units.map((unit) => ({
      ...unit,
      text: `${unit.text} NOWAIT`,
      once: true as const,
      parts: partsOf(unit),
    }));
    taker.want(once);
    return taker.obtain(once);
  }

  /**
   * Takes them on one session, one after the other, for as long as nobody waits for it in turn. Nobody
   * else may want the same meanwhile.
   *
   * @returns false when that did not do; what of it was taken is given back then.
   */
  async takeSoon(units: readonly LockUnit[]): Promise<boolean> {
    if (this.has(units)) return true;
    const taker = this.#only(units);
    if (!taker) return false;
    const { yields } = taker;
    const until = performance.now() + SOON_MS;
    taker.want(units);
    const taken = taker.obtain(units);
    taken.catch(() => undefined);
    while (taker.yields === yields && performance.now() < until) {
      const done = await within(LOOK_MS, taken, undefined);
      if (done !== undefined) return done;
    }
    await taker.drop(units);
    return false;
  }

  /** The member that has waited longest for the lock that it waits for now. */
  get longestWaiting(): LockSession | undefined {
    const since = ({ waiting }: LockSession): number => waiting?.since ?? Infinity;
    return this.#members.filter(({ waiting }) => waiting).sort((a, b) => since(a) - since(b))[0];
  }

  get yields(): number {
    return this.#members.reduce((sum, { yields }) => sum + yields, 0);
  }

  /** See LockSession: so are the others. */
  get deadEnd(): number[] {
    return this.#members.flatMap(({ deadEnd }) => deadEnd);
  }

  has(units: readonly LockUnit[]): boolean {
    const taken = this.#members.flatMap(({ order }) => order);
    return areKeysOf(units, taken);
  }

  /** Dealt out one by one, to whoever has least to do with. */
  want(units: readonly LockUnit[]): void {
    for (const part of units.flatMap(partsOf)) (this.#takerOf(part) ?? this.#idlest()).want([part]);
  }

  async obtain(units: readonly LockUnit[]): Promise<boolean> {
    // One may have to yield again while another is waited for.
    while (!this.has(units)) {
      const obtaining = units
        .flatMap(partsOf)
        .map(async (part) => this.#takerOf(part)?.obtain([part]));
      const taken = await Promise.all(obtaining);
      if (!taken.every((isTaken) => isTaken)) return false;
    }
    return true;
  }

  keep(units: readonly LockUnit[], keeper: object): void {
    for (const member of this.#members) member.keep(units, keeper);
  }

  letGo(keeper: object): void {
    for (const member of this.#members) member.letGo(keeper);
  }

  async drop(units: readonly LockUnit[]): Promise<void> {
    const lots = lotsOf(units);
    const concerned = this.#members.filter((member) => hasToDoWith(member, lots));
    await Promise.all(concerned.map((member) => member.drop(units)));
  }

  /** See LockSession. */
  async stop(): Promise<void> {
    await Promise.all(this.#members.map((member) => member.stop()));
  }

  /** The member that may take all of these by itself. */
  #only(units: readonly LockUnit[]): LockSession | undefined {
    const lots = lotsOf(units);
    const concerned = this.#members.filter((member) => hasToDoWith(member, lots));
    if (concerned.length > 1 || this.#members.some(({ queues }) => queues)) return undefined;
    return concerned[0] ?? this.#members[0];
  }

  #takerOf(part: LockUnit): LockSession | undefined {
    const lots = lotsOf([part]);
    return this.#members.find((member) => hasToDoWith(member, lots));
  }

  /** A session that keeps something waits for nothing else, as long as there is another one. */
  #idlest(): LockSession {
    const [idlest] = [...this.#members].sort(
      (a, b) => Number(a.isKept) - Number(b.isKept) || a.units.length - b.units.length,
    );
    if (idlest === undefined) throw new Error('a team without members takes no locks');
    return idlest;
  }
}

function hasToDoWith({ units }: LockSession, lots: ReadonlySet<number | string>): boolean {
  return [...lotsOf(units)].some((lot) => lots.has(lot));
}

/** Wants units and waits until they are all there. @throws also when somebody else gives them up. */
export async function obtain(
  locks: LockSession | LockTeam,
  units: readonly LockUnit[],
): Promise<void> {
  locks.want(units);
  if (!(await locks.obtain(units))) throw new Error('locks were given up that a hold needs');
}
