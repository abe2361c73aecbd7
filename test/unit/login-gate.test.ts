import pg from 'pg';
import { describe, expect, it } from 'vitest';
import { LoginGate } from '../../src/postgres/pool.js';

function refusal(code: string): pg.DatabaseError {
  const error = new pg.DatabaseError('refused', 1, 'error');
  error.code = code;
  return error;
}

describe('LoginGate', () => {
  it('lets no login through for a time that grows with each refusal, and all once one succeeds', () => {
    let now = 0;
    const gate = new LoginGate(() => now);
    const error = refusal('28P01');
    const waits: number[] = [];
    for (let attempt = 0; attempt < 9; attempt += 1) {
      gate.check();
      gate.failed(error);
      waits.push(gate.waitMs);
      expect(() => gate.check()).toThrow(error);
      now += gate.waitMs;
    }
    expect(waits).toEqual([250, 500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000]);
    gate.failed(error);
    gate.succeeded();
    gate.check();
    gate.failed(error);
    expect(gate.waitMs).toBe(250);
  });

  it('counts refusals of logins that were under way together once', () => {
    const gate = new LoginGate(() => 0);
    for (let session = 0; session < 10; session += 1) gate.failed(refusal('28000'));
    expect(gate.waitMs).toBe(250);
  });

  it.each([refusal('57P03'), refusal('53300'), new Error('connect ECONNREFUSED')])(
    'stays open for %o, which gets better by itself',
    (error) => {
      const gate = new LoginGate(() => 0);
      gate.failed(error);
      expect(gate.waitMs).toBe(0);
    },
  );
});
