import { setTimeout as delay } from 'node:timers/promises';
import { SessionLostError } from '../errors.js';
import type { LockSession } from './lock-session.js';
import type { Server } from './server.js';
import { partsOf, WaitGraph, type Edge, type OwnSession, type Vertex } from './decisions.js';

/** A lock that is free is granted within a moment; a server is not asked before, in milliseconds. */
const UNWATCHED_MS = 1;
/** A server is asked after so long first, and less often the longer it has had nothing new, in milliseconds. */
const CHECK_LEAST_MS = 1;
const CHECK_MOST_MS = 5;
/** The part of the time without news that it waits before it asks again. */
const CHECK_PART = 0.1;
/** When a server that could not be asked is asked again. */
const AGAIN_MS = 250;
/** How often all servers are asked for waits that run through several of them, and how soon first. */
const WIDE_MS = 10;

interface WatchOptions {
  readonly onError: (server: Server, error: unknown) => void;
}

/** What was seen of one server last. */
interface Snapshot {
  chains: readonly Edge[];
  waits: readonly Edge[];
  wideAt: number;
  /** Since when the blockers are the same. */
  since: number;
}

/**
 * Asks the servers which sessions block the locks that are waited for, while any is, and makes sessions of
 * the controller yield that are in a blocked cycle. Each server is asked at its own pace, so that one that
 * does not answer delays no other.
 */
export class Watch {
  readonly #options: WatchOptions;
  readonly #sessions = new Set<LockSession>();
  readonly #listeners = new Set<(graph: WaitGraph) => void>();
  /** Sessions of these yield no more. */
  readonly #neverYield = new Set<() => readonly LockSession[]>();
  readonly #servers = new Set<Server>();
  readonly #snapshots = new Map<Server, Snapshot>();
  readonly #watched = new Set<Server>();
  #checks = 0;

  constructor(options: WatchOptions) {
    this.#options = options;
  }

  /** How often a server has been asked. */
  get checks(): number {
    return this.#checks;
  }

  /** A server where locks are taken, or where sessions that have such locks may wait for one another. */
  addServer(server: Server): void {
    this.#servers.add(server);
  }

  removeServer(server: Server): void {
    this.#servers.delete(server);
    this.#snapshots.delete(server);
  }

  /** The server of a vertex, as far as it is known. */
  serverOf(vertex: Vertex): Server | undefined {
    const { key } = partsOf(vertex);
    return [...this.#servers].find((server) => server.key === key);
  }

  add(session: LockSession): void {
    this.#sessions.add(session);
  }

  remove(session: LockSession): void {
    this.#sessions.delete(session);
  }

  /** Calls a listener after each look at a server. @returns ends it */
  listen(listener: (graph: WaitGraph) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /** From now on these sessions yield no more. @returns ends it */
  neverYield(sessions: () => readonly LockSession[]): () => void {
    this.#neverYield.add(sessions);
    return () => this.#neverYield.delete(sessions);
  }

  /** A session has begun to take locks. */
  wake(): void {
    for (const server of this.#servers) {
      if (this.#watched.has(server)) continue;
      this.#watched.add(server);
      void this.#watch(server);
    }
  }

  async #watch(server: Server): Promise<void> {
    while (this.#servers.has(server) && [...this.#sessions].some(({ isActive }) => isActive)) {
      await delay(this.#paceOf(server));
      try {
        await this.#check(server);
      } catch (error) {
        this.#snapshots.delete(server);
        this.#options.onError(server, error);
        // When the session that asked was ended, the next one need not be.
        if (!(error instanceof SessionLostError)) await delay(AGAIN_MS);
      }
    }
    this.#snapshots.delete(server);
    this.#watched.delete(server);
  }

  #paceOf(server: Server): number {
    const unchangedMs = performance.now() - (this.#snapshots.get(server)?.since ?? Infinity);
    return Math.min(Math.max(CHECK_PART * unchangedMs, CHECK_LEAST_MS), CHECK_MOST_MS);
  }

  async #check(server: Server): Promise<void> {
    const waiting = this.#waiting();
    if (waiting.length === 0) return;
    const here = waiting.filter((session) => session.server === server);
    const now = performance.now();
    const snapshot = this.#snapshots.get(server) ?? {
      chains: [],
      waits: [],
      wideAt: 0,
      since: now,
    };
    const before = now - WIDE_MS;
    const isWide =
      this.#servers.size > 1 &&
      snapshot.wideAt <= before &&
      waiting.some(({ waitsSince }) => waitsSince <= before);
    if (here.length === 0 && !isWide) return;
    this.#checks += 1;
    if (isWide) {
      snapshot.waits = await server.waits();
      snapshot.wideAt = performance.now();
    } else {
      const chains = await this.#checkChains(server, here);
      if (!sameEdges(chains, snapshot.chains)) snapshot.since = performance.now();
      snapshot.chains = chains;
    }
    this.#snapshots.set(server, snapshot);
    const graph = this.#graph();
    this.#yield(graph);
    for (const listener of this.#listeners) listener(graph);
  }

  /** The sessions themselves wait for the answer before they go on. */
  async #checkChains(server: Server, here: readonly LockSession[]): Promise<readonly Edge[]> {
    const own = [...this.#sessions].filter((session) => session.server === server);
    const unyielding = this.#unyielding();
    const yielding = here.filter((session) => !unyielding.has(session));
    const pidsOf = (sessions: readonly LockSession[]): number[] => sessions.map(({ pid }) => pid);
    const chains = server.chains(pidsOf(own), pidsOf(here), pidsOf(yielding));
    for (const session of yielding) session.expect(chains);
    const { edges, interrupted } = await chains;
    const ownPids = new Set(pidsOf(own));
    for (const session of yielding.filter(({ pid }) => interrupted.includes(pid))) {
      const blocked = edges.filter(
        ({ blocker, pid }) => blocker === server.vertexOf(session.pid) && !ownPids.has(pid),
      );
      session.yieldTo(
        blocked.map(({ pid }) => pid),
        true,
      );
    }
    return edges;
  }

  #waiting(): LockSession[] {
    const before = performance.now() - UNWATCHED_MS;
    return [...this.#sessions].filter(({ waiting }) => waiting && waiting.since < before);
  }

  #unyielding(): Set<LockSession> {
    return new Set([...this.#neverYield].flatMap((sessions) => sessions()));
  }

  #graph(): WaitGraph {
    const waiting = new Set(this.#waiting());
    const own = [...this.#sessions].map((session): OwnSession => ({
      vertex: session.server.vertexOf(session.pid),
      isWaiting: waiting.has(session),
      isKept: session.isKept,
    }));
    const edges = [...this.#snapshots.values()].flatMap(({ chains, waits }) => [
      ...chains,
      ...waits,
    ]);
    return new WaitGraph(edges, own);
  }

  #yield(graph: WaitGraph): void {
    const cycles = graph.blockedCycles();
    if (cycles.length === 0) return;
    const unyielding = this.#unyielding();
    const sessions = new Map([...this.#sessions].map((s) => [s.server.vertexOf(s.pid), s]));
    for (const { session, blocked } of cycles) {
      const holder = sessions.get(session);
      if (!holder?.canYield || unyielding.has(holder)) continue;
      holder.yieldTo(blocked);
      // What was seen before is about to be no longer so.
      this.#snapshots.clear();
    }
  }
}

function sameEdges(one: readonly Edge[], other: readonly Edge[]): boolean {
  const known = new Set(other.map(({ waiter, blocker }) => `${waiter} ${blocker}`));
  return (
    one.length === other.length &&
    one.every(({ waiter, blocker }) => known.has(`${waiter} ${blocker}`))
  );
}
