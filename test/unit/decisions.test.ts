import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  decide,
  stayOf,
  Sightings,
  type HoldState,
  type WaitedLock,
} from '../../src/locks/decisions.js';

type Lock = WaitedLock<string>;

const SINCE = 1_000;

function state(rest: Partial<HoldState<string, Lock>> & { readonly waited?: Lock[] }) {
  const { waited = [], ...given } = rest;
  return {
    nodes: [{ waited, hasWrites: true }],
    since: () => SINCE,
    canEnd: () => true,
    isPlanned: true,
    ageMs: 300,
    cooldownMs: 10_000,
    now: SINCE + 300,
    ...given,
  };
}

function lock(need: Lock['need'], long: readonly string[], isStuck = true): Lock {
  return { need, long, isStuck, behindHold: [] };
}

function awaited(blocker: string, mostMs: number, thenTerminate = true) {
  return { blocker, mostMs, thenTerminate };
}

const NOTHING = { leaveFor: [], renounce: [], terminate: [] };

describe('decide', () => {
  it('stays in the queue while no blocker stays', () => {
    expect(decide(state({ waited: [lock('writes', [], false)] }))).toEqual(NOTHING);
  });

  it('leaves the queue for a blocker of writes that stays', () => {
    const waited = [lock('writes', ['idle'])];
    expect(decide(state({ waited }))).toEqual({ ...NOTHING, leaveFor: [awaited('idle', 10_000)] });
  });

  it('stays in the queue where the primary is gone, and where it has waited for long', () => {
    const waited = [lock('writes', ['idle'])];
    expect(decide(state({ waited, isPlanned: false }))).toEqual(NOTHING);
    expect(decide(state({ waited, ageMs: 20_000 }))).toEqual(NOTHING);
  });

  it('never stays in the queue for a blocker that it may not terminate', () => {
    const waited = [lock('writes', ['prepared'])];
    const late = { ageMs: 60_000, now: SINCE + 60_000, canEnd: () => false };
    expect(decide(state({ waited, ...late }))).toEqual({
      ...NOTHING,
      leaveFor: [awaited('prepared', Infinity)],
    });
  });

  it('terminates a blocker of writes that has blocked for the cooldown', () => {
    const waited = [lock('writes', ['idle'])];
    const now = SINCE + 10_000;
    expect(decide(state({ waited, now }))).toEqual({ ...NOTHING, terminate: ['idle'] });
  });

  it('waits for a blocker of reads alone, and then does without the reads of that table', () => {
    const reads = lock('reads', ['report']);
    const other = lock('reads', ['short'], false);
    const waited = [reads, other];
    expect(decide(state({ waited }))).toEqual({
      ...NOTHING,
      leaveFor: [awaited('report', 1_500, false)],
    });
    const now = SINCE + 1_500;
    expect(decide(state({ waited, now }))).toEqual({ ...NOTHING, renounce: [reads] });
  });

  it('does not decide about reads before it is known whether the blocker writes to the group', () => {
    const waited = [lock('reads', ['idle'])];
    const nodes = [{ waited, hasWrites: false }];
    expect(decide(state({ nodes, now: SINCE + 9_000 }))).toEqual(NOTHING);
  });

  it('does without the reads of a table whose blockers wait for another hold', () => {
    const reads = lock('reads', []);
    expect(decide(state({ waited: [reads] }))).toEqual({ ...NOTHING, renounce: [reads] });
  });

  it('waits outside the queue, for as long as it takes, for what waits for another hold', () => {
    const waited = [{ ...lock('writes', []), behindHold: ['waits'] }];
    const leaveFor = [awaited('waits', Infinity, false)];
    expect(decide(state({ waited }))).toEqual({ ...NOTHING, leaveFor });
    expect(decide(state({ waited, ageMs: 60_000 }))).toEqual({ ...NOTHING, leaveFor });
    expect(decide(state({ waited, isPlanned: false }))).toEqual(NOTHING);
  });

  it('waits for no lock of the drain', () => {
    expect(decide(state({ waited: [lock('drain', ['idle'])] }))).toEqual(NOTHING);
  });

  it('terminates only what blocks writes, may be ended and has blocked for the cooldown, whatever the state', () => {
    const blocker = fc.constantFrom<string>('a', 'b', 'c', 'd');
    const anyLock = fc.record({
      need: fc.constantFrom('writes' as const, 'reads' as const, 'drain' as const),
      long: fc.uniqueArray(blocker),
      behindHold: fc.uniqueArray(blocker),
      isStuck: fc.boolean(),
    });
    const node = fc.record({ waited: fc.array(anyLock), hasWrites: fc.boolean() });
    fc.assert(
      fc.property(
        fc.array(node),
        fc.dictionary(blocker, fc.nat(20_000)),
        fc.uniqueArray(blocker),
        fc.boolean(),
        fc.nat(40_000),
        (nodes, ages, endable, isPlanned, ageMs) => {
          const now = 50_000;
          const since = (one: string): number => now - (ages[one] ?? 0);
          const canEnd = (one: string): boolean => endable.includes(one);
          const cooldownMs = 5_000;
          const decision = decide({
            ...{ nodes, since, canEnd, isPlanned, ageMs, cooldownMs, now },
          });
          const blocks = (one: string): boolean =>
            nodes.some(({ waited }) =>
              waited.some(({ need, long }) => need === 'writes' && long.includes(one)),
            );
          for (const one of decision.terminate) {
            expect(blocks(one) && canEnd(one) && now - since(one) >= cooldownMs).toBe(true);
            const left = decision.leaveFor.filter(({ thenTerminate }) => thenTerminate);
            expect(left.map(({ blocker }) => blocker)).not.toContain(one);
          }
          for (const one of decision.renounce) expect(one.need).toBe('reads');
          if (!isPlanned) expect(decision.leaveFor).toEqual([]);
        },
      ),
      { numRuns: 2_000 },
    );
  });
});

describe('stayOf', () => {
  it('lets clients wait for at most a second in all tries together', () => {
    const tries = Array.from({ length: 40 }, (_, index) => stayOf(index + 1));
    expect(tries[0]).toBe(250);
    expect(tries.reduce((sum, ms) => sum + ms, 0)).toBeLessThanOrEqual(1_000);
  });
});

describe('Sightings', () => {
  it('count from when one was seen first without a break', () => {
    const sightings = new Sightings<string>(50);
    sightings.see(['a'], 0);
    sightings.see(['a', 'b'], 40);
    sightings.see(['b'], 80);
    expect(sightings.since('a')).toBe(0);
    sightings.see(['a'], 120);
    expect(sightings.since('a')).toBe(120);
    expect(sightings.since('b')).toBe(40);
  });

  it('last while one is pinned, and can only be corrected to a later start', () => {
    const sightings = new Sightings<string>(50);
    sightings.see(['a'], 100);
    sightings.correct('a', 20);
    expect(sightings.since('a')).toBe(100);
    sightings.pin('a', 1_000, 100);
    sightings.see([], 900);
    expect(sightings.since('a')).toBe(100);
    sightings.correct('a', 500);
    expect(sightings.longerThan(401, 900)).toEqual([]);
    expect(sightings.longerThan(400, 900)).toEqual(['a']);
  });
});
