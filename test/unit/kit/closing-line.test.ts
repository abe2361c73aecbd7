import { describe, expect, it } from 'vitest';
import { closingLine, countTests, type CountedModule } from '../../kit/closing-line.js';

function module(states: string[], errors: { file?: number; suite?: number } = {}): CountedModule {
  const failing = (count = 0) => ({ errors: () => Array<Error>(count).fill(new Error('broken')) });
  return {
    ...failing(errors.file),
    children: {
      allTests: () => states.map((state) => ({ result: () => ({ state }) })),
      allSuites: () => [failing(), failing(errors.suite)],
    },
  };
}

describe('countTests', () => {
  it('counts tests over all files', () => {
    const counts = countTests([module(['passed', 'failed', 'passed']), module(['passed'])], 0);
    expect(counts).toEqual({ passed: 3, failed: 1, skipped: 0 });
  });

  it('counts what was skipped and what was never reached as skipped', () => {
    expect(countTests([module(['passed', 'skipped', 'pending'])], 0)).toEqual({
      passed: 1,
      failed: 0,
      skipped: 2,
    });
  });

  it('counts a file that does not load, a failed hook and an uncaught error as one each', () => {
    expect(countTests([module([], { file: 2 })], 0).failed).toBe(1);
    expect(countTests([module(['skipped'], { suite: 1 })], 0).failed).toBe(1);
    expect(countTests([module(['passed'])], 1).failed).toBe(1);
  });

  it('is all zero without files', () => {
    expect(countTests([], 0)).toEqual({ passed: 0, failed: 0, skipped: 0 });
  });
});

describe('closingLine', () => {
  it('tells skipped tests only when there are some', () => {
    expect(closingLine({ passed: 3, failed: 1, skipped: 0 })).toBe('3 passed, 1 failed');
    expect(closingLine({ passed: 3, failed: 0, skipped: 2 })).toBe('3 passed, 0 failed, 2 skipped');
  });
});
