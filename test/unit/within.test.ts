import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { within } from '../../src/wait.js';

describe('within', () => {
  beforeEach(() => void vi.useFakeTimers());
  afterEach(() => void vi.useRealTimers());

  it('what is done in time', async () => {
    expect(await within(1_000, Promise.resolve('done'), 'late')).toBe('done');
    expect(vi.getTimerCount()).toBe(0);
  });

  it('what stands for it when it is late', async () => {
    const late = within(1_000, new Promise(() => undefined), 'late');
    await vi.advanceTimersByTimeAsync(1_000);
    expect(await late).toBe('late');
    expect(vi.getTimerCount()).toBe(0);
  });

  it('its error', async () => {
    await expect(within(1_000, Promise.reject(new Error('no')), 'late')).rejects.toThrow('no');
    expect(vi.getTimerCount()).toBe(0);
  });
});
