import fc from 'fast-check';
import pg from 'pg';
import { describe, expect, it } from 'vitest';
import {
  boundsOf,
  growingDelay,
  retryDelay,
  unconfirmedDelay,
  watchdogMs,
} from '../../src/controller/retry-delays.js';
import { SERVER_GRACE_MS } from '../../src/postgres/transaction.js';
import type { Task } from '../../src/tasks/task.js';

function task(more: Partial<Task> = {}): Task {
  return {
    ...{ id: '1', event: 'before_demote', groupid: 1, address: { host: 'a', port: 1 } },
    ...{ secondaries: null, timeoutMs: 30_000, cooldownMs: 10_000, pause: null },
    ...{ source: 'client', attempt: 1, remainingMs: 29_000, resumed: false },
    ...more,
  };
}

function databaseError(code: string): pg.DatabaseError {
  const error = new pg.DatabaseError('it failed', 0, 'error');
  error.code = code;
  return error;
}

/** Any task that the table lets in. */
const anyTask = fc
  .record({
    event: fc.constantFrom('before_demote', 'before_promote', 'after_promote', 'suspect'),
    timeoutMs: fc.double({ min: 0.001, max: 86_400_000, noNaN: true }),
    cooldownMs: fc.double({ min: 0, max: 86_400_000, noNaN: true }),
    remainingMs: fc.double({ min: -100_000, max: 86_400_000, noNaN: true }),
    resumed: fc.boolean(),
  })
  .map((more) => task(more));

describe('boundsOf', () => {
  it('gives a hold its whole timeout, from when it opens, and the server a moment more', () => {
    expect(boundsOf(task()).idleMs).toBe(30_000 + SERVER_GRACE_MS);
  });

  it('gives a hold that is taken up again what is left of it', () => {
    expect(boundsOf(task({ resumed: true })).idleMs).toBe(29_000 + SERVER_GRACE_MS);
  });

  it('leaves the hold that a task is part of what it has: only an acknowledgement changes that', () => {
    expect(boundsOf(task({ timeoutMs: 1_000 }), 25_000).idleMs).toBe(25_000 + SERVER_GRACE_MS);
    expect(boundsOf(task({ timeoutMs: 90_000 }), 25_000).idleMs).toBe(25_000 + SERVER_GRACE_MS);
  });

  it('lets force act before a lock times out, and a before_ task run no longer than it is of use', () => {
    fc.assert(
      fc.property(anyTask, (any) => {
        const { lockMs, statementMs, idleMs } = boundsOf(any);
        expect(lockMs).toBeGreaterThan(any.cooldownMs);
        expect(idleMs).toBeGreaterThanOrEqual(any.resumed ? any.remainingMs : any.timeoutMs);
        if (any.event === 'after_promote') expect(statementMs).toBeGreaterThan(lockMs);
        else expect(statementMs).toBe(Math.max(any.remainingMs, 1));
        // setTimeout takes no more; it would ring at once.
        expect(watchdogMs(any)).toBeLessThan(2 ** 31);
        expect(watchdogMs(any)).toBeGreaterThan(statementMs);
      }),
    );
  });
});

describe('retryDelay', () => {
  it.each(['40P01', '40001'])('tries a victim (%s) again at once, whatever its event', (code) => {
    const delay = retryDelay(task(), databaseError(code));
    expect(delay).toBeGreaterThan(0);
    expect(delay).toBeLessThan(100);
    expect(retryDelay(task({ event: 'after_promote', attempt: 9 }), databaseError(code))).toBe(
      delay,
    );
  });

  it.each(['before_demote', 'before_promote', 'suspect'] as const)('tries %s once', (event) => {
    expect(retryDelay(task({ event }), databaseError('55000'))).toBeUndefined();
    expect(retryDelay(task({ event }), new Error('the session was lost'))).toBeUndefined();
  });

  it.each(['22023', '23514', '0A000'])('gives up a report that no retry can fix: %s', (code) => {
    expect(retryDelay(task({ event: 'after_promote' }), databaseError(code))).toBeUndefined();
  });

  it.each(['55000', '55P03', '57014', '42501', '08006', '23505'])(
    'retries a fact after %s',
    (code) => {
      const attempts = [1, 2, 3, 9, 10, 1_000];
      const delays = attempts.map((attempt) =>
        retryDelay(task({ event: 'after_promote', attempt }), databaseError(code)),
      );
      expect(delays).toEqual([100, 200, 400, 25_600, 30_000, 30_000]);
    },
  );

  it('grows and stays bounded', () => {
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 2_147_483_646 }), (attempt) => {
        expect(growingDelay(attempt + 1)).toBeGreaterThanOrEqual(growingDelay(attempt));
        expect(growingDelay(attempt)).toBeLessThanOrEqual(30_000);
      }),
    );
  });
});

describe('unconfirmedDelay', () => {
  const delays = (isHeld: boolean, attempts: number[]) =>
    attempts.map((attempt) => unconfirmedDelay(attempt, isHeld));

  it('asks again at once while traffic waits', () => {
    expect(delays(true, [1, 2, 3, 4, 5, 100])).toEqual([50, 100, 200, 400, 500, 500]);
  });

  it('asks every two seconds for two minutes, then less and less', () => {
    expect(delays(false, [1, 2, 5, 6, 60, 61])).toEqual([100, 200, 1_600, 2_000, 2_000, 30_000]);
  });
});
