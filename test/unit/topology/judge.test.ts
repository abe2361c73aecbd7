import pg from 'pg';
import { describe, expect, it } from 'vitest';
import { UnreachableError } from '../../../src/errors.js';
import { classifyFailure, isSuspicious, judge } from '../../../src/topology/probe.js';

const NODE = { groupid: 1, address: { host: 'a', port: 1 }, registered: 'primary' } as const;
const ANSWER = {
  standby: false,
  streaming: false,
  timeline: 3,
  systemIdentifier: '111',
  startedAt: '1',
};

describe('judge', () => {
  it('takes a node for what it says it is', () => {
    expect(judge(NODE, { seenAt: 5, answer: ANSWER }, '111')).toEqual({
      groupid: 1,
      address: NODE.address,
      seenAt: 5,
      role: 'primary',
      state: 'running',
      timeline: 3,
      systemIdentifier: '111',
    });
    const standby = { ...ANSWER, standby: true, streaming: true };
    expect(judge(NODE, { seenAt: 5, answer: standby }, '111')).toMatchObject({
      role: 'secondary',
      state: 'streaming',
    });
  });

  it('takes no node of another cluster for a member', () => {
    const report = judge(NODE, { seenAt: 5, answer: ANSWER }, '222');
    expect(report).toMatchObject({ state: 'foreign' });
    expect(report?.reason).toMatch(/111.*222/);
  });

  it('cannot tell where it may not ask, or nothing is known yet', () => {
    const blind = { ...ANSWER, systemIdentifier: null };
    expect(judge(NODE, { seenAt: 5, answer: blind }, '222')?.state).toBe('running');
    expect(judge(NODE, { seenAt: 5, answer: ANSWER }, undefined)?.state).toBe('running');
  });

  it('says of a node that is down only that, and of one that keeps us out nothing', () => {
    const failed = (kind: 'down' | 'silent' | 'closed') =>
      judge(NODE, { seenAt: 5, failure: { kind, reason: 'so' } }, '111');
    expect(failed('down')).toMatchObject({ state: 'unreachable', role: 'primary' });
    expect(failed('silent')).toMatchObject({ state: 'unreachable' });
    expect(failed('closed')).toBeUndefined();
  });
});

describe('classifyFailure', () => {
  const refused = Object.assign(new Error('refused'), { code: 'ECONNREFUSED' });
  const sent = (code: string) => {
    const error = new pg.DatabaseError('no', 2, 'error');
    error.code = code;
    return new UnreachableError('no', error);
  };

  it.each([
    ['a refused connection', new UnreachableError('no', refused), 'down'],
    ['all addresses of a host refused', new AggregateError([refused, refused]), 'down'],
    ['a server that is shutting down', sent('57P01'), 'down'],
    ['a server that is starting', sent('57P03'), 'down'],
    ['a wrong password', sent('28P01'), 'closed'],
    ['too many connections', sent('53300'), 'closed'],
    ['a timeout', new Error('timeout expired'), 'silent'],
  ] as const)('%s', (_, error, kind) => {
    expect(classifyFailure(error).kind).toBe(kind);
  });

  it('suspects a primary that is down, or that broke a connection and then fell silent', () => {
    const reason = 'so';
    expect(isSuspicious({ kind: 'down', reason })).toBe(true);
    expect(isSuspicious({ kind: 'silent', reason })).toBe(false);
    expect(isSuspicious({ kind: 'silent', reason, dropped: true })).toBe(true);
    expect(isSuspicious({ kind: 'closed', reason, dropped: true })).toBe(false);
  });
});
