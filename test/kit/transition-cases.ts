import { expect, it } from 'vitest';
import type { HeldNode, Node } from '../../src/mpp/abstract.js';
import { planTransition, type Report } from '../../src/mpp/citus/transition.js';
import { parseAddress } from '../../src/address.js';

/** Addresses; group 1 is on A and B unless a case says otherwise. */
export const A = parseAddress('a:1');
export const B = parseAddress('b:1');
export const C = parseAddress('c:1');
export const D = parseAddress('d:1');

export function node(nodeid: number, address: Node['address'], more: Partial<Node> = {}): Node {
  return { nodeid, groupid: 1, address, role: 'secondary', isInCluster: true, ...more };
}

export const primary = node(1, A, { role: 'primary' });
export const standby = node(2, B);
export const elsewhere = node(8, D, { groupid: 2, role: 'primary' });
export const foreign = node(9, D, { isInCluster: false, role: 'primary' });

export function report(
  event: Report['event'],
  address: Node['address'],
  more: Partial<Report> = {},
) {
  return { event, groupid: 1, address, secondaries: null, ...more } satisfies Report;
}

export const held: HeldNode = { nodeid: 1, original: A, target: null };
export const heldFor = (target: Node['address']): HeldNode => ({ ...held, target });

/** What a report means for the rows that it finds. */
export interface Case {
  readonly rule: string;
  readonly report: Report;
  readonly nodes: readonly Node[];
  readonly held?: HeldNode;
  readonly gives: object;
}

export const nothing = { kind: 'nothing', nodeid: 1 };
export const reason = (pattern: RegExp) => expect.stringMatching(pattern) as string;

/** Plans each case and compares what counts of the answer. */
export function checkCases(cases: readonly Case[]): void {
  it.each(cases)('$rule', ({ report, nodes, held, gives }) => {
    const transition = planTransition(report, nodes, held ?? null);
    expect(transition).toEqual(expect.objectContaining(gives));
    if ('reason' in transition) expect(transition.reason).toMatch(/\S/);
  });
}
