import type { CatalogRow, MemberRow } from './members.js';

/** What is in the catalog, what is reported, and what must be asked for. */
export interface CompareCase {
  readonly name: string;
  readonly catalog?: readonly CatalogRow[];
  readonly members: readonly MemberRow[];
  readonly wishes?: readonly string[];
  /** What must be said when nothing is done. */
  readonly problem?: RegExp;
}

/** The catalog unless a case says otherwise. */
export const PAIR: readonly CatalogRow[] = [{ node: 'a' }, { node: 'b', role: 'secondary' }];
/** The role. */
export const P = 'primary' as const;

export const PRIMARIES: readonly CompareCase[] = [
  { name: 'all is as it should be', members: [{ node: 'a', role: P }, { node: 'b' }] },
  { name: 'nobody has reported anything', members: [] },
  {
    name: 'another node is the primary',
    members: [{ node: 'b', role: P }],
    wishes: ['1: b [as they are]'],
  },
  {
    name: 'a node without a row is the primary',
    members: [{ node: 'c', role: P }],
    wishes: ['1: c [as they are]'],
  },
  {
    name: 'the old primary is down since a moment: it stays as a secondary',
    members: [
      { node: 'b', role: P },
      { node: 'a', role: P, state: 'unreachable', since: 1 },
    ],
    wishes: ['1: b [as they are]'],
  },
  {
    name: 'a group without a row has a primary, and a secondary',
    catalog: [],
    members: [{ node: 'a', role: P }, { node: 'b' }],
    wishes: ['1: a [b]'],
  },
  { name: 'a group without a row has no primary', catalog: [], members: [{ node: 'b' }] },
  {
    name: 'the coordinator is a group like any other',
    catalog: [{ node: 'a', groupid: 0 }],
    members: [{ node: 'b', role: P, groupid: 0 }],
    wishes: ['0: b [as they are]'],
  },
  {
    name: 'the new primary is not up',
    members: [{ node: 'b', role: P, state: 'starting' }],
  },
  { name: 'the report is stale', members: [{ node: 'b', role: P, age: 31 }] },
  {
    name: 'there is no primary any more',
    members: [{ node: 'a' }, { node: 'b' }],
  },
  {
    name: 'two are the primary, and neither knows its timeline',
    members: [
      { node: 'a', role: P },
      { node: 'b', role: P },
    ],
    problem: /a:5432 \(timeline unknown\), b:5432/,
  },
  {
    name: 'two are the primary, on one timeline',
    members: [
      { node: 'a', role: P, timeline: 2 },
      { node: 'b', role: P, timeline: 2 },
    ],
    problem: /a:5432 \(timeline 2\), b:5432 \(timeline 2\)/,
  },
  {
    name: 'two are the primary, and one does not know its timeline',
    members: [
      { node: 'a', role: P },
      { node: 'b', role: P, timeline: 2 },
    ],
    problem: /claim to be the primary/,
  },
  {
    name: 'two are the primary, one on the higher timeline',
    members: [
      { node: 'a', role: P, timeline: 1 },
      { node: 'b', role: P, timeline: 2 },
    ],
    wishes: ['1: b [as they are]'],
  },
  {
    name: 'three are the primary, two on the highest timeline',
    members: [
      { node: 'a', role: P, timeline: 1 },
      { node: 'b', role: P, timeline: 2 },
      { node: 'c', role: P, timeline: 2 },
    ],
    problem: /claim to be the primary/,
  },
  {
    name: 'the registered primary has the higher timeline of two',
    members: [
      { node: 'a', role: P, timeline: 3 },
      { node: 'b', role: P, timeline: 2 },
    ],
  },
  {
    name: 'one was promoted after the other was last seen',
    members: [
      { node: 'a', role: P, source: 'table', age: 20 },
      { node: 'b', role: P, source: 'table', since: 10 },
    ],
    wishes: ['1: b [as they are]'],
  },
  {
    name: 'one was promoted after the probe last saw the other, which it will look at again',
    members: [
      { node: 'a', role: P, age: 2 },
      { node: 'b', role: P, since: 1 },
    ],
    problem: /claim to be the primary/,
  },
  {
    name: 'one was promoted, and the other goes on to claim it',
    members: [
      { node: 'a', role: P, source: 'table', age: 5 },
      { node: 'b', role: P, source: 'table', since: 10 },
    ],
    problem: /claim to be the primary/,
  },
  {
    name: 'the address is that of another group',
    catalog: [...PAIR, { node: 'z', groupid: 2 }],
    members: [{ node: 'z', role: P }],
    problem: /z:5432 is reported as its primary.*another group/,
  },
  {
    name: 'the address is in another node cluster',
    catalog: [...PAIR, { node: 'z', role: 'secondary', cluster: 'reports' }],
    members: [{ node: 'z', role: P }],
    problem: /z:5432 is reported as its primary/,
  },
  {
    name: 'an IPv6 address',
    members: [{ node: '::1', role: P }],
    wishes: ['1: [::1] [as they are]'],
  },
];

export const SOURCES: readonly CompareCase[] = [
  {
    name: 'two sources agree',
    members: [
      { node: 'b', role: P, source: 'probe' },
      { node: 'b', role: P, source: 'patroni' },
    ],
    wishes: ['1: b [as they are]'],
  },
  {
    name: 'they name different primaries, and each says so time and again',
    members: [
      { node: 'a', role: P, source: 'patroni' },
      { node: 'b', role: P, source: 'probe' },
    ],
    problem: /claim to be the primary/,
  },
  {
    name: 'they differ about one node',
    members: [
      { node: 'b', role: P, source: 'patroni' },
      { node: 'b', source: 'probe' },
    ],
    problem: /the sources differ whether b:5432 is the primary/,
  },
  {
    name: 'one has not looked since the other saw the change',
    members: [
      { node: 'a', role: P, source: 'patroni', age: 4 },
      { node: 'b', source: 'patroni', age: 4 },
      { node: 'a', role: P, source: 'probe', state: 'unreachable', since: 3 },
      { node: 'b', role: P, source: 'probe', since: 2 },
    ],
    wishes: ['1: b [as they are]'],
  },
  {
    name: 'one has looked again, and still says otherwise',
    members: [
      { node: 'a', role: P, source: 'patroni', age: 1 },
      { node: 'b', source: 'patroni', age: 1 },
      { node: 'a', role: P, source: 'probe', state: 'unreachable', since: 3 },
      { node: 'b', role: P, source: 'probe', since: 2 },
    ],
    problem: /claim to be the primary/,
  },
  {
    name: 'what contradicts is stale',
    members: [
      { node: 'a', role: P, source: 'table', age: 40 },
      { node: 'b', role: P, source: 'probe' },
    ],
    wishes: ['1: b [as they are]'],
  },
];

/** The primary as the catalog has it. */
export const A = { node: 'a', role: P } as const;

export const SECONDARIES: readonly CompareCase[] = [
  { name: 'a new one', members: [A, { node: 'c' }], wishes: ['1: a [b c]'] },
  {
    name: 'a new one that streams, with an IPv6 address',
    members: [A, { node: '::1', state: 'streaming' }],
    wishes: ['1: a [[::1] b]'],
  },
  { name: 'a new one that is not up', members: [A, { node: 'c', state: 'starting' }] },
  { name: 'a new one that serves no reads', members: [A, { node: 'c', noloadbalance: true }] },
  {
    name: 'one that Patroni keeps from reads, though the probe finds it fine',
    members: [
      A,
      { node: 'c', noloadbalance: true, source: 'patroni', age: 300 },
      { node: 'c', source: 'probe' },
    ],
  },
  { name: 'a new one, and nobody says who is the primary', members: [{ node: 'c' }] },
  {
    name: 'a new one that is a node of another group',
    catalog: [...PAIR, { node: 'c', groupid: 2 }],
    members: [A, { node: 'c' }],
  },
  {
    name: 'a new one that is in another node cluster',
    catalog: [...PAIR, { node: 'c', role: 'secondary', cluster: 'reports' }],
    members: [A, { node: 'c' }],
  },
  { name: 'one that is no longer reported', members: [A, { node: 'b', age: 300 }] },
  {
    name: 'one that is down since a moment',
    members: [A, { node: 'b', state: 'unreachable', since: 20 }],
  },
  {
    name: 'one that is down for longer than a report counts',
    members: [A, { node: 'b', state: 'unreachable', since: 31 }],
    wishes: ['1: a []'],
  },
  {
    name: 'one that is down, by an old report',
    members: [A, { node: 'b', state: 'unreachable', since: 300, age: 200 }],
  },
  {
    name: 'one that has left',
    members: [A, { node: 'b', state: 'removed', since: 1 }],
    wishes: ['1: a []'],
  },
  {
    name: 'one that has left by one source, and is up by another',
    members: [A, { node: 'b', state: 'removed', source: 'patroni' }, { node: 'b' }],
  },
  {
    name: 'one that is to serve no reads any more',
    members: [A, { node: 'b', noloadbalance: true }],
    wishes: ['1: a []'],
  },
  {
    name: 'one replaced by another',
    members: [A, { node: 'b', state: 'removed' }, { node: 'c' }],
    wishes: ['1: a [c]'],
  },
  {
    name: 'a failover, the old primary gone, a new standby there',
    members: [{ node: 'b', role: P }, { node: 'a', state: 'removed' }, { node: 'c' }],
    wishes: ['1: b [c]'],
  },
  {
    name: 'a failover to a node without a row: the old primary follows it',
    members: [{ node: 'c', role: P }, { node: 'a' }],
    wishes: ['1: c [a b]'],
  },
  {
    name: 'a switchover that adds one at once',
    members: [{ node: 'b', role: P }, { node: 'a' }, { node: 'c' }],
    wishes: ['1: b [a c]'],
  },
  {
    name: 'of another node cluster, gone',
    catalog: [...PAIR, { node: 'z', role: 'secondary', cluster: 'reports' }],
    members: [A, { node: 'z', state: 'removed' }],
  },
];
