import type { LockSession } from './lock-session.js';
import { partsOf, type LockUnit } from './lock-unit.js';

/**
 * Several sessions that take locks side by side, as if they were one. A session queues for one lock at
 * a time, and while it does, who comes new goes on to take the others; a team closes all doors at once.
 */
export class LockTeam {
  readonly #members: LockSession[];
  /** By key of a unit: who takes it. */
  readonly #takers = new Map<string, LockSession>();

  constructor(first: LockSession) {
    this.#members = [first];
  }

  get members(): readonly LockSession[] {
    return this.#members;
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
    const [first] = this.#members;
    const keys = units.flatMap(partsOf).map(({ key }) => key);
    if (first === undefined || this.#members.length > 1) return this.has(units);
    if (keys.some((key) => this.#takers.has(key))) return this.has(units);
    for (const key of keys) this.#takers.set(key, first);
    // What is given back of it later is wanted again as it was.
    const once = units.map((unit) => ({
      ...unit,
      text: `${unit.text} NOWAIT`,
      once: true as const,
      parts: partsOf(unit),
    }));
    first.want(once);
    const taken = await first.obtain(once);
    if (!taken) for (const key of keys) this.#takers.delete(key);
    return taken;
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
  has(units: readonly LockUnit[]): boolean {
    return this.#split(units).every(([member, own]) => member.has(own));
  }

  want(units: readonly LockUnit[]): void {
    for (const [member, own] of this.#split(units)) member.want(own);
  }

  async obtain(units: readonly LockUnit[]): Promise<boolean> {
    const split = this.#split(units);
    // One may have to yield again while another is waited for.
    while (!this.has(units)) {
      const taken = await Promise.all(split.map(([member, own]) => member.obtain(own)));
      if (taken.includes(false)) return false;
    }
    return true;
  }

  keep(units: readonly LockUnit[], keeper: object): void {
    for (const [member, own] of this.#split(units)) member.keep(own, keeper);
  }

  letGo(keeper: object): void {
    for (const member of this.#members) member.letGo(keeper);
  }

  async drop(units: readonly LockUnit[]): Promise<void> {
    const split = this.#split(units);
    await Promise.all(split.map(([member, own]) => member.drop(own)));
    for (const { key } of split.flatMap(([, own]) => own)) this.#takers.delete(key);
  }

  /** See LockSession. */
  async stop(): Promise<void> {
    await Promise.all(this.#members.map((member) => member.stop()));
  }

  /** Dealt out one by one, in turn; a unit always goes to the same member. */
  #split(units: readonly LockUnit[]): [LockSession, LockUnit[]][] {
    const split = new Map<LockSession, LockUnit[]>();
    for (const part of units.flatMap(partsOf)) {
      const taker =
        this.#takers.get(part.key) ?? this.#members[this.#takers.size % this.#members.length];
      if (taker === undefined) throw new Error('a team without members takes no locks');
      this.#takers.set(part.key, taker);
      split.set(taker, [...(split.get(taker) ?? []), part]);
    }
    return [...split];
  }
}

/** Wants units and waits until they are all there. @throws also when somebody else gives them up. */
export async function obtain(
  locks: LockSession | LockTeam,
  units: readonly LockUnit[],
): Promise<void> {
  locks.want(units);
  if (!(await locks.obtain(units))) throw new Error('locks were given up that a hold needs');
}
