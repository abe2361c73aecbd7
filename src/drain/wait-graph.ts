/** One session on one server, as `key of the server:pid`. A session that works for a client of another server counts as that client's. */
export type Vertex = string;

/** On `server`, `waiter` waits for `blocker`: for a lock that it has, or for its place in the queue. */
export interface Edge {
  readonly waiter: Vertex;
  readonly blocker: Vertex;
  /** The process that waits, on the server where it waits. */
  readonly pid: number;
}

/** Whom one of our sessions keeps from going on, though another of ours waits for them. */
export interface Knot {
  readonly session: Vertex;
  /** Processes on the server of `session`. */
  readonly blocked: readonly number[];
}

export function vertexOf(server: string, pid: number): Vertex {
  return `${server}:${pid}`;
}

/**
 * The sessions of ours that have to yield: those that somebody waits for whom one of ours waits for,
 * directly or through others. Pure.
 *
 * @param waiting our sessions that wait for a lock
 * @param ours all our sessions
 */
export function findKnots(
  edges: readonly Edge[],
  waiting: readonly Vertex[],
  ours: ReadonlySet<Vertex>,
): Knot[] {
  const outgoing = new Map<Vertex, Edge[]>();
  for (const edge of edges) {
    outgoing.set(edge.waiter, [...(outgoing.get(edge.waiter) ?? []), edge]);
  }
  const seen = new Set(waiting);
  const queue = [...seen];
  const blocked = new Map<Vertex, Set<number>>();
  for (let vertex = queue.pop(); vertex !== undefined; vertex = queue.pop()) {
    for (const { blocker, pid } of outgoing.get(vertex) ?? []) {
      if (ours.has(blocker)) {
        // One of ours behind another of ours is no knot: it is in nobody's way by that.
        if (!ours.has(vertex)) blocked.set(blocker, (blocked.get(blocker) ?? new Set()).add(pid));
      } else if (!seen.has(blocker)) {
        seen.add(blocker);
        queue.push(blocker);
      }
    }
  }
  return [...blocked].map(([session, pids]) => ({ session, blocked: [...pids] }));
}
