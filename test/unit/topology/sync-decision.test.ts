import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { formatAddress } from '../../../src/address.js';
import {
  type ComparedGroup,
  type ComparedMember,
  decideSync,
} from '../../../src/topology/sync-decision.js';
import { A, P, PAIR, PRIMARIES, SECONDARIES, SOURCES } from '../../kit/compare-cases.js';
import { type CatalogRow, type MemberRow, TTL_MS } from '../../kit/members.js';

/** What the statement gives of group 1, whose fresh reports it picks. */
function compared(
  catalog: readonly CatalogRow[],
  rows: readonly MemberRow[],
  rest: Partial<ComparedGroup> = {},
): ComparedGroup {
  const members = rows
    .filter(({ age = 0 }) => age * 1_000 < TTL_MS)
    .map((row): ComparedMember => ({
      host: row.node,
      port: 5432,
      source: row.source ?? 'probe',
      role: row.role ?? 'secondary',
      isUp: ['running', 'streaming'].includes(row.state ?? 'running'),
      isRemoved: row.state === 'removed',
      timeline: row.timeline ?? null,
      sinceMs: Math.max(row.age ?? 0, row.since ?? 3_600) * 1_000,
      reportedMs: (row.age ?? 0) * 1_000,
      servesNoReads: rows.some((one) => one.node === row.node && one.noloadbalance === true),
    }));
  const nodes = catalog.map(({ node, groupid = 1, role = 'primary', cluster }, index) => ({
    nodeid: index + 1,
    host: node,
    port: 5432,
    role,
    isOfGroup: groupid === 1 && cluster === undefined,
    isInCluster: cluster === undefined,
    cloneOf: null,
  }));
  return {
    members,
    nodes,
    confirmedMs: null,
    suspectedMs: null,
    asked: [],
    refused: null,
    ...rest,
  };
}

/** A decision as `node [secondaries]`, or the problem. */
function decide(group: ComparedGroup): string | undefined {
  const decision = decideSync(group, TTL_MS);
  if (decision.kind === 'nothing') return undefined;
  if (decision.kind === 'problem') return decision.problem;
  const { primary, secondaries } = decision.task;
  const others = secondaries?.map(formatAddress).join(' ') ?? 'as they are';
  return `${formatAddress(primary)} [${others}]`.replaceAll(':5432', '');
}

describe('what the catalog lacks of a group', () => {
  const groupOne = ({ members }: { readonly members: readonly MemberRow[] }): boolean =>
    members.every(({ groupid = 1 }) => groupid === 1);

  it.each([...PRIMARIES, ...SOURCES, ...SECONDARIES].filter(groupOne))(
    '$name',
    ({ catalog = PAIR, members, wishes = [], problem }) => {
      const decision = decide(compared(catalog, members));
      if (problem) expect(decision).toMatch(problem);
      else expect(decision).toBe(wishes[0]?.replace('1: ', ''));
    },
  );

  it('a report counts only when it is younger than the newest that a client made and that came true', () => {
    const rows = [{ node: 'b', role: P, age: 5 }];
    expect(decide(compared(PAIR, rows, { confirmedMs: 6_000 }))).toBe('b [as they are]');
    expect(decide(compared(PAIR, rows, { confirmedMs: 4_000 }))).toBeUndefined();
  });

  it('a suspected primary has to be seen again, and is then asked for, so that the suspicion ends', () => {
    const rows = [{ ...A, age: 5 }];
    expect(decide(compared(PAIR, rows, { suspectedMs: 4_000 }))).toBeUndefined();
    expect(decide(compared(PAIR, rows, { suspectedMs: 6_000 }))).toBe('a [as they are]');
  });

  it('a task that names the same primary is not made twice; one that names another is replaced', () => {
    const b = { host: 'b', port: 5432 };
    expect(decide(compared(PAIR, [{ node: 'b', role: P }], { asked: [b] }))).toBeUndefined();
    expect(decide(compared(PAIR, [A], { asked: [b] }))).toBe('a [as they are]');
  });

  it('a task that has just failed is not made again, but one with other secondaries is', () => {
    const refused = { primary: { host: 'a', port: 5432 }, secondaries: ['b:5432', 'c:5432'] };
    const joined = [A, { node: 'c' }];
    expect(decide(compared(PAIR, joined, { refused }))).toBeUndefined();
    expect(decide(compared(PAIR, [...joined, { node: 'd' }], { refused }))).toBe('a [b c d]');
  });

  it('a clone of the group that has become its primary is followed; one of another group is not', () => {
    const group = compared(PAIR, [{ node: 'z', role: P }]);
    const clone = (cloneOf: number): ComparedGroup => ({
      ...group,
      nodes: [
        ...group.nodes,
        {
          nodeid: 9,
          host: 'z',
          port: 5432,
          role: 'unavailable',
          isOfGroup: false,
          isInCluster: true,
          cloneOf,
        },
      ],
    });
    expect(decide(clone(1))).toBe('z [as they are]');
    expect(decide(clone(7))).toMatch(/another group's or cluster's node 9/);
  });

  it('a task names at most 64 secondaries, those that have a row first', () => {
    const rows = Array.from({ length: 300 }, (_, at) => ({ node: `a${at}` }));
    const decision = decideSync(compared(PAIR, [A, ...rows]), TTL_MS);
    const named = decision.kind === 'task' ? decision.task.secondaries : null;
    expect(named).toHaveLength(64);
    expect(named?.map(({ host }) => host)).toContain('b');
  });

  const anyMember = fc.record({
    node: fc.constantFrom('a', 'b', 'c', 'd'),
    role: fc.constantFrom('primary' as const, 'secondary' as const),
    state: fc.constantFrom('running', 'streaming', 'unreachable', 'removed'),
    source: fc.constantFrom('table' as const, 'probe' as const, 'patroni' as const),
    timeline: fc.integer({ min: 1, max: 3 }),
    age: fc.integer({ min: 0, max: 40 }),
    since: fc.integer({ min: 0, max: 60 }),
    noloadbalance: fc.boolean(),
  });
  const anyMembers = fc.uniqueArray(anyMember, {
    maxLength: 8,
    selector: ({ node, source }) => `${node} ${source}`,
  });

  it('only a node that some source says is the primary becomes it, and never one of its own secondaries', () => {
    fc.assert(
      fc.property(anyMembers, (rows) => {
        const group = compared(PAIR, rows);
        const decision = decideSync(group, TTL_MS);
        if (decision.kind !== 'task') return;
        const { primary, secondaries } = decision.task;
        const claims = group.members.filter(({ isUp, role }) => isUp && role === 'primary');
        expect(claims.map(({ host }) => host)).toContain(primary.host);
        expect(secondaries?.map(({ host }) => host) ?? []).not.toContain(primary.host);
      }),
    );
  });

  it('the order in which the reports are read decides nothing', () => {
    fc.assert(
      fc.property(anyMembers, (rows) => {
        const group = compared(PAIR, rows);
        const reversed = { ...group, members: [...group.members].reverse() };
        expect(decideSync(reversed, TTL_MS)).toEqual(decideSync(group, TTL_MS));
      }),
    );
  });

  it('once its task is done, nothing is left to ask for', () => {
    fc.assert(
      fc.property(anyMembers, (rows) => {
        const decision = decideSync(compared(PAIR, rows), TTL_MS);
        if (decision.kind !== 'task') return;
        const { primary, secondaries } = decision.task;
        const swaps = primary.host === 'b';
        const kept = swaps ? ['a'] : ['b'];
        const others = secondaries?.map(({ host }) => host) ?? kept;
        const catalog: CatalogRow[] = [
          { node: primary.host },
          ...others.map((node) => ({ node, role: 'secondary' as const })),
        ];
        expect(decide(compared(catalog, rows))).toBeUndefined();
      }),
    );
  });
});
