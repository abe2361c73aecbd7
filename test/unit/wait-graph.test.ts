import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { findKnots, vertexOf, type Edge, type Vertex } from '../../src/drain/wait-graph.js';

const A = vertexOf('1', 10);
const B = vertexOf('2', 20);
const HOLD = vertexOf('1', 1);
const OTHER_HOLD = vertexOf('2', 1);

function edge(waiter: Vertex, blocker: Vertex, pid = Number(waiter.split(':')[1])): Edge {
  return { waiter, blocker, pid };
}

function knots(
  edges: readonly Edge[],
  waiting: readonly Vertex[],
  ours: readonly Vertex[] = [HOLD, OTHER_HOLD],
): Record<Vertex, number[]> {
  const found = findKnots(edges, waiting, new Set(ours));
  return Object.fromEntries(found.map(({ session, blocked }) => [session, sorted(blocked)]));
}

function sorted(pids: Iterable<number>): number[] {
  return [...pids].sort((a, b) => a - b);
}

describe('findKnots', () => {
  it('none: who waits for a hold that waits for nobody just waits', () => {
    expect(knots([edge(A, HOLD)], [])).toEqual({});
    expect(knots([edge(A, OTHER_HOLD)], [HOLD])).toEqual({});
  });

  it('none: the one in the way waits for nobody of ours', () => {
    expect(knots([edge(HOLD, A), edge(A, B)], [HOLD])).toEqual({});
  });

  it('the one in the way waits for the session itself', () => {
    expect(knots([edge(HOLD, A), edge(A, HOLD)], [HOLD])).toEqual({ [HOLD]: [10] });
  });

  it('the one in the way waits, through others and another server, for another session of ours', () => {
    const edges = [edge(HOLD, A), edge(A, B, 21), edge(B, OTHER_HOLD)];
    expect(knots(edges, [HOLD])).toEqual({ [OTHER_HOLD]: [20] });
  });

  it('names the process that waits on the server of the session, not the client it works for', () => {
    // B works on server 1 as process 77.
    expect(knots([edge(HOLD, B), edge(B, HOLD, 77)], [HOLD])).toEqual({ [HOLD]: [77] });
  });

  it('none: one of ours behind another of ours', () => {
    expect(knots([edge(HOLD, OTHER_HOLD), edge(OTHER_HOLD, HOLD)], [HOLD, OTHER_HOLD])).toEqual({});
  });

  it('yields to one that waits for several sessions with each of them', () => {
    const edges = [edge(HOLD, A), edge(A, HOLD), edge(A, OTHER_HOLD)];
    expect(knots(edges, [HOLD])).toEqual({ [HOLD]: [10], [OTHER_HOLD]: [10] });
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
        expect(knots(graph, waiting, sessions)).toEqual(naive(graph, waiting, sessions));
      }),
      { numRuns: 2_000 },
    );
  });
});

/** Whoever is not ours, can be reached from one of ours that waits by others not ours, and waits for ours. */
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
