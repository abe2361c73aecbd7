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
