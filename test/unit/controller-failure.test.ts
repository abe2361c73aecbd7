import pg from 'pg';
import { pino } from 'pino';
import { describe, expect, it } from 'vitest';
import {
  classifyTrouble,
  troubleDelay,
  TroubleReporter,
} from '../../src/controller/controller-failure.js';
import { DatabaseStateError, UnreachableError } from '../../src/errors.js';

function refusal(code: string): pg.DatabaseError {
  const error = new pg.DatabaseError('refused', 1, 'error');
  error.code = code;
  return error;
}

function socketError(code: string): Error {
  return Object.assign(new Error(code), { code });
}

describe('what keeps a controller from working', () => {
  it.each([
    ['standby', new DatabaseStateError('IN_RECOVERY', 'x')],
    ['state', new DatabaseStateError('SCHEMA_NEWER', 'x')],
    ['login', new UnreachableError('x', refusal('28P01'))],
    ['login', new UnreachableError('x', refusal('28000'))],
    ['login', new UnreachableError('x', refusal('3D000'))],
    ['login', new UnreachableError('x', refusal('42501'))],
    ['network', new UnreachableError('x', refusal('57P03'))],
    ['network', new UnreachableError('x', refusal('53300'))],
    ['network', new UnreachableError('x', socketError('ECONNREFUSED'))],
    [
      'network',
      new UnreachableError(
        'x',
        new AggregateError([socketError('ECONNREFUSED'), socketError('EHOSTUNREACH')]),
      ),
    ],
    ['unclear', new UnreachableError('x', socketError('ENOTFOUND'))],
    ['unclear', new UnreachableError('x', new Error('client password must be a string'))],
    ['unclear', new Error('Connection terminated unexpectedly')],
    ['network', refusal('57P01')],
    ['refused', refusal('53100')],
    ['refused', refusal('42501')],
    ['unknown', new TypeError('x is not a function')],
    ['unknown', 'a string'],
  ] as const)('is %s for %o', (kind, error) => {
    expect(classifyTrouble(error)).toBe(kind);
  });

  it('is waited for shortly while the network is gone, and longer and longer while the login is refused', () => {
    for (const kind of ['network', 'standby'] as const)
      expect(troubleDelay(kind, 99, 10_000)).toBe(250);
    expect([1, 2, 3, 8, 99].map((times) => troubleDelay('login', times, 10_000))).toEqual([
      250, 500, 1_000, 30_000, 30_000,
    ]);
    expect(troubleDelay('unclear', 99, 10_000)).toBe(1_000);
    expect(troubleDelay('state', 1, 10_000)).toBe(10_000);
  });

  it('is said once as a warning, with a stack only where it is a mistake of the program', () => {
    const lines: Record<string, unknown>[] = [];
    const logger = pino(
      { formatters: { level: (level) => ({ level }) } },
      { write: (line: string) => void lines.push(JSON.parse(line) as Record<string, unknown>) },
    );
    const reporter = new TroubleReporter(logger, 10_000);
    const refused = new UnreachableError('cannot connect', refusal('28P01'));
    expect([reporter.report(refused), reporter.report(refused)]).toEqual([250, 500]);
    expect(lines).toHaveLength(1);
    expect(lines[0]).toMatchObject({ level: 'warn' });
    expect(lines[0]?.['msg']).toMatch(/^cannot connect; check the user and the password/);
    expect(lines[0]).not.toHaveProperty('err');
    reporter.report(new TypeError('oops'));
    expect(lines[1]).toMatchObject({
      level: 'error',
      err: { stack: expect.any(String) as string },
    });
    expect(reporter.report(refused)).toBe(250);
    expect(lines).toHaveLength(3);
  });
});
