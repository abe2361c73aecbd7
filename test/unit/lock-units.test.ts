import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import type { LockUnit } from '../../src/drain/lock-unit.js';
import {
  doorsOf,
  notLockable,
  readersOf,
  shardLocks,
  writersOf,
  type Targets,
} from '../../src/mpp/citus/traffic/targets.js';

const things = fc.uniqueArray(
  fc.integer({ min: 100_000, max: 120_000 }).map((n) => `${n}`),
  { maxLength: 400 },
);

function partsOf(units: readonly LockUnit[]): LockUnit[] {
  return units.flatMap((unit) => unit.parts ?? [unit]);
}

function shardsIn({ values = [] }: LockUnit): string[] {
  return values.flat() as string[];
}

function tablesIn({ text }: LockUnit): string[] {
  return [...text.matchAll(/ONLY (\S+?)(?=,| IN )/g)].map(([, name]) => name ?? '');
}

describe('units of locks', () => {
  it.each([
    { of: 'shards', make: shardLocks, read: shardsIn },
    { of: 'readers', make: readersOf, read: tablesIn },
    { of: 'writers', make: writersOf, read: tablesIn },
    { of: 'doors', make: doorsOf, read: tablesIn },
  ])('$of: whole and in parts they are all of it, in order, each once', ({ make, read }) => {
    fc.assert(
      fc.property(things, (names) => {
        const units = make(names);
        expect(units.length).toBeLessThanOrEqual(1);
        expect(units.flatMap(read)).toEqual(names);
        const parts = partsOf(units);
        expect(parts.flatMap(read)).toEqual(names);
        // Many locks take no more savepoints and statements than this.
        expect(parts.length).toBeLessThanOrEqual(64);
        expect(new Set(parts.map(({ key }) => key)).size).toBe(parts.length);
        // Parts have no parts: whoever looks at them looks once.
        expect(parts.every((part) => part.parts === undefined)).toBe(true);
      }),
    );
  });

  it('of up to 64 things each is a part, so that no more is given back than is wanted', () => {
    const names = Array.from({ length: 64 }, (_, index) => `t${index}`);
    expect(partsOf(readersOf(names)).map(tablesIn)).toEqual(names.map((name) => [name]));
  });

  it('are named differently for different purposes, as one session may have several of them', () => {
    const keys = [readersOf, writersOf, doorsOf, shardLocks].map((make) => make(['a'])[0]?.key);
    expect(new Set(keys).size).toBe(4);
  });

  it('end nobody for readers and for doors', () => {
    const sparing = (units: readonly LockUnit[]): unknown[] =>
      [...units, ...partsOf(units)].map((unit) => unit.sparing);
    const names = ['a', 'b'];
    expect(new Set([...sparing(readersOf(names)), ...sparing(doorsOf(names))])).toEqual(
      new Set([true]),
    );
    expect(new Set([...sparing(writersOf(names)), ...sparing(shardLocks(names))])).toEqual(
      new Set([undefined]),
    );
  });

  it('take the modes that the hold is about, and leave partitions to themselves', () => {
    const [text] = [readersOf(['s.a', 's.b']), writersOf(['s.a'])].flat().map((unit) => unit.text);
    expect(text).toBe('LOCK TABLE ONLY s.a, ONLY s.b IN ACCESS EXCLUSIVE MODE');
    expect(writersOf(['s.a'])[0]?.text).toBe('LOCK TABLE ONLY s.a IN EXCLUSIVE MODE');
    expect(doorsOf(['s.a'])[0]?.text).toBe('LOCK TABLE ONLY s.a IN EXCLUSIVE MODE');
  });
});

describe('notLockable', () => {
  const targets: Targets = {
    shards: Array.from({ length: 90 }, (_, index) => `${index}`),
    tables: Array.from({ length: 10 }, (_, index) => `t${index}`),
    shared: [],
    foreign: null,
    lockSpace: 100,
    locksTaken: 0,
    locksPerSetting: 10,
  };

  it('is undefined as long as there is room for every lock', () => {
    expect(notLockable(targets, 1, 'a:1')).toBeUndefined();
    expect(notLockable({ ...targets, locksTaken: 1 }, 1, 'a:1')?.code).toBe('LOCK_SPACE');
  });

  it('names a setting that gives room, whatever the numbers', () => {
    const numbers = fc.record({
      count: fc.integer({ min: 1, max: 20_000 }),
      locksTaken: fc.integer({ min: 0, max: 20_000 }),
      locksPerSetting: fc.integer({ min: 1, max: 2_000 }),
      setting: fc.integer({ min: 10, max: 500 }),
    });
    fc.assert(
      fc.property(numbers, ({ count, locksTaken, locksPerSetting, setting }) => {
        const shards = Array.from({ length: count }, (_, index) => `${index}`);
        const lockSpace = locksPerSetting * setting;
        const now = { ...targets, shards, locksTaken, locksPerSetting, lockSpace };
        const refusal = notLockable(now, 7, 'a:1');
        if (!refusal) return;
        expect(refusal.code).toBe('LOCK_SPACE');
        const [, wanted] = /max_locks_per_transaction there to (\d+) or more/.exec(
          refusal.message,
        ) ?? [undefined, 'nothing'];
        const next = { ...now, lockSpace: locksPerSetting * Number(wanted) };
        expect(notLockable(next, 7, 'a:1')).toBeUndefined();
      }),
    );
  });

  it('names a table of another owner first: no setting helps there', () => {
    const refusal = notLockable({ ...targets, foreign: 'public.a', lockSpace: 1 }, 1, 'a:1');
    expect(refusal).toMatchObject({ code: 'NOT_OWNER' });
    expect(refusal?.message).toContain('public.a on a:1');
  });
});
