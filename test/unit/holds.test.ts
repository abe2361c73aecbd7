import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { Holds, type Hold } from '../../src/controller/holds.js';
import { WakeUp } from '../../src/wait.js';
import { Transaction } from '../../src/postgres/transaction.js';

beforeEach(() => {
  vi.useFakeTimers();
});
afterEach(() => {
  vi.useRealTimers();
});

describe('Holds', () => {
  function hold(groupid: number): Hold {
    return {
      // Holds keeps the session and never uses it.
      session: Object.create(Transaction.prototype) as Transaction,
      ...{ groupid, pause: 'writes', pausing: undefined, lost: false, before: [], attempts: [] },
      interventions: { terminated: 0, cancelled: 0 },
      ...{ kind: 'planned', beganAt: 0, heldAt: undefined },
      node: { nodeid: 1, original: { host: 'a', port: 1 }, target: null },
    };
  }

  it('tells each hold when its deadline has passed, not before, and only once', () => {
    const due: number[] = [];
    const holds = new Holds(({ groupid }) => due.push(groupid));
    const [one, two] = [hold(1), hold(2)];
    holds.add(one);
    holds.add(two);
    holds.extend(one, 1_000);
    holds.extend(two, 2_000);
    vi.advanceTimersByTime(999);
    expect(due).toEqual([]);
    vi.advanceTimersByTime(1_500);
    expect(due).toEqual([1, 2]);
    expect(holds.remaining(one)).toBeLessThanOrEqual(0);
    vi.advanceTimersByTime(60_000);
    expect(due).toEqual([1, 2]);
    expect(holds.groups()).toEqual([1, 2]);
  });

  it('moves a deadline later, never earlier', () => {
    const due = vi.fn();
    const holds = new Holds(due);
    const one = hold(1);
    holds.add(one);
    holds.extend(one, 10_000);
    holds.extend(one, 1_000);
    expect(holds.remaining(one)).toBe(10_000);
    holds.extend(one, 20_000);
    vi.advanceTimersByTime(19_999);
    expect(due).not.toHaveBeenCalled();
    vi.advanceTimersByTime(10);
    expect(due).toHaveBeenCalledExactlyOnceWith(one);
  });

  it('tells nothing of a hold that is off the list', () => {
    const due = vi.fn();
    const holds = new Holds(due);
    const one = hold(1);
    holds.add(one);
    holds.extend(one, 1_000);
    expect(holds.remove(one, 'deadline')).toBe(true);
    expect(holds.remove(one, 'deadline')).toBe(false);
    holds.extend(one, 1_000);
    vi.advanceTimersByTime(60_000);
    expect(due).not.toHaveBeenCalled();
    expect(holds.get(1)).toBeUndefined();
    expect(holds.remaining(one)).toBe(0);
  });

  it('takes an earlier hold of a group for another one', () => {
    const holds = new Holds(vi.fn());
    const [earlier, later] = [hold(1), hold(1)];
    holds.add(earlier);
    holds.remove(earlier, 'deadline');
    holds.add(later);
    expect(holds.remove(earlier, 'deadline')).toBe(false);
    expect(holds.all()).toEqual([later]);
    expect(holds.get(1)).toBe(later);
  });
});

describe('Signal', () => {
  it('wakes who waits', async () => {
    const signal = new WakeUp();
    const waiting = signal.wait(1_000);
    signal.raise();
    expect(await waiting).toBe('raised');
    expect(vi.getTimerCount()).toBe(0);
  });

  it('is remembered until it is waited for, once, however often it was raised', async () => {
    const signal = new WakeUp();
    signal.raise();
    signal.raise();
    expect(await signal.wait(1_000)).toBe('raised');
    const again = signal.wait(1_000);
    await vi.advanceTimersByTimeAsync(1_000);
    expect(await again).toBe('timeout');
  });

  it('is not lost when it is raised at the very end of a wait', async () => {
    const signal = new WakeUp();
    const waiting = signal.wait(1_000);
    vi.advanceTimersByTime(1_000);
    signal.raise();
    expect(await waiting).toBe('raised');
  });
});
