import type { DatabaseStateError } from '../../../errors.js';
import type { BlockingSessions } from '../../../locks/blocking-sessions.js';
import type { NodeState, WaitedLock, Vertex } from '../../../locks/decisions.js';
import type { Lock } from '../../../locks/lock.js';
import { inTime, type LockOwner, type LockSession } from '../../../locks/lock-session.js';
import { QUEUES, type LockHolder } from '../../../locks/lock-table.js';
import type { Transaction } from '../../../postgres/transaction.js';
import type { Pause } from '../../../tasks/task.js';
import { within } from '../../../wait.js';
import type { PauseNode } from './nodes.js';
import { NodeTargets } from './targets-reader.js';
import {
  isGone,
  describeRenounced,
  notLockable,
  shardLocks,
  wantedTables,
  type Targets,
  type WantedTables,
} from './targets.js';

/** How soon a free lock is there, in milliseconds; a busy server may take longer. */
const AT_ONCE_MS = 5;
/** A table or shard may be dropped between the read and the lock; so often the list is read again. */
const GONE_TRIES = 3;
/** So long it may take to lock again what was lost, in milliseconds. */
const REGAIN_MS = 5_000;

/** What a hold pauses. */
export interface HoldOrder {
  readonly groupid: number;
  readonly pause: Exclude<Pause, 'none'>;
  /** False when the primary is gone already: every client fails that does not wait yet. */
  readonly planned: boolean;
  readonly cooldownMs: number;
  /** How long the hold may last, in milliseconds from now. */
  readonly remainingMs: number;
}

/** What the group's own transaction locks, on the coordinator. */
export interface GroupLocks {
  readonly transaction: Transaction;
  readonly locksFor: (targets: Targets) => Lock[];
  /** True when they lock shards that other groups have, too. */
  readonly coversShared: boolean;
}

interface NodePauseOptions {
  readonly node: PauseNode;
  readonly order: HoldOrder;
  readonly blocking: BlockingSessions;
  /** On the coordinator: what commits the change. */
  readonly group?: GroupLocks;
  /** Called when locks that were kept are lost; they are being taken again. */
  readonly onLost: (pause: NodePause) => void;
  /** Called when they are there again, or, with an error, when that cannot be. */
  readonly onRegained: (pause: NodePause, error?: Error) => void;
}

/** The locks of a hold on one node, by what they are for. */
interface Wanted extends WantedTables {
  /** On shards: no other hold shares them. */
  readonly own: readonly Lock[];
}

const NOTHING: Wanted = { reads: [], writes: [], drain: [], own: [] };

/** A lock that a hold waits for on one node. */
export interface NodeLock extends WaitedLock<Vertex> {
  readonly lock: Lock;
}

/** One node's part in a hold: the statements that enter through this node and were to be paused, wait. */
export class NodePause implements LockOwner {
  readonly node: PauseNode;
  readonly #options: NodePauseOptions;
  readonly #order: HoldOrder;
  readonly #holder: LockHolder;
  readonly #targets: NodeTargets;
  readonly #over = new AbortController();
  /** On the coordinator, the session that commits the change: it locks what no other hold shares. */
  readonly #group: LockSession | undefined;
  #wanted = NOTHING;
  /** Whether the shards are needed, or only tell which sessions write to the group. */
  #needsOwn = true;
  #isOwnAsked = false;
  /** Locks whose blockers all stay, with those of them that have stayed for long. */
  readonly #stuck = new Map<string, readonly Vertex[]>();
  /** Tables whose reads are not paused, and why. */
  readonly #renounced = new Map<string, string>();
  #mustPlan = false;
  #isKept = false;
  #yields: number | undefined;
  #regaining: Promise<void> | undefined;
  #leftOut: string | null = null;
  #refusal: string | null = null;

  constructor(options: NodePauseOptions) {
    const { node, order, group } = options;
    this.node = node;
    this.#options = options;
    this.#order = order;
    this.#targets = new NodeTargets(node.targets, order.groupid);
    this.#holder = node.locks.join({
      purpose: `pause of group ${order.groupid}`,
      remainingMs: order.remainingMs,
      onLost: () => this.#lose(),
      onFailure: (error) => this.#isKept && options.onRegained(this, error),
    });
    this.#group = group && node.locks.adopt(group.transaction, this);
  }

  /** The session of the locks that no other hold shares; undefined until it is opened. */
  get #own(): LockSession | undefined {
    return this.#group ?? this.#holder.reserved;
  }

  isHeld(lock: Lock): boolean {
    return this.#isOwnAsked && this.#wanted.own.some(({ key }) => key === lock.key);
  }

  isKept(): boolean {
    return this.#isKept;
  }

  /** True while what was taken pauses statements. */
  get isHolding(): boolean {
    return this.#isKept && !this.isLeftOut();
  }

  /** A function: it may be left out while its caller waits. */
  isLeftOut(): boolean {
    return this.#over.signal.aborted;
  }

  /** A sentence when less is paused than was asked for, else null. */
  get reason(): string | null {
    if (this.#leftOut !== null || this.#refusal !== null) return this.#leftOut ?? this.#refusal;
    return this.#renounced.size === 0 ? null : describeRenounced(this.#renounced);
  }

  /** The same in one word. */
  get shortfall(): 'node' | 'reads' | undefined {
    if (this.#leftOut !== null || this.#refusal !== null) return 'node';
    return this.#renounced.size === 0 ? undefined : 'reads';
  }

  /** Processes on this node that have or wait for locks of the hold. */
  get sessions(): LockSession[] {
    return [...new Set([...this.#holder.sessions, ...(this.#own ? [this.#own] : [])])];
  }

  /** How often its sessions have yielded until it was there. */
  get yields(): number {
    return this.#yields ?? this.sessions.reduce((sum, { yields }) => sum + yields, 0);
  }

  /** True when it has all that it needs at this moment, or has been left out. */
  get isComplete(): boolean {
    if (this.isLeftOut()) return true;
    return !this.#mustPlan && this.#hasTables && (!this.#needsOwn || this.#hasOwn);
  }

  get #hasTables(): boolean {
    return [...this.#wanted.reads, ...this.#wanted.writes].every((lock) => this.#holder.has(lock));
  }

  get #hasOwn(): boolean {
    return this.#wanted.own.every((lock) => this.#own?.has(lock) ?? false);
  }

  /** Opens the sessions that it will need, and reads what is to be locked. */
  async prepare(): Promise<void> {
    const { pause, planned } = this.#order;
    const { group } = this.#options;
    const own = group
      ? this.node.setUp(group.transaction)
      : pause === 'writes' && this.#holder.reserve();
    if (own) own.catch(() => undefined); // Thrown where it is waited for.
    if (planned) {
      const { tables, shared } = await this.#targets.read();
      const needed = pause === 'all' ? tables : group?.coversShared ? [] : shared;
      await Promise.all([own, needed.length > 0 ? this.#holder.open(1) : undefined]);
    } else {
      // Other sessions are sure to block it.
      await Promise.all([own, this.#targets.guess(), this.#holder.open(QUEUES)]);
    }
  }

  /**
   * Takes the locks: tables, then shards. Resolves once it has had all of them, though it may have to
   * yield some again; see `isComplete`.
   *
   * @param signal makes it stop; `leaveQueue` follows.
   * @throws DatabaseStateError when this role may not lock here or there is no room for the locks;
   *   the error of a statement that failed, or the reason of the signal.
   */
  async take(signal: AbortSignal): Promise<void> {
    for (let attempt = 1; ; attempt += 1) {
      try {
        do await this.#takeAll(signal);
        while (!this.isLeftOut() && !(await this.#isCurrent()));
        return;
      } catch (error) {
        if (this.isLeftOut()) return;
        signal.throwIfAborted();
        // A list that was remembered may name what is another owner's by now.
        if (attempt === GONE_TRIES || !(isGone(error) || this.#targets.isGuess)) throw error;
        await this.leaveQueue();
        this.#targets.forget();
      }
    }
  }

  /** A function: it may have to do without a table since it has begun to wait. */
  #isOutdated(): boolean {
    return this.#mustPlan;
  }

  /** Whether what is taken is what is to be taken, now that it is there. */
  async #isCurrent(): Promise<boolean> {
    return !this.#mustPlan && (await this.#targets.isCurrent());
  }

  async #takeAll(signal: AbortSignal): Promise<void> {
    if (this.isLeftOut()) return;
    this.#mustPlan = false;
    const { planned } = this.#order;
    await this.#plan();
    signal.throwIfAborted();
    const { reads, writes, drain, own } = this.#wanted;
    const tables = [...reads, ...writes];
    if (!planned) await this.#holder.take(tables);
    const free = await Promise.all([
      tables.length === 0 || (planned && this.#holder.takeAtOnce(tables)),
      reads.length > 0 || this.#takeOwnAtOnce(own),
    ]);
    if (!free.every(Boolean)) {
      await this.#releaseOwn();
      signal.throwIfAborted();
      const queued = [...tables, ...drain];
      await this.#holder.take(queued);
      await this.#until(
        () => queued.every((lock) => this.#holder.has(lock) || this.#stuck.has(lock.key)),
        signal,
      );
    }
    if (this.#isOutdated()) return;
    this.#needsOwn =
      this.#group !== undefined || this.#order.pause === 'writes' || this.#renounced.size > 0;
    // Where a table cannot be had, the shards tell whether its blockers write to the group.
    if (this.#needsOwn || !this.#hasTables) await this.#takeOwn(own);
    await this.#until(() => this.isComplete, signal);
  }

  /** Reads what is to be locked, if that is not known, and decides with which locks. */
  async #plan(): Promise<void> {
    const { pause, groupid } = this.#order;
    const { lockSpace } = this.node;
    let targets = this.#targets.found ?? (await this.#targets.read());
    let refusal = this.#refusalOf(targets);
    if (refusal && this.#targets.isGuess) {
      targets = await this.#targets.read();
      refusal = this.#refusalOf(targets);
    }
    const group = this.#options.group;
    const mayNotLock = refusal?.code === 'NOT_OWNER' && group?.coversShared === true;
    if (refusal && !mayNotLock) throw refusal;
    if (refusal && pause === 'all') this.#refusal = `only writes are paused: ${refusal.message}`;
    lockSpace.claim(this, targets.shards.length);
    const before = this.#wanted;
    const forReads = (table: string): boolean => pause === 'all' && !this.#renounced.has(table);
    const own = group?.locksFor(targets) ?? shardLocks(groupid, targets.shards);
    const coversShared = group?.coversShared === true;
    const tables = mayNotLock ? NOTHING : wantedTables(targets, forReads, coversShared);
    this.#wanted = { ...tables, own };
    await this.#releaseUnwanted(before);
  }

  #refusalOf(targets: Targets): DatabaseStateError | undefined {
    const { lockSpace, server } = this.node;
    const locksTaken = Math.max(targets.locksTaken, lockSpace.claimedBeside(this));
    return notLockable({ ...targets, locksTaken }, this.#order.groupid, server.name);
  }

  async #releaseUnwanted(before: Wanted): Promise<void> {
    const wanted = new Set(allOf(this.#wanted).map(({ key }) => key));
    const gone = allOf(before).filter(({ key }) => !wanted.has(key));
    for (const { key } of gone) this.#stuck.delete(key);
    if (gone.length === 0) return;
    await Promise.all([this.#holder.release(gone), this.#releaseGroup()]);
  }

  /** Without a place in the queue where the shards are not free: then the tables are locked first. */
  async #takeOwnAtOnce(locks: readonly Lock[]): Promise<boolean> {
    await this.#takeOwn(locks);
    const session = this.#own;
    if (session === undefined) return true;
    const taking = session.taking(locks);
    taking.catch(() => undefined);
    for (;;) {
      const isTaken = await within(AT_ONCE_MS, taking, undefined);
      if (isTaken !== undefined) return isTaken;
      if (!(await this.node.server.isBlocked(session.pid).catch(() => true))) continue;
      await this.#releaseOwn();
      return false;
    }
  }

  async #takeOwn(locks: readonly Lock[]): Promise<void> {
    this.#isOwnAsked = true;
    if (this.#group) this.#group.take(locks);
    else if (locks.length > 0) await this.#holder.takeReserved(locks);
  }

  async #releaseOwn(): Promise<void> {
    this.#isOwnAsked = false;
    if (this.#group) await this.#releaseGroup();
    else await this.#holder.release(this.#wanted.own);
  }

  /** The table releases in its own sessions; that of the group is known to this hold alone. */
  async #releaseGroup(): Promise<void> {
    if (this.#group) await inTime(this.#group.release());
  }

  async #until(test: () => boolean, signal: AbortSignal): Promise<void> {
    const { condition } = this.node.locks;
    while (!test() && !this.#mustPlan) {
      signal.throwIfAborted();
      if (this.isLeftOut()) return;
      const failure = this.#holder.failure ?? this.#group?.failure;
      if (failure) throw failure;
      await condition.changed();
    }
  }

  /** What it waits for; see `decide`. To be called after each look at the servers. */
  see(stayMs: number): NodeState<Vertex, NodeLock> {
    if (this.isLeftOut()) return { waited: [], hasWrites: true };
    this.#findStuck(stayMs);
    const { reads, writes, drain, own } = this.#wanted;
    const state = (need: NodeLock['need'], locks: readonly Lock[]): NodeLock[] =>
      locks.flatMap((lock) => {
        if (this.#has(lock)) return [];
        const session = this.#sessionOf(lock);
        const isWaiting = session?.waiting?.locks.some(({ key }) => key === lock.key) ?? false;
        const { blocking } = this.#options;
        const stuck = this.#stuck.get(lock.key);
        const [long, behindHold] =
          session && isWaiting
            ? [blocking.longOf(session, stayMs), blocking.behindHoldOf(session, stayMs)]
            : [stuck ?? [], []];
        return [{ lock, need, isStuck: stuck !== undefined, long, behindHold }];
      });
    return {
      waited: [
        ...state('reads', reads),
        ...state('writes', writes),
        ...state('drain', drain),
        ...(this.#isOwnAsked ? state('writes', own) : []),
      ],
      hasWrites: writes.every((lock) => this.#holder.has(lock)) && this.#isOwnAsked && this.#hasOwn,
    };
  }

  #findStuck(stayMs: number): void {
    const { blocking } = this.#options;
    const wanted = new Map(allOf(this.#wanted).map((lock) => [lock.key, lock]));
    for (const [key, long] of this.#stuck) {
      const lock = wanted.get(key);
      const there = long.filter((vertex) => Number.isFinite(blocking.since(vertex)));
      if (!lock || this.#has(lock) || (long.length > 0 && there.length === 0))
        this.#stuck.delete(key);
    }
    for (const session of this.sessions) {
      const waited = session.waiting?.locks ?? [];
      for (const { key } of session.unresolvable) if (wanted.has(key)) this.#stuck.set(key, []);
      if (waited.length === 0) continue;
      const isStuck = blocking.isStuck(session, stayMs);
      for (const { key } of waited) {
        if (!wanted.has(key)) continue;
        if (isStuck) this.#stuck.set(key, blocking.longOf(session, stayMs));
        else this.#stuck.delete(key);
      }
      // What is behind it in the session may be had meanwhile.
      const isBehind = ({ key }: Lock): boolean =>
        !waited.some((lock) => lock.key === key) && !this.#stuck.has(key);
      if (isStuck && session.pending.some(isBehind)) session.postpone();
    }
    this.node.locks.condition.notify();
  }

  #has(lock: Lock): boolean {
    return this.#holder.has(lock) || (this.#own?.has(lock) ?? false);
  }

  #sessionOf(lock: Lock): LockSession | undefined {
    return (
      this.#holder.sessionOf(lock) ?? (this.#wanted.own.includes(lock) ? this.#own : undefined)
    );
  }

  /** Goes on without pausing the reads of the tables of a lock. */
  renounce({ lock }: NodeLock, why: string): void {
    for (const table of lock.tables)
      this.#renounced.set(table, `${why} on ${this.node.server.name}`);
    this.#mustPlan = true;
    this.node.locks.condition.notify();
  }

  /** Gives up all locks and places in queues, to take them again later. */
  async leaveQueue(): Promise<void> {
    this.#isOwnAsked = false;
    this.#stuck.clear();
    await Promise.all([this.#holder.releaseAll(), this.#releaseGroup()]);
  }

  /** Nothing is yielded from now on; statements that only the drain made wait go on. */
  keep(): void {
    if (this.isLeftOut()) return;
    this.#yields = this.yields;
    this.#isKept = true;
    this.#holder.keep();
    void this.#endDrain();
  }

  async #endDrain(): Promise<void> {
    const { drain, own } = this.#wanted;
    if (!this.#needsOwn && this.#isOwnAsked) {
      this.#isOwnAsked = false;
      await this.#holder.release(own);
    }
    if (drain.length > 0) await this.#holder.release(drain);
    this.node.locks.closeUnused();
  }

  #lose(): void {
    if (!this.#isKept || this.#regaining || this.isLeftOut()) return;
    this.#options.onLost(this);
    this.#regaining = this.#regain().finally(() => (this.#regaining = undefined));
  }

  /** Resolves once lost locks are there again, or the hold goes on without them. */
  async whole(): Promise<void> {
    while (this.#regaining) await this.#regaining;
  }

  async #regain(): Promise<void> {
    try {
      const regained = this.#until(() => this.isComplete, this.#over.signal).then(() => true);
      const isBack = await within(REGAIN_MS, regained, false);
      if (!isBack) throw new Error(`its locks were not free again within ${REGAIN_MS / 1_000} s`);
      this.#holder.keep();
      if (!this.isLeftOut()) this.#options.onRegained(this);
    } catch (error) {
      const failure = error instanceof Error ? error : new Error(String(error));
      if (!this.isLeftOut()) this.#options.onRegained(this, failure);
    }
  }

  /** The hold may last so many milliseconds from now. */
  extend(remainingMs: number): void {
    this.#holder.extend(remainingMs);
  }

  /** Lets the traffic of this node go on. */
  async release(): Promise<void> {
    this.node.lockSpace.release(this);
    this.#isKept = false;
    this.#isOwnAsked = false;
    this.#over.abort(new Error('this part of the hold has ended'));
    this.node.locks.condition.notify();
    // What is still being opened ends by itself: a node that is silent must not be waited for here.
    await Promise.all([inTime(this.#holder.leave()), this.#group && inTime(this.#group.stop())]);
  }

  /** The hold goes on without this node. */
  async leaveOut(why: string): Promise<void> {
    if (this.isLeftOut()) return;
    this.#leftOut = `what enters through ${this.node.server.name} does not wait: ${why}`;
    await this.release();
  }

  /** The hold goes on without what could not be locked again, on the coordinator. */
  sayLost(why: string): void {
    this.#refusal = `reads are no longer paused on ${this.node.server.name}: ${why}`;
  }

  /** Whether DDL waits for the tables of the hold. @param pattern of its text, as a regular expression */
  async isBlockingDdl(pattern: string): Promise<boolean> {
    const pids = this.#holder.sessions.map(({ pid }) => pid);
    return pids.length > 0 && (await this.node.server.isBlockingDdl(pids, pattern));
  }
}

function allOf({ reads, writes, drain, own }: Wanted): Lock[] {
  return [...reads, ...writes, ...drain, ...own];
}
