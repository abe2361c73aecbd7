/**
 * What a hold that is being opened does about the sessions that block it. Pure; times in milliseconds, moments
 * by performance.now(). See docs/locking.md.
 */

/** A blocker that stays for so long is waited for outside the queue. */
const STAY_MS = 250;
/** So many tries stay that long; each further one half as long as the one before, so that all take a second at most. */
const FULL_TRIES = 3;
/** A blocker of reads alone is waited for so long, or for the cooldown; then the table's reads are not paused. */
const READS_STAY_MS = 1_500;

/** How long a blocker may stay before this try, the first being 1, leaves the queue. */
export function stayOf(attempt: number): number {
  return STAY_MS / 2 ** Math.max(0, attempt - FULL_TRIES);
}

function readsStayOf(cooldownMs: number): number {
  return Math.min(READS_STAY_MS, cooldownMs);
}

/** Since when vertices have been seen without a break. */
export class Sightings<T> {
  readonly #gapMs: number;
  readonly #seen = new Map<T, { since: number; at: number }>();

  /** @param gapMs a vertex that was not seen for longer is a new one. */
  constructor(gapMs: number) {
    this.#gapMs = gapMs;
  }

  see(seen: Iterable<T>, now: number): void {
    for (const [one, { at }] of this.#seen) if (now - at > this.#gapMs) this.#seen.delete(one);
    for (const one of seen) {
      const known = this.#seen.get(one);
      if (known) known.at = Math.max(known.at, now);
      else this.#seen.set(one, { since: now, at: now });
    }
  }

  /** It is known to be there since then, and not longer. */
  correct(one: T, since: number): void {
    const known = this.#seen.get(one);
    if (known) known.since = Math.max(known.since, since);
  }

  /** It counts as seen for so long from now. */
  pin(one: T, ms: number, now: number): void {
    const known = this.#seen.get(one);
    if (known) known.at = now + ms;
  }

  since(one: T): number | undefined {
    return this.#seen.get(one)?.since;
  }

  forget(one: T): void {
    this.#seen.delete(one);
  }

  /** Those that have been seen for so long. */
  longerThan(ms: number, now: number): T[] {
    return [...this.#seen].flatMap(([one, { since }]) => (now - since >= ms ? [one] : []));
  }
}

/** A lock that a hold waits for. */
export interface WaitedLock<B> {
  /**
   * `writes`: the hold is none without it. `reads`: without it a table's reads are not paused. `drain`: it
   * only helps to take the others.
   */
  readonly need: 'writes' | 'reads' | 'drain';
  /** Its root blockers that have stayed for longer than the hold stays behind them. */
  readonly long: readonly B[];
  /** Its blockers that wait for what another hold keeps, and have for as long. */
  readonly behindHold: readonly B[];
  /** Whether every one of its blockers stays: one of these, or a session that waits for what a hold keeps. */
  readonly isStuck: boolean;
}

/** The part of a hold on one node. */
export interface NodeState<B, L extends WaitedLock<B>> {
  readonly waited: readonly L[];
  /** Whether it has all locks without which writes are not paused. */
  readonly hasWrites: boolean;
}

export interface HoldState<B, L extends WaitedLock<B>> {
  readonly nodes: readonly NodeState<B, L>[];
  /** Since when a blocker has been there. */
  readonly since: (blocker: B) => number;
  /** False for a prepared transaction, or a session that this role may not terminate. */
  readonly canEnd: (blocker: B) => boolean;
  /** The primary is still there: a client that does not wait does not fail. */
  readonly isPlanned: boolean;
  /** For how long it has been opened. */
  readonly ageMs: number;
  readonly cooldownMs: number;
  readonly now: number;
}

/** A blocker that is waited for outside the queue. */
export interface AwaitedBlocker<B> {
  readonly blocker: B;
  /** Until it has blocked for so long in all, in milliseconds. */
  readonly mostMs: number;
  /** What follows then; else the hold tries again. */
  readonly thenTerminate: boolean;
}

interface Decision<B, L> {
  /** Leave all queues until these are gone; empty: stay. */
  readonly leaveFor: readonly AwaitedBlocker<B>[];
  /** Locks that are not waited for any longer. */
  readonly renounce: readonly L[];
  /** Sessions to terminate. */
  readonly terminate: readonly B[];
}

/**
 * - Nothing is terminated but what blocks writes, is itself blocked by no session, and has been for the
 *   cooldown.
 * - A hold that is planned leaves the queue for a blocker that stays, until it has been opened for twice the
 *   cooldown: after that it stays in the queue. Where the primary is gone, clients that do not wait fail, so
 *   such a hold stays.
 * - One that waits for another hold goes on when that hold ends: it is waited for outside the queue, however long.
 * - What is needed for reads alone is renounced when its blockers stay for long; those that block writes as well
 *   are waited for all the same.
 */
export function decide<B, L extends WaitedLock<B>>(hold: HoldState<B, L>): Decision<B, L> {
  const { nodes, since, canEnd, now, cooldownMs } = hold;
  const forWrites = nodes.flatMap((node) => node.waited).filter(({ need }) => need === 'writes');
  const ofWrites = new Set(forWrites.flatMap(({ long }) => long));
  const behindHold = new Set(forWrites.flatMap((lock) => lock.behindHold));
  const isDue = (blocker: B): boolean => canEnd(blocker) && now - since(blocker) >= cooldownMs;
  const mayLeave = hold.isPlanned && hold.ageMs < 2 * cooldownMs;
  const isLate = (blocker: B): boolean =>
    !mayLeave || now - since(blocker) >= readsStayOf(cooldownMs);
  const stuckReads = nodes
    .filter(({ hasWrites }) => hasWrites)
    .flatMap((node) => node.waited)
    .filter(({ need, isStuck }) => need === 'reads' && isStuck);
  const ofReads = stuckReads.flatMap(({ long }) => long).filter((blocker) => !isLate(blocker));
  return {
    terminate: [...ofWrites].filter(isDue),
    renounce: stuckReads.filter(({ long }) => long.every((blocker) => isLate(blocker))),
    leaveFor: hold.isPlanned
      ? [
          ...[...ofWrites]
            .filter((one) => !isDue(one) && (mayLeave || !canEnd(one)))
            .map((blocker) => ({
              blocker,
              mostMs: canEnd(blocker) ? cooldownMs : Infinity,
              thenTerminate: true,
            })),
          ...[...behindHold].map((blocker) => ({
            ...{ blocker, mostMs: Infinity, thenTerminate: false },
          })),
          ...[...new Set(ofReads)]
            .filter((one) => !ofWrites.has(one))
            .map((blocker) => ({
              ...{ blocker, mostMs: readsStayOf(cooldownMs), thenTerminate: false },
            })),
        ]
      : [],
  };
}

/**
 * One session on one server, as `key of the server:pid`. A session that works for a client of another server
 * counts as that client's; pid 0 stands for the prepared transactions of the server.
 */
export type Vertex = string;

/** `waiter` waits for `blocker`: for a lock that it has, or for its place in the queue. */
export interface Edge {
  readonly waiter: Vertex;
  readonly blocker: Vertex;
  /** The process that waits, on the server where it waits. */
  readonly pid: number;
}

/** A session of the controller. */
export interface OwnSession {
  readonly vertex: Vertex;
  readonly isWaiting: boolean;
  /** Whether it has locks that it must not yield. */
  readonly isKept: boolean;
}

/** A session of the controller that has to yield, and the processes on its server that it yields to. */
interface BlockedCycle {
  readonly session: Vertex;
  readonly blocked: readonly number[];
}

export function vertexOf(server: string, pid: number): Vertex {
  return `${server}:${pid}`;
}

export function partsOf(vertex: Vertex): { key: string; pid: number } {
  const colon = vertex.lastIndexOf(':');
  return { key: vertex.slice(0, colon), pid: Number(vertex.slice(colon + 1)) };
}

/** All that wait for one of these blockers, directly or through others. */
export function waitersOf(blockers: Iterable<Vertex>, edges: readonly Edge[]): Set<Vertex> {
  const waiters = new Set<Vertex>();
  const open = [...blockers];
  for (let vertex = open.pop(); vertex !== undefined; vertex = open.pop()) {
    for (const { waiter, blocker } of edges) {
      if (blocker !== vertex || waiters.has(waiter)) continue;
      waiters.add(waiter);
      open.push(waiter);
    }
  }
  return waiters;
}

/** Who waits for whom, as last seen on all servers. Immutable; decides nothing by itself. */
export class WaitGraph {
  readonly #edges = new Map<Vertex, Edge[]>();
  readonly #own: ReadonlyMap<Vertex, OwnSession>;

  constructor(edges: readonly Edge[], own: readonly OwnSession[]) {
    this.#own = new Map(own.map((session) => [session.vertex, session]));
    for (const edge of edges) {
      const known = this.#edges.get(edge.waiter);
      if (known) known.push(edge);
      else this.#edges.set(edge.waiter, [edge]);
    }
  }

  /** The sessions directly blocking a vertex, the controller's own included. */
  blockersOf(vertex: Vertex): Vertex[] {
    return [...new Set((this.#edges.get(vertex) ?? []).map(({ blocker }) => blocker))];
  }

  isOwn(vertex: Vertex): boolean {
    return this.#own.has(vertex);
  }

  /**
   * The controller's sessions that have to yield: those that a session waits for which one of the controller's
   * waits for, directly or through others.
   */
  blockedCycles(): BlockedCycle[] {
    const blocked = new Map<Vertex, Set<number>>();
    const waiting = [...this.#own.values()].filter(({ isWaiting }) => isWaiting);
    this.#walk(
      waiting.map(({ vertex }) => vertex),
      ({ waiter, blocker, pid }) => {
        // One of the controller's sessions behind another blocks no other session by that.
        if (!this.isOwn(blocker) || this.isOwn(waiter)) return;
        blocked.set(blocker, (blocked.get(blocker) ?? new Set()).add(pid));
      },
    );
    return [...blocked].map(([session, pids]) => ({ session, blocked: [...pids] }));
  }

  /** The sessions that a vertex waits for in the end: not the controller's, and waiting for no lock themselves. */
  rootBlockers(vertex: Vertex): Set<Vertex> {
    const roots = new Set<Vertex>();
    this.#walk([vertex], ({ blocker }) => {
      if (!this.isOwn(blocker) && !this.#edges.has(blocker)) roots.add(blocker);
    });
    return roots;
  }

  /**
   * Whether a vertex will not go on soon: it stays itself, or waits, directly or through others, for one that
   * does, or for a lock that a hold keeps. One that stays is enough: a lock is granted when all its blockers
   * are gone.
   */
  isStuck(vertex: Vertex, stays: (vertex: Vertex) => boolean): boolean {
    if (this.#isKept(vertex) || stays(vertex)) return true;
    let isStuck = false;
    this.#walk([vertex], ({ blocker }) => {
      isStuck ||= this.#isKept(blocker) || stays(blocker);
    });
    return isStuck;
  }

  #isKept(vertex: Vertex): boolean {
    return this.#own.get(vertex)?.isKept ?? false;
  }

  /** Every edge that is reachable from these vertices without going through a session of the controller. */
  #walk(from: readonly Vertex[], onEdge: (edge: Edge) => void): void {
    const seen = new Set(from);
    const open = [...seen];
    for (let vertex = open.pop(); vertex !== undefined; vertex = open.pop()) {
      for (const edge of this.#edges.get(vertex) ?? []) {
        onEdge(edge);
        if (this.isOwn(edge.blocker) || seen.has(edge.blocker)) continue;
        seen.add(edge.blocker);
        open.push(edge.blocker);
      }
    }
  }
}
