import { setTimeout as delay } from 'node:timers/promises';
import {
  Sightings,
  type AwaitedBlocker,
  partsOf,
  type Vertex,
  type WaitGraph,
} from './decisions.js';
import type { LockSession } from './lock-session.js';
import type { BlockingSession, Server } from './server.js';
import type { Watch } from './watch.js';

/** A blocker that was not seen for so long has gone on meanwhile, in milliseconds; a busy server is slow. */
const GAP_MS = 250;
/** So long a session blocks before the server is asked what it is, and so often while it still does. */
const DESCRIBE_MS = 100;
/** So long it blocks before the log names it. */
const TELL_MS = 1_000;
/** So long a blocker that was waited for outside the queue is known without being seen. */
const PIN_MS = 5_000;
/** How often it is checked whether a session that is waited for outside the queue is still there. */
const OUTSIDE_CHECK_MS = 20;

/** A session that has blocked for a while, by name. */
export interface Blocker extends BlockingSession {
  readonly server: Server;
  /** When that was read, by performance.now(). */
  readonly readAt: number;
}

interface BlockingSessionsOptions {
  readonly watch: Watch;
  /** Called for each session whose maintenance command was cancelled. */
  readonly onCancelled: (blocker: Blocker) => void;
  /** Called with all that have blocked for a second, when they are others than before. */
  readonly onBlocked: (blockers: readonly Blocker[]) => void;
}

/** Knows which sessions block one hold while it is opened, since when, and what they are. */
export class BlockingSessions {
  readonly #options: BlockingSessionsOptions;
  readonly #roots = new Sightings<Vertex>(GAP_MS);
  readonly #direct = new Sightings<Vertex>(GAP_MS);
  readonly #described = new Map<Vertex, Blocker>();
  readonly #describing = new Set<Server>();
  readonly #cancelled = new Set<string>();
  #graph: WaitGraph | undefined;
  /** Blockers of the hold that wait for what another one keeps. */
  #behindHold: ReadonlySet<Vertex> = new Set();
  #named = '';

  constructor(options: BlockingSessionsOptions) {
    this.#options = options;
  }

  /** Takes note of what was seen. @param waiting sessions of the hold that wait for a lock */
  see(graph: WaitGraph, waiting: readonly LockSession[], stayMs: number): void {
    this.#graph = graph;
    const now = performance.now();
    const own = waiting.map(({ server, pid }) => server.vertexOf(pid));
    const direct = new Set(own.flatMap((vertex) => graph.blockersOf(vertex)));
    const others = [...direct].filter((vertex) => !graph.isOwn(vertex));
    this.#direct.see(others, now);
    this.#behindHold = new Set(others.filter((vertex) => graph.isStuck(vertex, () => false)));
    this.#roots.see(new Set(own.flatMap((vertex) => [...graph.rootBlockers(vertex)])), now);
    for (const vertex of this.#described.keys()) {
      if (this.#roots.since(vertex) === undefined && this.#direct.since(vertex) === undefined)
        this.#described.delete(vertex);
    }
    this.#describeLong(Math.min(DESCRIBE_MS, stayMs), waiting);
    this.#cancelMaintenance();
    this.#tell(now);
  }

  /**
   * Since when it has blocked the hold, and was itself blocked by no session or waited for another hold, by
   * performance.now().
   */
  since(vertex: Vertex): number {
    const behindSince = this.#behindHold.has(vertex) ? this.#direct.since(vertex) : undefined;
    return this.#roots.since(vertex) ?? behindSince ?? Infinity;
  }

  blocker(vertex: Vertex): Blocker | undefined {
    return this.#described.get(vertex);
  }

  /** Since when it has blocked the hold itself, by performance.now(). */
  directSince({ server, pid, readAt }: Blocker): number {
    return this.#direct.since(server.vertexOf(pid)) ?? readAt;
  }

  /** Those that block it now, as far as they are known by name. */
  present(): Blocker[] {
    return [...this.#described].flatMap(([vertex, blocker]) =>
      Number.isFinite(this.since(vertex)) ? [blocker] : [],
    );
  }

  /** Whether the controller may end it; what is not known it may not. */
  canEnd(vertex: Vertex): boolean {
    return this.blocker(vertex)?.mayEnd ?? false;
  }

  /** The root blockers of a session that have blocked for so long. */
  longOf(session: LockSession, stayMs: number): Vertex[] {
    const roots = this.#graph?.rootBlockers(session.server.vertexOf(session.pid)) ?? [];
    return [...roots].filter((vertex) => this.#isLong(vertex, stayMs));
  }

  /** The blockers of a session that have waited for another hold for so long. */
  behindHoldOf(session: LockSession, stayMs: number): Vertex[] {
    const blockers = this.#graph?.blockersOf(session.server.vertexOf(session.pid)) ?? [];
    return blockers.filter(
      (vertex) => this.#behindHold.has(vertex) && this.#isLong(vertex, stayMs),
    );
  }

  /** Whether each blocker of a session has stayed for so long, or waits for one that has or for a hold. */
  isStuck(session: LockSession, stayMs: number): boolean {
    const graph = this.#graph;
    if (graph === undefined) return false;
    const blockers = graph.blockersOf(session.server.vertexOf(session.pid));
    const stays = (vertex: Vertex): boolean => this.#isLong(vertex, stayMs);
    return blockers.length > 0 && blockers.every((vertex) => graph.isStuck(vertex, stays));
  }

  /** It was in the same transaction when the server was asked: a session of short ones may be seen at each look. */
  #isLong(vertex: Vertex, stayMs: number): boolean {
    const readAt = this.#described.get(vertex)?.readAt ?? -Infinity;
    return readAt - this.since(vertex) >= stayMs;
  }

  /**
   * Waits until these are gone, or have blocked for as long as they may.
   *
   * @returns those that are still there
   */
  async waitOutside(
    blockers: readonly AwaitedBlocker<Vertex>[],
    signal: AbortSignal,
  ): Promise<AwaitedBlocker<Vertex>[]> {
    const late: AwaitedBlocker<Vertex>[] = [];
    let waited = [...blockers];
    while (waited.length > 0) {
      await delay(OUTSIDE_CHECK_MS, undefined, { signal });
      const there = await this.#stillThere(waited.map(({ blocker }) => blocker));
      const now = performance.now();
      for (const vertex of [...there, ...late.map(({ blocker }) => blocker)])
        for (const sightings of [this.#roots, this.#direct]) sightings.pin(vertex, PIN_MS, now);
      this.#tell(now);
      for (const one of waited) {
        if (!there.has(one.blocker)) this.#forget(one.blocker);
        else if (now - this.since(one.blocker) >= one.mostMs) late.push(one);
      }
      waited = waited.filter((one) => there.has(one.blocker) && !late.includes(one));
    }
    return late;
  }

  /** @returns whether it was ended: false where it was gone already, or this role may not. */
  async terminate(vertex: Vertex): Promise<boolean> {
    const blocker = this.#described.get(vertex);
    if (blocker === undefined) return false;
    const isEnded = await blocker.server.terminate(blocker.pid, blocker.transaction);
    if (isEnded) this.#forget(vertex);
    return isEnded;
  }

  #forget(vertex: Vertex): void {
    this.#roots.forget(vertex);
    this.#direct.forget(vertex);
    this.#described.delete(vertex);
  }

  /** Of these, those that are in the same transaction as when they were described. */
  async #stillThere(vertices: readonly Vertex[]): Promise<Set<Vertex>> {
    const there = new Set<Vertex>();
    const byServer = new Map<Server, Vertex[]>();
    for (const vertex of vertices) {
      const server = this.#described.get(vertex)?.server;
      if (server) byServer.set(server, [...(byServer.get(server) ?? []), vertex]);
    }
    await Promise.all(
      [...byServer].map(async ([server, some]) => {
        const known = some.flatMap((vertex) => this.#described.get(vertex) ?? []);
        const gids = known.filter(({ pid }) => pid === 0).map(({ transaction }) => transaction);
        // A server that cannot be asked says nothing: they are taken to be there.
        const found = await Promise.all([
          server.describe(known.map(({ pid }) => pid)),
          gids.length > 0 ? server.prepared(gids) : ([] as string[]),
        ]).catch(() => undefined);
        for (const vertex of some) {
          const blocker = this.#described.get(vertex);
          const isThere =
            found === undefined ||
            (blocker?.pid === 0
              ? found[1].includes(blocker.transaction)
              : found[0].some(
                  ({ pid, transaction }) =>
                    pid === blocker?.pid && transaction === blocker.transaction,
                ));
          if (isThere) there.add(vertex);
        }
      }),
    );
    return there;
  }

  /** Asks what those are that have blocked for a while. */
  #describeLong(ms: number, waiting: readonly LockSession[]): void {
    const now = performance.now();
    const long = [...this.#roots.longerThan(ms, now), ...this.#direct.longerThan(ms, now)];
    const unknown = new Map<Server, Set<number>>();
    const isKnown = (vertex: Vertex): boolean =>
      now - (this.#described.get(vertex)?.readAt ?? -Infinity) < ms;
    for (const vertex of long.filter((one) => !isKnown(one))) {
      const server = this.#options.watch.serverOf(vertex);
      if (server === undefined || this.#describing.has(server)) continue;
      unknown.set(server, (unknown.get(server) ?? new Set()).add(partsOf(vertex).pid));
    }
    for (const [server, pids] of unknown) {
      const here = waiting.filter((session) => session.server === server);
      void this.#describe(
        server,
        [...pids],
        here.map(({ pid }) => pid),
      );
    }
  }

  async #describe(server: Server, pids: readonly number[], waiting: number[]): Promise<void> {
    this.#describing.add(server);
    try {
      const found = await server.describe(pids, waiting);
      const now = performance.now();
      for (const session of found) {
        const vertex = server.vertexOf(session.pid);
        // Only its present transaction counts: what the session did before blocks no longer.
        const isSame = this.#described.get(vertex)?.transaction === session.transaction;
        const lastsMs = session.lastsMs ?? (isSame ? Infinity : 0);
        for (const sightings of [this.#roots, this.#direct])
          sightings.correct(vertex, now - lastsMs);
        this.#described.set(vertex, { ...session, server, readAt: now });
      }
    } catch {
      // It is asked again at the next look.
    } finally {
      this.#describing.delete(server);
    }
  }

  #cancelMaintenance(): void {
    for (const [vertex, blocker] of this.#described) {
      const key = keyOf(blocker);
      if (blocker.maintenance === null || this.#cancelled.has(key)) continue;
      if (this.#direct.since(vertex) === undefined) continue;
      this.#cancelled.add(key);
      blocker.server.cancel(blocker.pid).then(
        () => this.#options.onCancelled(blocker),
        // This role may not: it is waited for as any other.
        () => undefined,
      );
    }
  }

  #tell(now: number): void {
    const behind = [...this.#behindHold].filter((vertex) => now - this.since(vertex) >= TELL_MS);
    const blockers = [...new Set([...this.#roots.longerThan(TELL_MS, now), ...behind])]
      .flatMap((vertex) => this.#described.get(vertex) ?? [])
      .sort((a, b) => a.server.name.localeCompare(b.server.name) || a.pid - b.pid);
    const named = blockers.map(keyOf).join();
    if (blockers.length === 0 || named === this.#named) return;
    this.#named = named;
    this.#options.onBlocked(blockers);
  }
}

/** Tells what a session does now from what it does later, among all servers. */
export function keyOf({ server, pid, transaction }: Blocker): string {
  return `${server.vertexOf(pid)} ${transaction}`;
}

/** For people: `pid 7 (user app, application web)`. */
export function nameSession({ pid, user, application }: BlockingSession): string {
  return `pid ${pid} (user ${user}, application ${application || 'unnamed'})`;
}

/** For people: `pid 7 (user app, application web), idle in transaction since 12:00:00 on host:5432`. */
export function describeBlocker({ server, ...session }: Blocker): string {
  return `${describeSession(session)} on ${server.name}`;
}

function describeSession(session: BlockingSession): string {
  const { pid, user, state, since, transaction } = session;
  const when = since === null ? '' : ` since ${since}`;
  if (pid === 0)
    return `prepared transaction ${transaction} (user ${user}${when ? `,${when}` : ''})`;
  const doing = state === null ? '' : `, ${state}${when}`;
  return `${nameSession(session)}${doing}`;
}
