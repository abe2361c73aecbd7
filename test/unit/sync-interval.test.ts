import { describe, expect, it } from 'vitest';
import { describeInterval } from '../../src/mpp/citus/gucs.js';

describe('the interval at which Citus syncs other nodes again', () => {
  it.each([
    ['200ms', 200],
    ['1s', 1_000],
  ])('%s needs no word', (value, ms) => {
    expect(describeInterval({ value, ms })).toEqual([]);
  });

  it.each([
    ['5s', 5_000],
    ['1min', 60_000],
  ])('%s is named, with the commands that change it', (value, ms) => {
    const [sentence] = describeInterval({ value, ms });
    expect(sentence).toContain(`citus.metadata_sync_retry_interval is ${value}`);
    expect(sentence).toContain('mpp-controller gucs --apply');
    expect(sentence).toContain('ALTER SYSTEM SET');
  });
});
