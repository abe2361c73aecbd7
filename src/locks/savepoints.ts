import type { ClientBase } from 'pg';
import { SessionLostError } from '../errors.js';
import { errorText } from '../postgres/session.js';
import { sqlState } from '../postgres/sqlstate.js';
import type { Lock } from './lock.js';

/** Below all locks: the statement that begins the transaction may set it with that, in one message. */
export const FIRST_SAVEPOINT = savepoint(0);

/** The locks that a transaction has, the latest last; those that one message took share a savepoint. */
export class Savepoints {
  readonly #client: () => ClientBase;
  /** One for each entry, and perhaps one for the next. */
  #set: number;
  readonly #entries: (readonly Lock[])[] = [];
  /** What bounds the transaction; not set any more once a rollback may have taken it back. */
  #bounds: { readonly set: () => Promise<void>; isSet: boolean } | undefined;

  /** @param isFirstSet whether FIRST_SAVEPOINT is set already */
  constructor(client: () => ClientBase, isFirstSet: boolean) {
    this.#client = client;
    this.#set = isFirstSet ? 1 : 0;
  }

  get entries(): readonly (readonly Lock[])[] {
    return this.#entries;
  }

  /** By itself: interrupted before its savepoint is set, a statement would cost the transaction. */
  async mark(): Promise<void> {
    const depth = this.#entries.length;
    if (this.#set === depth) await this.#must(`SAVEPOINT ${savepoint(depth)}`);
    this.#set = depth + 1;
  }

  /** Runs what takes locks; `mark` comes before it, `push` or `undo` after it. */
  async run(text: string): Promise<void> {
    try {
      await this.#client().query(text);
    } catch (error) {
      // Without a SQLSTATE the session is lost, and its transaction with it.
      throw sqlState(error) === undefined ? lost(error) : error;
    }
  }

  push(locks: readonly Lock[]): void {
    this.#entries.push(locks);
  }

  /** Takes entries off, from this depth on; `undo` then gives up what they have locked. */
  popTo(depth: number): Lock[] {
    return this.#entries.splice(depth).flat();
  }

  /** Gives up what a statement that failed has taken, or what was popped. */
  async undo(): Promise<void> {
    const depth = this.#entries.length;
    await this.#must(`ROLLBACK TO SAVEPOINT ${savepoint(depth)}`);
    this.#set = depth + 1;
    if (this.#bounds) this.#bounds.isSet = false;
  }

  /** `restoreBounds` sets them, now and whenever a rollback to a savepoint has taken them back. */
  bound(set: () => Promise<void>): void {
    this.#bounds = { set, isSet: false };
  }

  async restoreBounds(): Promise<void> {
    if (!this.#bounds || this.#bounds.isSet) return;
    this.#bounds.isSet = true;
    await this.#bounds.set();
  }

  /** The transaction has ended, or is about to. */
  clear(): void {
    this.#entries.length = 0;
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
