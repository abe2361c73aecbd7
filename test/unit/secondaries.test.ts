import { describe, expect, it } from 'vitest';
import type { Step } from '../../src/mpp/abstract.js';
import {
  addedSecondaries,
  describeMissing,
  withoutSecondaries,
} from '../../src/controller/commit-change.js';
import { B, C, D, node } from '../kit/transition-cases.js';

const rows = [node(2, B)];
const add: Step = { op: 'add', groupid: 1, role: 'secondary', node: C };
const reuse: Step = { op: 'update', nodeid: 2, to: D };

describe('secondaries that were not confirmed', () => {
  it('are those that the steps would add or give a row to', () => {
    expect(addedSecondaries([reuse, { op: 'remove', node: B }, add])).toEqual([D, C]);
  });

  it('are left out; a row that was to be given to one of them is removed', () => {
    expect(withoutSecondaries([reuse, add], [], rows)).toEqual([reuse, add]);
    expect(withoutSecondaries([reuse, add], [C], rows)).toEqual([reuse]);
    expect(withoutSecondaries([reuse, add], [D], rows)).toEqual([{ op: 'remove', node: B }, add]);
    expect(withoutSecondaries([reuse, add], [C, D], rows)).toEqual([{ op: 'remove', node: B }]);
  });

  it('are named, the first few of them', () => {
    const missing = [1, 2, 3, 4, 5].map((port) => ({
      address: { host: 'a', port },
      reason: `a:${port} does not answer`,
    }));
    expect(describeMissing(missing)).toMatch(/^secondary a:1 .*a:3 does not answer; and 2 more$/);
    expect(describeMissing(missing.slice(0, 1))).toBe('secondary a:1 does not answer');
  });
});
