import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  partsOf,
  vertexOf,
  waitersOf,
  WaitGraph,
  type Edge,
  type OwnSession,
  type Vertex,
} from '../../src/locks/decisions.js';

const A = vertexOf('1', 10);
const B = vertexOf('2', 20);
const HOLD = vertexOf('1', 1);
const OTHER_HOLD = vertexOf('2', 1);

function edge(waiter: Vertex, blocker: Vertex, pid = Number(waiter.split(':')[1])): Edge {
  return { waiter, blocker, pid };
}

function graphOf(
  edges: readonly Edge[],
  waiting: readonly Vertex[],
  own: readonly Vertex[] = [HOLD, OTHER_HOLD],
  kept: readonly Vertex[] = [],
): WaitGraph {
  const sessions = own.map((vertex): OwnSession => ({
    vertex,
    isWaiting: waiting.includes(vertex),
    isKept: kept.includes(vertex),
  }));
  return new WaitGraph(edges, sessions);
}

function cycles(
  edges: readonly Edge[],
  waiting: readonly Vertex[],
  own?: readonly Vertex[],
): Record<Vertex, number[]> {
  const found = graphOf(edges, waiting, own).blockedCycles();
  return Object.fromEntries(found.map(({ session, blocked }) => [session, sorted(blocked)]));
}

function sorted(pids: Iterable<number>): number[] {
  return [...pids].sort((a, b) => a - b);
}

describe('blockedCycles', () => {
  it('none: a client that waits for a hold which waits for no session', () => {
    expect(cycles([edge(A, HOLD)], [])).toEqual({});
    expect(cycles([edge(A, OTHER_HOLD)], [HOLD])).toEqual({});
  });

  it('none: the blocker waits for no session of the controller', () => {
    expect(cycles([edge(HOLD, A), edge(A, B)], [HOLD])).toEqual({});
  });

  it('the blocker waits for the session itself', () => {
    expect(cycles([edge(HOLD, A), edge(A, HOLD)], [HOLD])).toEqual({ [HOLD]: [10] });
  });

  it('the blocker waits, through others and another server, for another session of the controller', () => {
    const edges = [edge(HOLD, A), edge(A, B, 21), edge(B, OTHER_HOLD)];
    expect(cycles(edges, [HOLD])).toEqual({ [OTHER_HOLD]: [20] });
  });

  it('names the process that waits on the server of the session, not the client it works for', () => {
    // B works on server 1 as process 77.
    expect(cycles([edge(HOLD, B), edge(B, HOLD, 77)], [HOLD])).toEqual({ [HOLD]: [77] });
  });

  it('none: one session of the controller behind another', () => {
    expect(cycles([edge(HOLD, OTHER_HOLD), edge(OTHER_HOLD, HOLD)], [HOLD, OTHER_HOLD])).toEqual(
      {},
    );
  });

  it('yields to one that waits for several sessions with each of them', () => {
    const edges = [edge(HOLD, A), edge(A, HOLD), edge(A, OTHER_HOLD)];
    expect(cycles(edges, [HOLD])).toEqual({ [HOLD]: [10], [OTHER_HOLD]: [10] });
  });

  it('finds what a search from every session finds, in any graph, and nothing else', () => {
    const vertex = fc.integer({ min: 0, max: 9 }).map((pid) => vertexOf('1', pid));
    const edges = fc.array(
      fc.record({ waiter: vertex, blocker: vertex, pid: fc.integer({ min: 100, max: 120 }) }),
      { maxLength: 25 },
    );
    const ours = fc.uniqueArray(vertex, { maxLength: 4 });
    fc.assert(
      fc.property(edges, ours, fc.infiniteStream(fc.boolean()), (graph, sessions, flips) => {
        const waiting = sessions.filter(() => flips.next().value);
        expect(cycles(graph, waiting, sessions)).toEqual(naive(graph, waiting, sessions));
      }),
      { numRuns: 2_000 },
    );
  });
});

describe('rootBlockers', () => {
  it('are the sessions at the end of all waits, and not those that queue behind them', () => {
    const edges = [edge(HOLD, A), edge(HOLD, B), edge(A, B, 21)];
    expect(graphOf(edges, [HOLD]).rootBlockers(HOLD)).toEqual(new Set([B]));
  });

  it('are none where all wait for the controller itself', () => {
    const edges = [edge(HOLD, A), edge(A, OTHER_HOLD)];
    expect(graphOf(edges, [HOLD]).rootBlockers(HOLD)).toEqual(new Set());
  });

  it('wait for no session and are not the controller’s, in any graph', () => {
    const vertex = fc.integer({ min: 0, max: 9 }).map((pid) => vertexOf('1', pid));
    const anyEdges = fc.array(fc.record({ waiter: vertex, blocker: vertex, pid: fc.nat() }), {
      maxLength: 25,
    });
    fc.assert(
      fc.property(
        anyEdges,
        fc.uniqueArray(vertex, { maxLength: 3 }),
        vertex,
        (edges, own, from) => {
          for (const root of graphOf(edges, own, own).rootBlockers(from)) {
            expect(own).not.toContain(root);
            expect(edges.some(({ waiter }) => waiter === root)).toBe(false);
          }
        },
      ),
    );
  });
});

describe('isStuck', () => {
  const never = (): boolean => false;

  it('is a client that waits for what a hold keeps, through others as well', () => {
    const edges = [edge(A, B, 10), edge(B, HOLD)];
    expect(graphOf(edges, [], [HOLD], [HOLD]).isStuck(A, never)).toBe(true);
    expect(graphOf(edges, [], [HOLD], []).isStuck(A, never)).toBe(false);
  });

  it('is a client that waits for one that stays', () => {
    const edges = [edge(A, B)];
    expect(graphOf(edges, []).isStuck(A, (vertex) => vertex === B)).toBe(true);
    expect(graphOf(edges, []).isStuck(A, never)).toBe(false);
  });
});

/** Sessions that wait for the controller's, and are reachable from one of those that waits, through others alone. */
function naive(
  edges: readonly Edge[],
  waiting: readonly Vertex[],
  ours: readonly Vertex[],
): Record<Vertex, number[]> {
  const others = [...new Set(edges.flatMap(({ waiter, blocker }) => [waiter, blocker]))].filter(
    (vertex) => !ours.includes(vertex),
  );
  const reaches = (from: Vertex, to: Vertex, through: readonly Vertex[]): boolean =>
    edges.some(
      ({ waiter, blocker }) =>
        waiter === from &&
        (blocker === to ||
          (through.includes(blocker) &&
            reaches(
              blocker,
              to,
              through.filter((vertex) => vertex !== blocker),
            ))),
    );
  const stuck = others.filter((other) => waiting.some((from) => reaches(from, other, others)));
  const found = ours.map((session): [Vertex, number[]] => {
    const pids = edges.filter((e) => e.blocker === session && stuck.includes(e.waiter));
    return [session, sorted(new Set(pids.map(({ pid }) => pid)))];
  });
  return Object.fromEntries(found.filter(([, pids]) => pids.length > 0));
}

describe('all that wait for a session', () => {
  const [C, D] = [vertexOf('3', 30), vertexOf('3', 31)];

  it('are those behind it, and behind these in turn', () => {
    const edges = [edge(A, HOLD), edge(B, A), edge(C, D), edge(HOLD, D)];
    expect([...waitersOf([HOLD], edges)].sort()).toEqual([A, B].sort());
  });

  it('are found once where they wait in a circle', () => {
    expect([...waitersOf([HOLD], [edge(A, HOLD), edge(B, A), edge(A, B)])].sort()).toEqual(
      [A, B].sort(),
    );
  });

  it('have a process by which they are known on their server', () => {
    expect(partsOf(vertexOf('127.0.0.1:5432', 4711))).toEqual({ key: '127.0.0.1:5432', pid: 4711 });
  });
});
