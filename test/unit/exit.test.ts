import { CommanderError } from 'commander';
import pg from 'pg';
import { describe, expect, it } from 'vitest';
import { CommandError, endingOf, EXIT } from '../../src/commands/exit.js';
import { ConfigError, DatabaseStateError, UnreachableError } from '../../src/errors.js';

function postgresError(code: string, message: string, hint?: string): pg.DatabaseError {
  return Object.assign(new pg.DatabaseError(message, message.length, 'error'), { code, hint });
}

describe('endingOf', () => {
  it.each([
    ['help', new CommanderError(0, 'commander.helpDisplayed', ''), EXIT.ok, null],
    ['wrong usage', new CommanderError(1, 'commander.unknownOption', 'x'), EXIT.usage, null],
    ['a wrong setting', new ConfigError('MPP_X cannot be 1'), EXIT.usage, 'MPP_X cannot be 1'],
    ['no database', new UnreachableError('cannot connect'), EXIT.failure, 'cannot connect'],
    ['a wrong state', new DatabaseStateError('X', 'is a standby'), EXIT.failure, 'is a standby'],
    ['an answer', new CommandError(EXIT.timedOut, 'still pending'), EXIT.timedOut, 'still pending'],
    ['anything', new Error('first\n  second'), EXIT.failure, 'first second'],
    ['no error at all', 'thrown text', EXIT.failure, 'thrown text'],
  ])('tells %s', (_, error, exitCode, line) => {
    expect(endingOf(error)).toEqual({ exitCode, line });
  });

  it('passes on the hint of PostgreSQL', () => {
    expect(endingOf(postgresError('22023', 'unknown event', 'Use another.')).line).toBe(
      'unknown event. Use another.',
    );
  });

  it('says what to do where PostgreSQL cannot know', () => {
    expect(endingOf(postgresError('42P01', 'relation "mpp_status" does not exist')).line).toContain(
      'mpp-controller migrate',
    );
  });
});
