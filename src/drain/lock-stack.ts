import type { ClientBase } from 'pg';
import { SessionLostError } from '../errors.js';
import { errorText } from '../postgres/session.js';
import { sqlState } from '../postgres/sqlstate.js';
import { keysOf, type LockUnit } from './lock-unit.js';

/** The units that a transaction has, each after a savepoint of its own. */
export class LockStack {
  readonly #client: () => ClientBase;
  /** Savepoints that are set: one for each unit, and perhaps one for the next. */
  #marks: number;
  readonly #units: LockUnit[] = [];
  /** For each keeper, so many of the units are not given back. */
  readonly #floors = new Map<object, number>();
  /** What bounds the transaction; false once a rollback may have taken that back. */
  #bounds: { readonly set: () => Promise<void>; done: boolean } | undefined;

  /** @param marked whether FIRST_SAVEPOINT is set already */
  constructor(client: () => ClientBase, marked = false) {
    this.#client = client;
    this.#marks = marked ? 1 : 0;
  }

  get units(): readonly LockUnit[] {
    return this.#units;
  }

  /** Names of the smallest units, in the order in which they were taken. */
  get keys(): string[] {
    return this.#units.flatMap(keysOf);
  }

  /** How many units there are that may be given back. */
  get loose(): number {
    return this.#units.length - this.#floor;
  }

  /** Whether some are not given back. */
  get isKept(): boolean {
    return this.#floor > 0;
  }

  get #floor(): number {
    return Math.min(this.#units.length, Math.max(0, ...this.#floors.values()));
  }

  /** All up to the last one for which the test holds are not given back, until the keeper lets go. */
  keep(test: (unit: LockUnit) => boolean, keeper: object): void {
    const height = this.#units.findLastIndex(test) + 1;
    this.#floors.set(keeper, Math.max(this.#floors.get(keeper) ?? 0, height));
  }

  letGo(keeper: object): void {
    this.#floors.delete(keeper);
  }

  /** By itself: interrupted before its savepoint is set, a statement would cost the transaction. */
  async mark(): Promise<void> {
    const depth = this.#units.length;
    if (this.#marks === depth) await this.#must(`SAVEPOINT ${savepoint(depth)}`);
    this.#marks = depth + 1;
  }

  /** Waits for the locks; `mark` comes before it, `push` or `undo` after it. */
  async run({ text, values }: LockUnit): Promise<void> {
    try {
      await this.#client().query(text, values ? [...values] : undefined);
    } catch (error) {
      // Without a SQLSTATE the session is lost, and its transaction with it.
      throw sqlState(error) === undefined ? lost(error) : error;
    }
  }

  push(unit: LockUnit): void {
    this.#units.push(unit);
  }

  /** Takes the last loose unit away. From this moment on nobody may believe that it is there. */
  pop(): LockUnit[] {
    return this.#units.splice(this.loose > 0 ? this.#units.length - 1 : this.#units.length);
  }

  /** Takes all units away from the first loose one on for which the test holds. */
  popFrom(test: (unit: LockUnit) => boolean): LockUnit[] {
    const floor = this.#floor;
    const first = this.#units.findIndex((unit, index) => index >= floor && test(unit));
    return first < 0 ? [] : this.#units.splice(first);
  }

  /** Gives back what a statement that failed has taken, or what was taken away. */
  async undo(): Promise<void> {
    const depth = this.#units.length;
    await this.#must(`ROLLBACK TO SAVEPOINT ${savepoint(depth)}`);
    this.#marks = depth + 1;
    if (this.#bounds) this.#bounds.done = false;
  }

  /** `restoreBounds` sets them, now and whenever a rollback to a savepoint has taken them back. */
  bound(set: () => Promise<void>): void {
    this.#bounds = { set, done: false };
  }

  async restoreBounds(): Promise<void> {
    if (!this.#bounds || this.#bounds.done) return;
    this.#bounds.done = true;
    await this.#bounds.set();
  }

  /** The transaction has ended, or is about to. */
  clear(): void {
    this.#units.length = 0;
  }

  async #must(statement: string): Promise<void> {
    try {
      await this.#client().query(statement);
    } catch (cause) {
      throw lost(cause);
    }
  }
}

function lost(cause: unknown): SessionLostError {
  return new SessionLostError(`a session that takes locks was lost: ${errorText(cause)}`, cause);
}

function savepoint(depth: number): string {
  return `mpp_lock_${depth}`;
}

/** Below all locks: whoever begins the transaction may set it with that, in one go. */
export const FIRST_SAVEPOINT = savepoint(0);
