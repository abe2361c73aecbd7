import { setTimeout as delay } from 'node:timers/promises';
import { SessionLostError } from '../errors.js';
import type { LockSession } from './lock-session.js';
import type { BlockingClient, Ended, Server } from './server.js';
import { findKnots, type Edge, type Vertex } from './wait-graph.js';

/** How often a server is looked at while a lock is waited for on it, in milliseconds. */
const LOOK_MS = 1;
/** What is free comes without a wait; nothing is looked at before. */
const UNWATCHED_MS = 1;
/** When a server that could not be looked at is tried again. */
const AGAIN_MS = 250;
/** How often sessions in the way are ended: each may take a moment. */
const FORCE_MS = 100;
/** How often all servers are looked at for waits that run through several of them, and how soon first. */
const WIDE_MS = 10;

export interface WatchOptions {
  /** Called for each session that was in the way of one that has lost patience. */
  readonly onEnded: (ended: Ended, waitedMs: number) => void;
  readonly onError: (server: Server, error: unknown) => void;
}

/** What takes locks and has waited for long enough; sessions that join it later have, too. */
export interface Impatient {
  readonly sessions: readonly LockSession[];
}

/** What was seen of one server last. */
interface Sight {
  chains: readonly Edge[];
  waits: readonly Edge[];
  wideAt: number;
}

/**
 * Looks after the sessions that take locks: makes them yield to whoever is in the middle of something,
 * and ends, for those that have lost patience, who is in the way. It looks only while one of them
 * waits, at each server at its own pace, so that one that does not answer delays no other.
 */
export class Watch {
  readonly #options: WatchOptions;
  readonly #sessions = new Set<LockSession>();
  /** Those that have lost patience, by on whose behalf. */
  readonly #impatient = new Set<Impatient>();
  readonly #servers = new Set<Server>();
  readonly #sights = new Map<Server, Sight>();
  readonly #looking = new Set<Server>();
  /** When the sessions in its way were ended last. */
  readonly #forcedAt = new WeakMap<LockSession, number>();
  /** Sessions in the way that have been told of. */
  readonly #named = new Set<string>();
  #looks = 0;

  constructor(options: WatchOptions) {
    this.#options = options;
  }

  /** How often a server has been looked at. */
  get looks(): number {
    return this.#looks;
  }

  /** A server where locks are taken, or where clients that have such locks may wait for one another. */
  addServer(server: Server): void {
    this.#servers.add(server);
  }

  removeServer(server: Server): void {
    this.#servers.delete(server);
    this.#sights.delete(server);
  }

  add(session: LockSession): void {
    this.#sessions.add(session);
  }

  remove(session: LockSession): void {
    this.#sessions.delete(session);
  }

  /** From now on its sessions yield to nobody, and who is in their way is ended, until `regainPatience`. */
  losePatience(impatient: Impatient): void {
    this.#impatient.add(impatient);
  }

  regainPatience(impatient: Impatient): void {
    this.#impatient.delete(impatient);
    if (this.#impatient.size === 0) this.#named.clear();
  }

  /** The clients' transactions that a lock is being waited for, each once. Not those of a server that fails. */
  async clientsBlocking(): Promise<BlockingClient[]> {
    const waiting = [...this.#sessions].filter((session) => session.waiting);
    const found = await Promise.all(
      waiting.map(({ server, pid }) => server.clientsBlocking(pid).catch(() => [])),
    );
    const clients = new Map(found.flat().map((client) => [client.transaction, client]));
    return [...clients.values()].sort((a, b) => (a.transaction < b.transaction ? -1 : 1));
  }

  /** A session has begun to take locks. */
  wake(): void {
    for (const server of this.#servers) {
      if (this.#looking.has(server)) continue;
      this.#looking.add(server);
      void this.#watch(server);
    }
  }

  async #watch(server: Server): Promise<void> {
    while (this.#servers.has(server) && this.#busy()) {
      await delay(LOOK_MS);
      try {
        await this.#lookAt(server);
      } catch (error) {
        this.#sights.delete(server);
        this.#options.onError(server, error);
        // Whoever ended the session that looked has not ended the next one.
        if (!(error instanceof SessionLostError)) await delay(AGAIN_MS);
      }
    }
    this.#sights.delete(server);
    this.#looking.delete(server);
  }

  async #lookAt(server: Server): Promise<void> {
    const waiting = this.#waiting();
    if (waiting.length === 0) return;
    const here = waiting.filter((session) => session.server === server);
    const sight = this.#sights.get(server) ?? { chains: [], waits: [], wideAt: 0 };
    const before = performance.now() - WIDE_MS;
    const wide =
      this.#servers.size > 1 &&
      sight.wideAt <= before &&
      waiting.some(({ wantedSince }) => wantedSince <= before);
    if (here.length === 0 && !wide) return;
    this.#looks += 1;
    if (wide) {
      sight.waits = await server.waits();
      sight.wideAt = performance.now();
    } else {
      sight.chains = await this.#lookCloser(server, here);
    }
    this.#sights.set(server, sight);
    this.#yield();
    await Promise.all(here.map((session) => this.#force(session)));
  }

  /** The sessions themselves wait for the answer before they go on. */
  async #lookCloser(server: Server, here: readonly LockSession[]): Promise<readonly Edge[]> {
    const ours = [...this.#sessions].filter((session) => session.server === server);
    const yielding = here.filter((session) => !this.#isImpatient(session));
    const [all, waiting, may] = [ours, here, yielding].map((some) => some.map(({ pid }) => pid));
    const look = server.chains(all ?? [], waiting ?? [], may ?? []);
    for (const session of yielding) session.lookedAt(look);
    const { edges, interrupted } = await look;
    for (const session of yielding.filter(({ pid }) => interrupted.includes(pid))) {
      const isBehind = ({ blocker, pid }: Edge): boolean =>
        blocker === server.vertexOf(session.pid) && !(all ?? []).includes(pid);
      session.giveWayTo(
        edges.filter(isBehind).map(({ pid }) => pid),
        true,
      );
    }
    return edges;
  }

  #busy(): boolean {
    return [...this.#sessions].some((session) => session.active);
  }

  #waiting(): LockSession[] {
    const before = performance.now() - UNWATCHED_MS;
    return [...this.#sessions].filter(({ waiting }) => waiting && waiting.since < before);
  }

  #isImpatient(session: LockSession): boolean {
    return [...this.#impatient].some(({ sessions }) => sessions.includes(session));
  }

  #yield(): void {
    const sessions = new Map([...this.#sessions].map((session) => [vertexOf(session), session]));
    const waiting = this.#waiting().map(vertexOf);
    const edges = [...this.#sights.values()].flatMap(({ chains, waits }) => [...chains, ...waits]);
    for (const { session, blocked } of findKnots(edges, waiting, new Set(sessions.keys()))) {
      const holder = sessions.get(session);
      if (!holder?.canYield || this.#isImpatient(holder)) continue;
      holder.giveWayTo(blocked);
      // What was seen before is about to be no longer so.
      this.#sights.clear();
    }
  }

  async #force(session: LockSession): Promise<void> {
    const { waiting, server, pid } = session;
    if (!waiting || waiting.unit.sparing || !this.#isImpatient(session)) return;
    if (performance.now() - (this.#forcedAt.get(session) ?? 0) < FORCE_MS) return;
    this.#forcedAt.set(session, performance.now());
    const spared = [...this.#sessions].filter((s) => s.server === server).map((s) => s.pid);
    for (const ended of await server.endBlockers(pid, spared)) {
      const name = `${server.key}:${ended.pid}`;
      // One that cannot be ended, or takes its time, is named once.
      if (this.#named.has(name)) continue;
      this.#named.add(name);
      this.#options.onEnded(ended, performance.now() - session.wantedSince);
    }
  }
}

function vertexOf({ server, pid }: LockSession): Vertex {
  return server.vertexOf(pid);
}
