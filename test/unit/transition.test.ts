import { describe, expect, it } from 'vitest';
import { parkedAddress } from '../../src/mpp/citus/transition.js';
import {
  A,
  B,
  C,
  D,
  checkCases,
  elsewhere,
  foreign,
  held,
  heldFor,
  node,
  nothing,
  primary,
  reason,
  report,
  standby,
  type Case,
} from '../kit/transition-cases.js';

const BEFORE_DEMOTE: readonly Case[] = [
  {
    rule: 'the primary is held',
    report: report('before_demote', A),
    nodes: [primary, standby],
    gives: { kind: 'hold', node: primary, target: null },
  },
  {
    rule: 'a duplicate: the hold goes on',
    report: report('before_demote', A),
    nodes: [primary, standby],
    held: heldFor(B),
    gives: { kind: 'hold', node: primary, target: B },
  },
  {
    rule: 'a second switchover starts before the first has ended',
    report: report('before_demote', B),
    nodes: [primary, standby],
    held: heldFor(B),
    gives: { kind: 'hold', node: primary, target: B },
  },
  {
    rule: 'stale: a node that is not the primary is discarded',
    report: report('before_demote', B),
    nodes: [primary, standby],
    gives: { kind: 'discard', reason: reason(/b:1 is not the primary of group 1: that is a:1/) },
  },
  {
    rule: 'stale: the port counts',
    report: report('before_demote', { host: 'a', port: 2 }),
    nodes: [primary],
    gives: { kind: 'discard' },
  },
  {
    rule: 'unknown: a group without a primary is discarded',
    report: report('before_demote', A, { groupid: 7 }),
    nodes: [],
    gives: { kind: 'discard', reason: reason(/group 7 has no primary/) },
  },
  {
    rule: 'the primary of another node cluster is nobody here',
    report: report('before_demote', D),
    nodes: [foreign],
    gives: { kind: 'discard' },
  },
];

const SUSPECT: readonly Case[] = [
  {
    rule: 'the primary is held',
    report: report('suspect', A),
    nodes: [primary],
    gives: { kind: 'hold', node: primary, target: null },
  },
  {
    rule: 'rule 3: done at once when the group is held',
    report: report('suspect', A),
    nodes: [primary],
    held,
    gives: nothing,
  },
  {
    rule: 'rule 4: another node is discarded',
    report: report('suspect', B),
    nodes: [primary, standby],
    gives: { kind: 'discard' },
  },
];

const BEFORE_PROMOTE: readonly Case[] = [
  {
    rule: 'the hold learns its target',
    report: report('before_promote', B),
    nodes: [primary, standby],
    held,
    gives: { kind: 'hold', node: primary, target: B },
  },
  {
    rule: 'rule 6: without a hold it opens one',
    report: report('before_promote', B),
    nodes: [primary, standby],
    gives: { kind: 'hold', node: primary, target: B },
  },
  {
    rule: 'a node without a row will do',
    report: report('before_promote', C),
    nodes: [primary],
    gives: { kind: 'hold', node: primary, target: C },
  },
  {
    rule: 'the held primary comes back itself',
    report: report('before_promote', A),
    nodes: [primary],
    held,
    gives: { kind: 'hold', node: primary, target: A },
  },
  {
    rule: 'overridden: the newer target counts',
    report: report('before_promote', C),
    nodes: [primary, standby],
    held: heldFor(B),
    gives: { kind: 'hold', node: primary, target: C },
  },
  {
    rule: 'rule 4: the primary already',
    report: report('before_promote', A),
    nodes: [primary],
    gives: nothing,
  },
  {
    rule: 'unknown: a group without a primary is discarded',
    report: report('before_promote', A),
    nodes: [],
    gives: { kind: 'discard', reason: reason(/after_promote/) },
  },
  {
    rule: 'a node of another group is refused',
    report: report('before_promote', D),
    nodes: [primary, elsewhere],
    gives: { kind: 'discard', reason: reason(/d:1 belongs to group 2 \(nodeid 8\)/) },
  },
];

describe('before_demote', () => checkCases(BEFORE_DEMOTE));
describe('suspect', () => checkCases(SUSPECT));
describe('before_promote', () => checkCases(BEFORE_PROMOTE));

describe('parkedAddress', () => {
  it('is a name that no node has', () => {
    expect(parkedAddress(primary, [primary])).toEqual({ host: 'a-demoted', port: 1 });
    const taken = node(5, { host: 'a-demoted', port: 1 });
    expect(parkedAddress(primary, [primary, taken])).toEqual({ host: 'a-demoted-1', port: 1 });
    const otherPort = node(5, { host: 'a-demoted', port: 2 });
    expect(parkedAddress(primary, [primary, otherPort]).host).toBe('a-demoted');
  });

  it('stays the same once the row is there', () => {
    const parked = { ...primary, address: { host: 'a-demoted', port: 1 } };
    expect(parkedAddress(primary, [parked])).toEqual(parked.address);
  });
});
