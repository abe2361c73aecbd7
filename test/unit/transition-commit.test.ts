import { describe } from 'vitest';
import type { Node } from '../../src/mpp/abstract.js';
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

const update = (nodeid: number, to: Node['address']) => ({ op: 'update', nodeid, to });
const SWAP = [update(1, { host: 'a-demoted', port: 1 }), update(2, A), update(1, B)];

const change = (steps: object[], followUp = false, nodeid: number | null = 1) => ({
  ...{ kind: 'change', nodeid, steps, followUp },
});
const AFTER_PROMOTE: readonly Case[] = [
  {
    rule: 'the first row of a group',
    report: report('after_promote', A),
    nodes: [],
    gives: change([{ op: 'add', groupid: 1, role: 'primary', node: A }], false, null),
  },
  {
    rule: 'its standbys follow',
    report: report('after_promote', A, { secondaries: [B] }),
    nodes: [],
    gives: change([{ op: 'add', groupid: 1, role: 'primary', node: A }], true, null),
  },
  {
    rule: 'standbys of a group that is there',
    report: report('after_promote', A, { secondaries: [B, C] }),
    nodes: [primary],
    gives: change([
      { op: 'add', groupid: 1, role: 'secondary', node: B },
      { op: 'add', groupid: 1, role: 'secondary', node: C },
    ]),
  },
  {
    rule: 'the coordinator is told its own address',
    report: report('after_promote', A, { groupid: 0 }),
    nodes: [],
    gives: change([{ op: 'coordinator', node: A }], false, null),
  },
  {
    rule: 'the coordinator with a row is updated like any other',
    report: report('after_promote', B, { groupid: 0 }),
    nodes: [node(1, A, { groupid: 0, role: 'primary' })],
    gives: change([update(1, B)]),
  },
  {
    rule: 'a swap with the registered secondary',
    report: report('after_promote', B),
    nodes: [primary, standby],
    held: heldFor(B),
    gives: change(SWAP),
  },
  {
    rule: 'demoted-row: the row is parked already',
    report: report('after_promote', B),
    nodes: [{ ...primary, address: { host: 'a-demoted', port: 1 } }, standby],
    held: heldFor(B),
    gives: change([update(2, A), update(1, B)]),
  },
  {
    rule: 'demoted-row: before_promote has swapped already',
    report: report('after_promote', B),
    nodes: [
      { ...primary, address: B },
      { ...standby, address: A },
    ],
    held: heldFor(B),
    gives: change([update(1, B)]),
  },
  {
    rule: 'overridden, demoted-row: who was swapped goes back',
    report: report('after_promote', C),
    nodes: [{ ...primary, address: B }, { ...standby, address: A }, node(3, C)],
    held: heldFor(B),
    gives: change([
      update(1, { host: 'a-demoted', port: 1 }),
      update(2, B),
      update(3, A),
      update(1, C),
    ]),
  },
  {
    rule: 'the same primary ends the hold without a step',
    report: report('after_promote', A),
    nodes: [primary, standby],
    held,
    gives: change([]),
  },
  {
    rule: 'rule 5: without a hold it is the same change',
    report: report('after_promote', B),
    nodes: [primary, standby],
    gives: change(SWAP),
  },
  {
    rule: 'the row that lost its node is reused for the new one',
    report: report('after_promote', B, { secondaries: [C] }),
    nodes: [node(1, B, { role: 'primary' }), node(2, A)],
    gives: change([update(2, C)]),
  },
  {
    rule: 'a node that was never registered',
    report: report('after_promote', C),
    nodes: [primary, standby],
    gives: change([update(1, C)]),
  },
  {
    rule: 'a secondary is replaced',
    report: report('after_promote', A, { secondaries: [C] }),
    nodes: [primary, standby],
    gives: change([update(2, C)]),
  },
  {
    rule: 'a secondary is removed',
    report: report('after_promote', A, { secondaries: [] }),
    nodes: [primary, standby],
    gives: change([{ op: 'remove', node: B }]),
  },
  {
    rule: 'the primary first, the rest in a task of its own',
    report: report('after_promote', B, { secondaries: [C] }),
    nodes: [primary, standby],
    held: heldFor(B),
    gives: change(SWAP, true),
  },
  {
    rule: 'a swap that already gives the secondaries needs no second task',
    report: report('after_promote', B, { secondaries: [A] }),
    nodes: [primary, standby],
    gives: change(SWAP),
  },
  {
    rule: 'duplicate, rule 4: done without a write',
    report: report('after_promote', A, { secondaries: [B] }),
    nodes: [primary, standby],
    gives: nothing,
  },
  {
    rule: 'a secondary named twice is one',
    report: report('after_promote', A, { secondaries: [B, B] }),
    nodes: [primary],
    gives: change([{ op: 'add', groupid: 1, role: 'secondary', node: B }]),
  },
  {
    rule: 'a node of another group fails for good',
    report: report('after_promote', D),
    nodes: [primary, elsewhere],
    gives: { kind: 'fail', reason: reason(/d:1 belongs to group 2 \(nodeid 8\); remove or move/) },
  },
  {
    rule: 'a secondary that is of another node cluster fails for good, once the primary has moved',
    report: report('after_promote', A, { secondaries: [D] }),
    nodes: [primary, standby, foreign],
    gives: { kind: 'fail', reason: reason(/another node cluster/) },
  },
  {
    rule: 'a group of secondaries alone fails for good',
    report: report('after_promote', B),
    nodes: [standby],
    gives: { kind: 'fail', reason: reason(/citus_remove_node/) },
  },
];

describe('after_promote', () => checkCases(AFTER_PROMOTE));
