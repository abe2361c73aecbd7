import type { Node, Step } from '../mpp/abstract.js';
import { sameAddress, type Address } from '../tasks/task.js';
import type { Unconfirmed } from './verification.js';

/**
 * The steps that only add or change secondaries, without those whose nodes were not confirmed. A row that
 * was to be given to such a node has lost its own, and is removed.
 *
 * @param unconfirmed addresses of those nodes.
 */
export function withoutSecondaries(
  steps: readonly Step[],
  unconfirmed: readonly Address[],
  nodes: readonly Node[],
): Step[] {
  const isOut = (address: Address): boolean =>
    unconfirmed.some((other) => sameAddress(other, address));
  return steps.flatMap((step): Step[] => {
    if (step.op === 'add' && isOut(step.node)) return [];
    if (step.op !== 'update' || !isOut(step.to)) return [step];
    const row = nodes.find(({ nodeid }) => nodeid === step.nodeid);
    return row ? [{ op: 'remove', node: row.address }] : [];
  });
}

/** The addresses that such steps make secondaries. */
export function addedSecondaries(steps: readonly Step[]): Address[] {
  return steps.flatMap((step) => {
    if (step.op === 'add') return [step.node];
    return step.op === 'update' ? [step.to] : [];
  });
}

/** The first few, for people. */
export function describeMissing(missing: readonly Unconfirmed[]): string {
  const shown = missing.slice(0, MOST_SHOWN).map(({ reason }) => `secondary ${reason}`);
  const more = missing.length - shown.length;
  return [...shown, ...(more > 0 ? [`and ${more} more`] : [])].join('; ');
}

const MOST_SHOWN = 3;
