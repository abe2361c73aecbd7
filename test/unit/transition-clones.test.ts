import { describe } from 'vitest';
import {
  A,
  B,
  C,
  checkCases,
  heldFor,
  node,
  nothing,
  primary,
  reason,
  report,
  standby,
} from '../kit/transition-cases.js';

const CLONE = { role: 'unavailable', cloneOf: 1 } as const;
const clone = node(5, C, CLONE);
const parked = { host: 'c-promoted', port: 1 };
const update = (nodeid: number, to: typeof A) => ({ op: 'update', nodeid, to });

describe('a row that is neither primary nor secondary', () => {
  checkCases([
    {
      rule: 'is no secondary that a report could miss',
      report: report('after_promote', A, { secondaries: [B] }),
      nodes: [primary, standby, clone],
      gives: nothing,
    },
    {
      rule: 'stays as it is when the report lists it as a secondary',
      report: report('after_promote', A, { secondaries: [B, C] }),
      nodes: [primary, standby, clone],
      gives: nothing,
    },
    {
      rule: 'is not removed with the secondaries',
      report: report('after_promote', A, { secondaries: [] }),
      nodes: [primary, standby, clone],
      gives: { steps: [{ op: 'remove', node: B }] },
    },
    {
      rule: 'keeps its address from being taken when it is no clone of the group',
      report: report('after_promote', C),
      nodes: [primary, node(5, C, { role: 'unavailable' })],
      gives: { kind: 'fail', reason: reason(/group 1 as an unavailable node/) },
    },
    {
      rule: 'keeps its address from being taken when it is a clone of another group',
      report: report('after_promote', C),
      nodes: [primary, node(5, C, { ...CLONE, cloneOf: 8, groupid: 2 })],
      gives: { kind: 'fail', reason: reason(/group 2 as an unavailable node/) },
    },
    {
      rule: 'of another node cluster is never touched',
      report: report('after_promote', C),
      nodes: [primary, node(5, C, { ...CLONE, isInCluster: false })],
      gives: { kind: 'fail', reason: reason(/another node cluster/) },
    },
  ]);
});

describe('a clone that is promoted', () => {
  checkCases([
    {
      rule: 'gives its address to the row of the primary; its own row is removed later',
      report: report('after_promote', C),
      nodes: [primary, standby, clone],
      gives: { kind: 'change', steps: [update(5, parked), update(1, C)], followUp: true },
    },
    {
      rule: 'does so with a group number of its own',
      report: report('after_promote', C),
      nodes: [primary, node(5, C, { ...CLONE, groupid: 101 })],
      gives: { kind: 'change', steps: [update(5, parked), update(1, C)], followUp: true },
    },
    {
      rule: 'has its row removed once the primary is there',
      report: report('after_promote', C),
      nodes: [node(1, C, { role: 'primary' }), node(5, parked, CLONE)],
      gives: { steps: [{ op: 'removeClone', node: parked }], followUp: false },
    },
    {
      rule: 'may be announced by before_promote',
      report: report('before_promote', C),
      nodes: [primary, clone],
      gives: { kind: 'hold', node: primary, target: C },
    },
    {
      rule: 'gets its row back when a hold had moved it and another node is the primary',
      report: report('after_promote', B),
      nodes: [node(1, C, { role: 'primary' }), node(5, parked, CLONE)],
      held: heldFor(C),
      gives: { kind: 'change', steps: [update(1, B), update(5, C)], followUp: false },
    },
  ]);
});
