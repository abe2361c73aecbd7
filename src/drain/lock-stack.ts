import type { ClientBase } from 'pg';
import { SessionLostError } from '../errors.js';
import { errorText } from '../postgres/session.js';
import { keysOf, type LockUnit } from './lock-unit.js';

/** The units that a transaction has, each after a savepoint of its own. */
export class LockStack {
  readonly #client: () => ClientBase;
  readonly #units: LockUnit[] = [];
  /** Savepoints that are set: one for each unit, and perhaps one for the next. */
  #marks = 0;
  #rollbacks = 0;

  constructor(client: () => ClientBase) {
    this.#client = client;
  }

  get depth(): number {
    return this.#units.length;
  }

  /** Names of the smallest units, in the order in which they were taken. */
  get keys(): string[] {
    return this.#units.flatMap(keysOf);
  }

  /** How many units there are up to the last one for which the test holds. */
  heightOf(test: (unit: LockUnit) => boolean): number {
    return this.#units.findLastIndex(test) + 1;
  }

  /** Where the first unit from `floor` on is for which the test holds, or -1. */
  firstFrom(floor: number, test: (unit: LockUnit) => boolean): number {
    return this.#units.findIndex((unit, index) => index >= floor && test(unit));
  }

  /** By itself: interrupted before its savepoint is set, a statement would cost the transaction. */
  async mark(): Promise<void> {
    if (this.#marks === this.depth) await this.#must(`SAVEPOINT ${savepoint(this.depth)}`);
    this.#marks = this.depth + 1;
  }

  /** Waits for the locks; `mark` comes before it, `push` or `undo` after it. */
  async run({ text, values }: LockUnit): Promise<void> {
    await this.#client().query(text, values ? [...values] : undefined);
  }

  push(unit: LockUnit): void {
    this.#units.push(unit);
  }

  /** Takes back a statement that failed. */
  async undo(): Promise<void> {
    await this.#rollBackTo(this.depth);
  }

  /** @returns the units given back, which are all from this one on. */
  async giveBack(from: number): Promise<LockUnit[]> {
    // From this moment on nobody may believe that it is there.
    const units = this.#units.splice(from);
    await this.#rollBackTo(from);
    return units;
  }

  /** Grows with each rollback: what was set in the transaction may be as it was before. */
  get rollbacks(): number {
    return this.#rollbacks;
  }

  /** The transaction has ended, or is about to. */
  clear(): void {
    this.#units.length = 0;
  }

  async #rollBackTo(depth: number): Promise<void> {
    await this.#must(`ROLLBACK TO SAVEPOINT ${savepoint(depth)}`);
    this.#marks = depth + 1;
    this.#rollbacks += 1;
  }

  async #must(statement: string): Promise<void> {
    try {
      await this.#client().query(statement);
    } catch (cause) {
      throw new SessionLostError(`a session that takes locks was lost: ${errorText(cause)}`, cause);
    }
  }
}

function savepoint(depth: number): string {
  return `mpp_lock_${depth}`;
}
