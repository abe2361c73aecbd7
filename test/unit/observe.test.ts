import pg from 'pg';
import { pino } from 'pino';
import { describe, expect, it } from 'vitest';
import { componentLogger, OncePerChange } from '../../src/logger.js';
import { remedyOf } from '../../src/postgres/sqlstate.js';
import { UnreachableError } from '../../src/errors.js';

function capture(base: object | null = { pid: 1 }): { lines: string[]; logger: pino.Logger } {
  const lines: string[] = [];
  const logger = pino({ base }, { write: (line: string) => void lines.push(line) });
  return { lines, logger };
}

const keysOf = (line: string): (string | undefined)[] =>
  [...line.matchAll(/[{,]"(\w+)":/g)].map(([, key]) => key);

describe('componentLogger', () => {
  it('names the innermost part, once, and keeps what else is known', () => {
    const { lines, logger } = capture();
    const database = logger.child({ database: 'a' });
    const topology = componentLogger(database, 'topology');
    componentLogger(topology.child({ groupid: 1 }), 'probe').info('x');
    componentLogger(componentLogger(topology, 'probe'), 'inner').info('y');
    expect(lines.map((line) => JSON.parse(line) as object)).toMatchObject([
      { pid: 1, database: 'a', component: 'probe', groupid: 1 },
      { pid: 1, database: 'a', component: 'inner' },
    ]);
    for (const line of lines) expect(new Set(keysOf(line)).size).toBe(keysOf(line).length);
  });

  it('leaves a logger of another program as it is that names a part at its root', () => {
    const { lines, logger } = capture({ component: 'theirs' });
    componentLogger(logger, 'ours').info('x');
    expect(keysOf(lines[0] ?? '').filter((key) => key === 'component')).toHaveLength(1);
  });
});

describe('OncePerChange', () => {
  it('says a text when it is new, has changed, is back after the trouble was over, or has lasted', () => {
    let now = 0;
    const once = new OncePerChange(1_000, () => now);
    const said: string[] = [];
    const say = (text: string): boolean => once.say(text, () => said.push(text));
    expect([say('a'), say('a'), say('b'), say('a')]).toEqual([true, false, true, true]);
    now = 999;
    expect(say('a')).toBe(false);
    now = 1_000;
    expect(say('a')).toBe(true);
    expect([once.clear(), once.clear()]).toEqual([true, false]);
    expect(say('a')).toBe(true);
    expect(said).toEqual(['a', 'b', 'a', 'a', 'a']);
  });
});

describe('remedyOf', () => {
  it.each([
    ['53100', 'make room on the disk of the coordinator'],
    ['28P01', 'check the user and the password'],
    ['28000', 'pg_hba.conf'],
    ['53300', 'MPP_MAX_SESSIONS'],
    ['25006', 'takes no writes'],
  ])('says what to do about %s, wherever in the causes it is', (code, advice) => {
    const error = new pg.DatabaseError('x', 1, 'error');
    error.code = code;
    expect(remedyOf(error)).toContain(advice);
    expect(remedyOf(new UnreachableError('y', error))).toContain(advice);
  });

  it('says nothing where nothing is known', () => {
    expect(remedyOf(new Error('x'))).toBeUndefined();
    expect(remedyOf('x')).toBeUndefined();
  });
});
