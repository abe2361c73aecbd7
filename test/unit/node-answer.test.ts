import { describe, expect, it } from 'vitest';
import {
  classifyPrimary,
  classifySecondary,
  isSameServer,
  type Candidate,
  type NodeAnswer,
} from '../../src/mpp/node-answer.js';

const ANSWER: NodeAnswer = {
  inRecovery: false,
  timeline: 2,
  systemIdentifier: '111',
  localGroup: 1,
  startedAt: '1700000000.000001',
};
const KNOWN = { systemIdentifier: '111', timeline: 2, isAccepted: false };

function candidate(answer: Partial<NodeAnswer>, other: Partial<Candidate> = {}): Candidate {
  return {
    node: 'a:5432',
    groupid: 1,
    check: { answer: { ...ANSWER, ...answer } },
    known: KNOWN,
    isFirst: false,
    ...other,
  };
}

describe('a primary', () => {
  it.each<[string, Partial<NodeAnswer>, Partial<Candidate>]>([
    ['of the known system and group', {}, {}],
    ['on a later timeline', { timeline: 3 }, {}],
    ['that is not told its group by Citus', { localGroup: 0 }, {}],
    ['whose database has no group', { localGroup: null }, {}],
    ['that may not tell its system but is of the group', { systemIdentifier: null }, {}],
    ['of a group of which nothing is known', {}, { known: null }],
    ['that is the first of its group', { localGroup: 0 }, { known: null, isFirst: true }],
    ['of the coordinator', { localGroup: 0 }, { groupid: 0, known: KNOWN }],
    [
      'of any system once an operator accepts it',
      { systemIdentifier: '222', localGroup: null, timeline: 1 },
      { known: { systemIdentifier: null, timeline: null, isAccepted: true } },
    ],
  ])('%s is confirmed', (_, answer, other) => {
    expect(classifyPrimary(candidate(answer, other))).toEqual({ kind: 'confirmed' });
  });

  it.each<[string, Candidate, RegExp]>([
    [
      'does not answer',
      candidate({}, { check: { silence: 'connect ECONNREFUSED' } }),
      /^a:5432 does not answer: connect ECONNREFUSED$/,
    ],
    ['is in recovery', candidate({ inRecovery: true, timeline: null }), /still in recovery/],
    [
      'has yet to replay its registration',
      candidate({ inRecovery: true, timeline: null, localGroup: 0 }),
      /still in recovery/,
    ],
    [
      'says nothing that proves it',
      candidate({ systemIdentifier: null, localGroup: null }),
      /does not say which system or group.*MPP_VERIFY/,
    ],
    [
      'is not of the group by what it says, while nothing is known',
      candidate({ localGroup: 0 }, { known: null }),
      /does not say/,
    ],
  ])('that %s is not one yet', (_, node, reason) => {
    const verdict = classifyPrimary(node);
    expect(verdict.kind).toBe('notYet');
    expect('reason' in verdict && verdict.reason).toMatch(reason);
  });

  it.each<[string, Candidate, RegExp]>([
    [
      'of another system',
      candidate({ systemIdentifier: '222' }),
      /system identifier is 222.*group 1 is 111.*mpp_accept_system\(1\)/,
    ],
    [
      'of another system that is in recovery',
      candidate({ systemIdentifier: '222', inRecovery: true, timeline: null }),
      /222.*111/,
    ],
    ['of another group', candidate({ localGroup: 2 }), /of group 2.*group 1/],
    [
      'of another group, of which nothing is known',
      candidate({ localGroup: 2 }, { known: null }),
      /of group 2.*group 1/,
    ],
    [
      'of another group, to be the first of this one',
      candidate({ localGroup: 2 }, { known: null, isFirst: true }),
      /of group 2/,
    ],
    [
      'that is a worker, to be the coordinator',
      candidate({ localGroup: 2 }, { groupid: 0 }),
      /of group 2.*group 0/,
    ],
    ['on an earlier timeline', candidate({ timeline: 1 }), /timeline 1.*timeline 2/],
  ])('%s is refused with both values', (_, node, reason) => {
    const verdict = classifyPrimary(node);
    expect(verdict.kind).toBe('refused');
    expect('reason' in verdict && verdict.reason).toMatch(reason);
  });
});

describe('a secondary', () => {
  const standby = { inRecovery: true, timeline: null };

  it('that follows the group is confirmed', () => {
    expect(classifySecondary(candidate(standby))).toEqual({ kind: 'confirmed' });
    const lagging = candidate({ ...standby, localGroup: 0 });
    expect(classifySecondary(lagging)).toEqual({ kind: 'confirmed' });
  });

  it('that takes writes is not one yet', () => {
    expect(classifySecondary(candidate({}))).toMatchObject({
      kind: 'notYet',
      reason: 'a:5432 is not a standby: it is not in recovery',
    });
  });

  it('of another system or group is refused', () => {
    const foreign = classifySecondary(candidate({ ...standby, systemIdentifier: '222' }));
    expect(foreign.kind).toBe('refused');
    expect(classifySecondary(candidate({ ...standby, localGroup: 2 })).kind).toBe('refused');
  });

  it('of which nothing proves that it follows the group is none yet', () => {
    const silent = candidate({ ...standby, systemIdentifier: null, localGroup: null });
    expect(classifySecondary(silent).kind).toBe('notYet');
  });
});

describe('two answers', () => {
  it('are of one server when it started at the same moment', () => {
    expect(isSameServer(ANSWER, { ...ANSWER })).toBe(true);
    expect(isSameServer(ANSWER, { ...ANSWER, startedAt: '1700000000.000002' })).toBe(false);
    expect(isSameServer(ANSWER, { ...ANSWER, systemIdentifier: '222' })).toBe(false);
  });
});
