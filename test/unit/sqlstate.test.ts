import pg from 'pg';
import { describe, expect, it } from 'vitest';
import { isHopeless, isSessionLost, isVictim, sqlState } from '../../src/postgres/sqlstate.js';

function databaseError(code: string): pg.DatabaseError {
  const error = new pg.DatabaseError('it failed', 0, 'error');
  error.code = code;
  return error;
}

describe('what an error means', () => {
  it.each([
    { code: '57P01', what: 'ended by an administrator', is: 'lost' },
    { code: '57P02', what: 'the server crashed', is: 'lost' },
    { code: '57P03', what: 'the server starts or stops', is: 'lost' },
    { code: '25P03', what: 'idle in a transaction for too long', is: 'lost' },
    { code: '25P04', what: 'a transaction that took too long', is: 'lost' },
    { code: '57P05', what: 'idle for too long', is: 'lost' },
    { code: '08006', what: 'Citus cannot reach another node', is: 'neither' },
    { code: '40P01', what: 'a deadlock', is: 'victim' },
    { code: '40001', what: 'a conflict of snapshots', is: 'victim' },
    { code: '22023', what: 'a value that is refused', is: 'hopeless' },
    { code: '23514', what: 'a value that a check refuses', is: 'hopeless' },
    { code: '0A000', what: 'something the server cannot do', is: 'hopeless' },
    { code: '55000', what: 'metadata that is not in sync', is: 'neither' },
    { code: '55P03', what: 'a lock that did not come in time', is: 'neither' },
    { code: '57014', what: 'a statement that was cancelled', is: 'neither' },
    { code: '42501', what: 'a missing right, which can be granted', is: 'neither' },
    { code: '53300', what: 'too many sessions', is: 'neither' },
  ])('$code, $what: $is', ({ code, is }) => {
    const error = databaseError(code);
    expect(sqlState(error)).toBe(code);
    expect(isSessionLost(error)).toBe(is === 'lost');
    expect(isVictim(error)).toBe(is === 'victim');
    expect(isHopeless(error)).toBe(is === 'hopeless');
  });

  it.each([new Error('Connection terminated'), new AggregateError([]), 'text', undefined])(
    'without a SQLSTATE the session is lost: %s',
    (error) => {
      expect(sqlState(error)).toBeUndefined();
      expect(isSessionLost(error)).toBe(true);
      expect(isVictim(error)).toBe(false);
      expect(isHopeless(error)).toBe(false);
    },
  );
});
