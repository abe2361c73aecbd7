import type { Pool } from 'pg';
import { LockSession } from '../../../drain/lock-session.js';
import { FIRST_SAVEPOINT } from '../../../drain/lock-stack.js';
import { LockTeam } from '../../../drain/lock-team.js';
import type { Server } from '../../../drain/server.js';
import type { Watch } from '../../../drain/watch.js';
import { SERVER_GRACE_MS, Transaction, type Bounds } from '../../../postgres/transaction.js';
import { within } from '../../../within.js';

/** Sessions that queue for locks side by side on one node, besides those that keep something. */
const TEAM = 4;
/** A server that does not let a statement be interrupted in this time does not answer. */
const STOP_MS = 1_000;

export interface SharedSetOptions {
  readonly server: Server;
  readonly sessions: Pool;
  readonly watch: Watch;
  /** Called when nobody can join it any more. */
  readonly onOver: () => void;
}

/** A transaction, and what takes locks in it. */
export interface Watched {
  readonly transaction: Transaction;
  readonly locks: LockSession;
}

/** Who needs it. */
export interface User {
  /** Until when, by performance.now(). */
  dueAt: number;
  /** Called when one of the sessions breaks. */
  readonly onLost: () => void;
}

/** Sessions that several holds share, from the first that needs them to the last. */
export class SharedSet {
  readonly #options: SharedSetOptions;
  readonly #users = new Set<User>();
  readonly #members: Watched[] = [];
  #team: Promise<LockTeam> | undefined;
  #growing: Promise<void> | undefined;
  #over = false;
  /** What all sessions may last to at least, by performance.now(). */
  #boundUntil = -Infinity;

  constructor(options: SharedSetOptions) {
    this.#options = options;
  }

  /** Joins it. @throws when there is no session with the server. */
  async join(user: User): Promise<LockTeam> {
    this.#users.add(user);
    try {
      const team = await (this.#team ??= this.#open());
      if (user.dueAt > this.#boundUntil) this.renew();
      return team;
    } catch (error) {
      await this.leave(user);
      throw error;
    }
  }

  /** Has the server's own bounds follow what the users need. */
  renew(): void {
    this.#boundUntil = this.#dueAt;
    for (const { transaction, locks } of this.#members) {
      locks.bound(() => transaction.bound(this.#bounds()));
    }
  }

  /** The last one that leaves gives all of it back. */
  async leave(user: User): Promise<void> {
    if (!this.#users.delete(user) || this.#users.size > 0 || this.#over) return;
    this.#finish();
    if (this.#team) await inTime(this.#team);
    await Promise.all(this.#members.map((member) => release(member.transaction, member.locks)));
  }

  /** More sessions, for when somebody is in the way. Does with fewer if there are no more to be had. */
  async grow(team: LockTeam): Promise<void> {
    await (this.#growing ??= this.#addMembers(team).finally(() => (this.#growing = undefined)));
  }

  async #open(): Promise<LockTeam> {
    this.#boundUntil = this.#dueAt;
    return new LockTeam(await this.#begin());
  }

  async #addMembers(team: LockTeam): Promise<void> {
    const missing = TEAM - team.free;
    const begun = await Promise.allSettled(Array.from({ length: missing }, () => this.#begin()));
    team.add(begun.flatMap((one) => (one.status === 'fulfilled' ? [one.value] : [])));
  }

  async #begin(): Promise<LockSession> {
    const { server, sessions, watch } = this.#options;
    const begun = await beginWatched(server, watch, sessions, this.#bounds(), 'shared locks');
    const { transaction, locks } = begun;
    this.#members.push(begun);
    transaction.onLost(() => this.#lose());
    // Everybody may have left meanwhile.
    if (this.#over) await release(transaction, locks);
    return locks;
  }

  #lose(): void {
    if (this.#over) return;
    this.#finish();
    for (const { transaction } of this.#members) transaction.destroy();
    for (const { onLost } of [...this.#users]) onLost();
  }

  #finish(): void {
    this.#over = true;
    this.#options.onOver();
  }

  get #dueAt(): number {
    return Math.max(performance.now(), ...[...this.#users].map(({ dueAt }) => dueAt));
  }

  #bounds(): Bounds {
    return boundsFor(this.#dueAt - performance.now());
  }
}

/** Ends a transaction that may wait for a lock: a rollback would queue behind the statement that waits. */
export async function release(transaction: Transaction, locks: LockSession): Promise<void> {
  const isOver = (await inTime(locks.stop())) && (await inTime(transaction.rollback()));
  if (!isOver) transaction.destroy();
}

/** @returns false when it takes longer than a server that answers would. Never throws. */
export async function inTime(work: Promise<unknown>): Promise<boolean> {
  const done = work.then(
    () => true,
    () => true,
  );
  return within(STOP_MS, done, false);
}

/** A transaction of its own for locks, looked after. @param purpose see Transaction.begin */
export async function beginWatched(
  server: Server,
  watch: Watch,
  sessions: Pool,
  bounds: Bounds,
  purpose: string,
): Promise<Watched> {
  const transaction = await Transaction.begin(sessions, bounds, purpose, FIRST_SAVEPOINT);
  return { transaction, locks: watched(server, watch, transaction, true) };
}

/** The locks of an open transaction, looked after until it ends. @param marked see LockSessionOptions */
export function watched(
  server: Server,
  watch: Watch,
  transaction: Transaction,
  marked = false,
): LockSession {
  const locks = new LockSession({
    server,
    marked,
    pid: transaction.pid,
    client: () => transaction.client,
    onActive: () => watch.wake(),
  });
  watch.add(locks);
  transaction.onEnd(() => watch.remove(locks));
  return locks;
}

/** How long a lock is waited for is the drain's affair, not the server's. */
export function boundsFor(remainingMs: number): Bounds {
  return { idleMs: remainingMs + SERVER_GRACE_MS, lockMs: remainingMs, statementMs: remainingMs };
}
