import { describe, expect, it } from 'vitest';
import { ChangeWatch, judgeBlockers } from '../../src/controller/change-watch.js';
import type { ChangeBlocker } from '../../src/mpp/abstract.js';

function blocker(key: string, more: Partial<ChangeBlocker> = {}): ChangeBlocker {
  return {
    key,
    pid: 1,
    kind: 'session',
    described: `pid ${key}`,
    ...{ usename: 'app', application: 'web', state: 'active', since: null },
    mayEnd: true,
    ended: false,
    ...more,
  };
}

const COOLDOWN_MS = 5_000;

function judge(blockers: readonly ChangeBlocker[], since: Readonly<Record<string, number>>) {
  return judgeBlockers(blockers, new Map(Object.entries(since)), 10_000, COOLDOWN_MS);
}

describe('what follows from a look at what blocks a change', () => {
  it('counts the cooldown for each transaction from when that was first seen', () => {
    const { overdue, since } = judge([blocker('old'), blocker('young'), blocker('new')], {
      old: 5_000,
      young: 5_001,
    });
    expect(overdue).toEqual(['old']);
    expect([...since]).toEqual([
      ['old', 5_000],
      ['young', 5_001],
      ['new', 10_000],
    ]);
  });

  it('forgets a transaction that does not block it any more', () => {
    expect([...judge([], { gone: 0 }).since]).toEqual([]);
  });

  it('tells of what has blocked it for a second, whatever it is', () => {
    const kinds = ['session', 'block', 'prepared', 'own'] as const;
    const blockers = kinds.map((kind) => blocker(kind, { kind }));
    const { long } = judge(blockers, { session: 9_001, block: 9_000, prepared: 0, own: 0 });
    expect(long.map(({ key }) => key)).toEqual(['block', 'prepared', 'own']);
  });

  it.each(['block', 'prepared', 'own'] as const)('never ends a blocker of kind %s', (kind) => {
    const { overdue, forced } = judge([blocker('1', { kind, mayEnd: false })], { 1: 0 });
    expect({ overdue, forced }).toEqual({ overdue: [], forced: [] });
  });

  it('has the database end what this role may not', () => {
    const mayNot = blocker('1', { mayEnd: false });
    expect(judge([mayNot, blocker('2')], { 1: 0, 2: 9_000 }).forced).toEqual([mayNot]);
    expect(judge([mayNot], { 1: 6_000 }).forced).toEqual([]);
    expect(judge([blocker('2')], { 2: 0 }).forced).toEqual([]);
  });

  it('does not have the database end anything beside one that is waited for', () => {
    const mayNot = blocker('1', { mayEnd: false });
    expect(judge([mayNot, blocker('2', { kind: 'block' })], { 1: 0 }).forced).toEqual([]);
  });
});

describe('the watch of a change', () => {
  it('cancels the statement of a session that waits for the hold of the change, and of no other', async () => {
    const cancelled = await new Promise<ChangeBlocker>((resolve) => {
      const watch = new ChangeWatch({
        read: () =>
          Promise.resolve([
            blocker('1', { pid: 1 }),
            blocker('2', { pid: 2, kind: 'block' }),
            blocker('3', { pid: 3, mayEnd: false }),
            blocker('4', { pid: 4 }),
          ]),
        interrupt: () => Promise.reject(new Error('it was interrupted')),
        waitersForHold: () => Promise.resolve(new Set([2, 3, 4])),
        cancel: (one) => {
          resolve(one);
          void watch.stop();
          return Promise.resolve();
        },
        cooldownMs: COOLDOWN_MS,
        onBlocked: () => undefined,
        onEnded: () => undefined,
      });
    });
    expect(cancelled.pid).toBe(4);
  });

  it('does nothing more once it has stopped', async () => {
    let looks = 0;
    const watch = new ChangeWatch({
      read: () => Promise.resolve([blocker(String((looks += 1)))]),
      interrupt: () => Promise.reject(new Error('it was interrupted')),
      waitersForHold: () => Promise.resolve(new Set()),
      cancel: () => Promise.resolve(),
      cooldownMs: 0,
      onBlocked: () => undefined,
      onEnded: () => undefined,
    });
    await watch.stop();
    await watch.stop();
    expect(looks).toBe(0);
    expect(watch.sentence).toBeUndefined();
  });
});
