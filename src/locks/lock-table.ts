import type { Pool } from 'pg';
import { SERVER_GRACE_MS, Transaction, type Bounds } from '../postgres/transaction.js';
import { Condition } from '../wait.js';
import { covers, type Lock } from './lock.js';
import { inTime, LockSession, type LockOwner } from './lock-session.js';
import { FIRST_SAVEPOINT } from './savepoints.js';
import type { Server } from './server.js';
import type { Watch } from './watch.js';

/** Sessions that queue for locks side by side: a session queues for one lock at a time. */
export const QUEUES = 4;
/** So many sessions of one hold may break before its locks are there again; then they are taken to be lost. */
const MOST_LOSSES = 16;

interface LockTableOptions {
  readonly server: Server;
  readonly sessions: Pool;
  /** A statement that each of its transactions begins with. */
  readonly setup?: string;
  /** How many sessions it may open for what holds share; each hold may have one more of its own. */
  readonly most: number;
  readonly watch: Watch;
}

interface Member {
  readonly transaction: Transaction;
  readonly locks: LockSession;
  /** The only hold whose locks it takes; undefined for one that takes what holds share. */
  readonly reservedFor: LockHolder | undefined;
}

/** A lock that at least one hold needs. */
interface Entry {
  readonly lock: Lock;
  readonly holders: Set<LockHolder>;
  /** Undefined until it is asked for. */
  session: LockSession | undefined;
}

interface HolderOptions {
  /** What its own session is for, in application_name. */
  readonly purpose: string;
  /** The server ends what it has after so long at the latest, in milliseconds from now. */
  readonly remainingMs: number;
  /** Called when locks that are kept were lost; they are taken again. */
  readonly onLost: () => void;
  /** Called when they cannot be taken again. */
  readonly onFailure: (error: Error) => void;
}

/**
 * Which session of the controller has or waits for which lock on one node, and which holds need it. Holds share
 * locks: two sessions could not have the same one side by side.
 */
export class LockTable implements LockOwner {
  readonly #options: LockTableOptions;
  readonly #entries = new Map<string, Entry>();
  readonly #members = new Set<Member>();
  readonly #holders = new Set<LockHolder>();
  /** Notified at each change of what is taken. */
  readonly condition = new Condition();
  #opening = 0;
  readonly #reserving = new Map<LockHolder, Promise<LockSession>>();
  /** Why the last session could not be opened. */
  #failure: Error | undefined;

  constructor(options: LockTableOptions) {
    this.#options = options;
  }

  isHeld(lock: Lock): boolean {
    return this.#entries.has(lock.key);
  }

  isKept(lock: Lock): boolean {
    const holders = this.#entries.get(lock.key)?.holders ?? [];
    return [...holders].some(({ isKept }) => isKept);
  }

  /** A hold that will need locks here. */
  join(options: HolderOptions): LockHolder {
    const holder = new LockHolder(this, options);
    this.#holders.add(holder);
    return holder;
  }

  /** Makes the locks of an open transaction known to the watch, until it ends. */
  adopt(transaction: Transaction, owner: LockOwner, isFirstSet = false): LockSession {
    const { server, watch } = this.#options;
    const locks = new LockSession({
      ...{ server, owner, isFirstSet, condition: this.condition },
      pid: transaction.pid,
      client: () => transaction.client,
      onActive: () => watch.wake(),
    });
    watch.add(locks);
    transaction.onEnd(() => watch.remove(locks));
    return locks;
  }

  /** The entries of these locks: of one that another hold keeps and that covers it, that one's. */
  enter(holder: LockHolder, locks: readonly Lock[]): Entry[] {
    return locks.map((lock) => {
      const kept = [...this.#entries.values()].find(
        (one) => covers(one.lock, lock) && this.isKept(one.lock) && this.isTaken(one),
      );
      const entry = kept ??
        this.#entries.get(lock.key) ?? { lock, holders: new Set(), session: undefined };
      this.#entries.set(entry.lock.key, entry);
      entry.holders.add(holder);
      return entry;
    });
  }

  isTaken({ session, lock }: Entry): boolean {
    return session?.has(lock) ?? false;
  }

  /** Has so many sessions open that keep nothing. Does with fewer, if there is one. */
  async open(count: number): Promise<void> {
    const free = (): number => this.#shared.filter(({ isKept }) => !isKept).length;
    const missing =
      Math.min(count - free(), this.#options.most - this.#shared.length) - this.#opening;
    for (let n = 0; n < missing; n += 1) void this.#openShared();
    await this.condition.until(() => this.#opening === 0 || free() >= count);
    if (this.#shared.length === 0) throw this.#failure ?? new Error('no session could be opened');
  }

  /** The sessions that take what holds share. */
  get #shared(): LockSession[] {
    return [...this.#members].filter((one) => !one.reservedFor).map(({ locks }) => locks);
  }

  /** Never throws. */
  async #openShared(): Promise<void> {
    this.#opening += 1;
    try {
      await this.#begin();
    } catch (error) {
      this.#failure = error instanceof Error ? error : new Error(String(error));
    } finally {
      this.#opening -= 1;
      this.condition.notify();
    }
  }

  /** Opens the session of a hold's own. */
  async reserve(holder: LockHolder): Promise<LockSession> {
    const known = this.reservedOf(holder);
    if (known) return known;
    const reserving =
      this.#reserving.get(holder) ??
      this.#begin(holder).finally(() => this.#reserving.delete(holder));
    this.#reserving.set(holder, reserving);
    return reserving;
  }

  reservedOf(holder: LockHolder): LockSession | undefined {
    return [...this.#members].find(({ reservedFor }) => reservedFor === holder)?.locks;
  }

  /** @returns whether all of them could be had without waiting; else none is taken. */
  async takeAtOnce(entries: readonly Entry[]): Promise<boolean> {
    await this.open(1);
    const missing = entries.filter((entry) => !this.isTaken(entry));
    if (missing.length === 0) return true;
    const session = this.#onlySession(missing);
    if (session === undefined || missing.some((entry) => entry.session)) return false;
    for (const entry of missing) entry.session = session;
    const locks = missing.map(({ lock }) => lock);
    session.take(locks, true);
    const isTaken = await session.taking(locks);
    if (!isTaken) {
      for (const entry of missing) if (!this.isTaken(entry)) entry.session = undefined;
    }
    return isTaken;
  }

  /** Queues for those that are not taken, each on the session that may, side by side. */
  async take(entries: readonly Entry[]): Promise<void> {
    const missing = entries.filter((entry) => !this.isTaken(entry) && entry.holders.size > 0);
    if (missing.length === 0) return;
    await this.open(Math.min(QUEUES, missing.length));
    if (this.#shared.length === 0) throw new Error('the sessions were lost');
    const asked = new Map<LockSession, Lock[]>();
    for (const entry of missing) {
      if (entry.session && !entry.session.isOver && this.#isAsked(entry)) continue;
      entry.session = this.#sessionFor(entry.lock, asked);
      asked.set(entry.session, [...(asked.get(entry.session) ?? []), entry.lock]);
    }
    // One by one: a session that has one lock of several and waits for the next blocks more than it must.
    for (const [session, locks] of asked) for (const lock of locks) session.take([lock]);
  }

  /** Queues for these in the session of the hold's own, in one message as long as nothing blocks them. */
  async takeReserved(holder: LockHolder, entries: readonly Entry[]): Promise<void> {
    const session = await this.reserve(holder);
    for (const entry of entries) entry.session = session;
    session.take(entries.map(({ lock }) => lock));
  }

  /** Why one of these will not be taken, as it is. */
  failureOf(entries: readonly Entry[]): Error | undefined {
    return entries
      .filter((entry) => !this.isTaken(entry))
      .map(({ session }) => session?.failure)
      .find((failure) => failure !== undefined);
  }

  #isAsked({ session, lock }: Entry): boolean {
    return session?.pending.some(({ key }) => key === lock.key) ?? false;
  }

  /** A session that may take all of these by itself, without waiting behind something else. */
  #onlySession(entries: readonly Entry[]): LockSession | undefined {
    const groups = new Set(entries.map(({ lock }) => lock.conflictGroup));
    const sessions = this.#shared;
    const concerned = sessions.filter((session) =>
      [...session.taken, ...session.pending].some(({ conflictGroup }) => groups.has(conflictGroup)),
    );
    if (concerned.length > 1) return undefined;
    const session = concerned[0] ?? this.#idlest(sessions);
    return session?.isQueueing ? undefined : session;
  }

  #sessionFor(lock: Lock, asked: ReadonlyMap<LockSession, readonly Lock[]>): LockSession {
    const sessions = this.#shared;
    const locksOf = (session: LockSession): Lock[] => [
      ...session.taken,
      ...session.pending,
      ...(asked.get(session) ?? []),
    ];
    const session =
      sessions.find((one) =>
        locksOf(one).some(({ conflictGroup }) => conflictGroup === lock.conflictGroup),
      ) ?? this.#idlest(sessions, locksOf);
    if (session === undefined) throw new Error('no session is left to take locks in');
    return session;
  }

  /** A session that keeps something waits for nothing else, as long as there is another. */
  #idlest(
    sessions: readonly LockSession[],
    locksOf = (session: LockSession): Lock[] => [...session.taken, ...session.pending],
  ): LockSession | undefined {
    return [...sessions].sort(
      (a, b) => Number(a.isKept) - Number(b.isKept) || locksOf(a).length - locksOf(b).length,
    )[0];
  }

  /** A hold needs these no longer. */
  async release(holder: LockHolder, entries: readonly Entry[]): Promise<void> {
    for (const entry of entries) {
      entry.holders.delete(holder);
      if (entry.holders.size === 0) this.#entries.delete(entry.lock.key);
    }
    if (this.#entries.size === 0 && this.#holders.size === 0) return this.#closeAll();
    const concerned = [...this.#members].filter(({ locks }) =>
      [...locks.taken, ...locks.pending].some((lock) => !this.isHeld(lock)),
    );
    await Promise.all(concerned.map(({ locks }) => inTime(locks.release())));
    this.condition.notify();
  }

  async leave(holder: LockHolder, entries: readonly Entry[]): Promise<void> {
    this.#holders.delete(holder);
    const reserved = [...this.#members].filter(({ reservedFor }) => reservedFor === holder);
    for (const member of reserved) this.#members.delete(member);
    await Promise.all([this.release(holder, entries), ...reserved.map(end)]);
    this.closeUnused();
  }

  /** Sessions that have nothing to do are for other uses, unless a hold is being opened. */
  closeUnused(): void {
    if ([...this.#holders].some(({ isKept }) => !isKept)) return;
    for (const member of this.#members) {
      if (member.reservedFor) continue;
      const { taken, pending, isActive } = member.locks;
      if (taken.length > 0 || pending.length > 0 || isActive) continue;
      this.#members.delete(member);
      void end(member);
    }
  }

  async #closeAll(): Promise<void> {
    const members = [...this.#members];
    this.#members.clear();
    await Promise.all(members.map(end));
  }

  /** Has the server's own bounds follow what the holds need. */
  renew(): void {
    for (const { transaction, locks } of this.#members) {
      locks.bound(() => transaction.bound(this.#bounds()));
    }
  }

  async #begin(reservedFor?: LockHolder): Promise<LockSession> {
    const purpose = reservedFor ? reservedFor.purpose : 'shared locks';
    const { sessions, setup } = this.#options;
    const transaction = await Transaction.begin(sessions, this.#bounds(), purpose, {
      savepoint: FIRST_SAVEPOINT,
      setup,
    });
    const locks = this.adopt(transaction, this, true);
    const member = { transaction, locks, reservedFor };
    this.#members.add(member);
    transaction.onLost(() => this.#lose(member));
    // The hold may have ended meanwhile.
    const isNeeded = reservedFor ? this.#holders.has(reservedFor) : this.#holders.size > 0;
    if (isNeeded) return locks;
    this.#members.delete(member);
    await end(member);
    throw new Error('the hold has ended meanwhile');
  }

  /** The locks of a session that broke are taken again: what was waiting for them goes on meanwhile. */
  #lose(member: Member): void {
    if (!this.#members.delete(member)) return;
    const lost = [...this.#entries.values()].filter(({ session }) => session === member.locks);
    member.locks.lose();
    member.transaction.destroy();
    const holders = new Set(lost.flatMap((entry) => [...entry.holders]));
    for (const entry of lost) entry.session = undefined;
    for (const holder of holders) holder.lose();
    this.condition.notify();
    if (lost.length === 0) return;
    const { reservedFor } = member;
    const taking = reservedFor ? this.takeReserved(reservedFor, lost) : this.take(lost);
    taking.catch((error: unknown) => {
      const failure = error instanceof Error ? error : new Error(String(error));
      for (const holder of holders) holder.fail(failure);
      this.condition.notify();
    });
  }

  #bounds(): Bounds {
    const due = Math.max(0, ...[...this.#holders].map(({ dueAt }) => dueAt));
    return boundsFor(Math.max(0, due - performance.now()));
  }
}

/** One hold's locks on one node. */
export class LockHolder {
  readonly #table: LockTable;
  readonly #options: HolderOptions;
  readonly #entries = new Map<string, Entry>();
  #dueAt: number;
  #isKept = false;
  #failure: Error | undefined;
  #losses = 0;

  constructor(table: LockTable, options: HolderOptions) {
    this.#table = table;
    this.#options = options;
    this.#dueAt = performance.now() + options.remainingMs;
  }

  get purpose(): string {
    return this.#options.purpose;
  }

  /** Until when they may be needed, by performance.now(). */
  get dueAt(): number {
    return this.#dueAt;
  }

  /** Whether its locks are not yielded. */
  get isKept(): boolean {
    return this.#isKept;
  }

  /** Sessions that have or wait for its locks. */
  get sessions(): LockSession[] {
    return [...new Set([...this.#entries.values()].flatMap(({ session }) => session ?? []))];
  }

  /** Why it cannot have what it is to have; undefined as long as it can. */
  get failure(): Error | undefined {
    return this.#failure ?? this.#table.failureOf([...this.#entries.values()]);
  }

  has(lock: Lock): boolean {
    const entry = this.#entries.get(lock.key);
    return entry !== undefined && this.#table.isTaken(entry);
  }

  /** The session that waits for a lock, or will. */
  sessionOf(lock: Lock): LockSession | undefined {
    return this.#entries.get(lock.key)?.session;
  }

  /** Has so many sessions open. @throws when there is none with the server. */
  async open(count: number): Promise<void> {
    await this.#table.open(count);
  }

  async takeAtOnce(locks: readonly Lock[]): Promise<boolean> {
    return this.#table.takeAtOnce(this.#enter(locks));
  }

  /** Queues for them; see `has`. */
  async take(locks: readonly Lock[]): Promise<void> {
    await this.#table.take(this.#enter(locks));
  }

  /** The session of its own, once it is open. */
  get reserved(): LockSession | undefined {
    return this.#table.reservedOf(this);
  }

  /** Opens the session for the locks that no other hold shares. @throws when there is none with the server. */
  async reserve(): Promise<void> {
    await this.#table.reserve(this);
  }

  /** Queues for locks that no other hold shares, in a session of its own. */
  async takeReserved(locks: readonly Lock[]): Promise<void> {
    await this.#table.takeReserved(this, this.#enter(locks));
  }

  /** From now on none of its locks is yielded. */
  keep(): void {
    this.#losses = 0;
    this.#isKept = true;
  }

  /** Needs these no longer. */
  async release(locks: readonly Lock[]): Promise<void> {
    const released = locks.flatMap(({ key }) => this.#entries.get(key) ?? []);
    for (const { key } of locks) this.#entries.delete(key);
    // One entry may stand for several locks that it covers.
    const needed = new Set(this.#entries.values());
    await this.#table.release(
      this,
      released.filter((entry) => !needed.has(entry)),
    );
  }

  /** Leaves all queues and gives up all that it has, for now. */
  async releaseAll(): Promise<void> {
    const entries = [...this.#entries.values()];
    this.#entries.clear();
    await this.#table.release(this, entries);
  }

  /** Ends: needs none any more. */
  async leave(): Promise<void> {
    const entries = [...this.#entries.values()];
    this.#entries.clear();
    this.#isKept = false;
    await this.#table.leave(this, entries);
  }

  /** They may be needed for so many milliseconds from now. */
  extend(remainingMs: number): void {
    this.#dueAt = performance.now() + remainingMs;
    this.#table.renew();
  }

  lose(): void {
    this.#losses += 1;
    if (this.#losses > MOST_LOSSES) this.fail(new Error('its sessions are ended again and again'));
    else if (this.#isKept) this.#options.onLost();
  }

  fail(error: Error): void {
    if (this.#failure) return;
    this.#failure = error;
    this.#options.onFailure(error);
  }

  #enter(locks: readonly Lock[]): Entry[] {
    const entries = this.#table.enter(this, locks);
    for (const [index, lock] of locks.entries()) {
      const entry = entries[index];
      if (entry) this.#entries.set(lock.key, entry);
    }
    return entries;
  }
}

/** Ends a transaction that may wait for a lock: a rollback would queue behind the statement that waits. */
async function end({ transaction, locks }: Member): Promise<void> {
  const isOver = (await inTime(locks.stop())) && (await inTime(transaction.rollback()));
  if (!isOver) transaction.destroy();
}

/** How long a lock is waited for is the hold's decision, not the server's. */
function boundsFor(remainingMs: number): Bounds {
  return { idleMs: remainingMs + SERVER_GRACE_MS, lockMs: remainingMs, statementMs: remainingMs };
}
