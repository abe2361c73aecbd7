import { describe, expect, it } from 'vitest';
import { checkLine, findTrouble } from '../../src/controller/trouble.js';
import type { ControllerStatus, HoldStatus, Status } from '../../src/controller/status.js';

const ACTIVE = { state: 'active', host: 'c1' } as ControllerStatus;
const HOLD = { groupid: 1, remaining: 20, pid: 7 } as HoldStatus;
const FINE: Status = {
  backlog: 0,
  oldestPending: null,
  controllers: [ACTIVE],
  holds: [],
  queue: [],
  nodes: [],
  maintenance: [],
};
const LIMITS = { pendingMs: 60_000, failedMs: 3_600_000 };

function levels(status: Partial<Status>, failures: { task: number; groupid: number }[] = []) {
  return findTrouble({ ...FINE, ...status }, failures, LIMITS).map(({ level }) => level);
}

describe('status --check', () => {
  it('is content with an active controller, holds in time and young tasks', () => {
    expect(levels({ holds: [HOLD], oldestPending: 29, backlog: 1 })).toEqual([]);
    expect(checkLine([], FINE)).toBe('MPP OK - active on c1, 0 pending, 0 held');
  });

  it.each([
    ['nobody is active', { controllers: [{ ...ACTIVE, state: 'standby' as const }] }, 'CRITICAL'],
    ['a task is old', { oldestPending: 61 }, 'CRITICAL'],
    ['a task is getting old', { oldestPending: 31 }, 'WARNING'],
    ['a hold is late', { holds: [{ ...HOLD, remaining: -6 }] }, 'CRITICAL'],
    ['a hold has lost its session', { holds: [{ ...HOLD, pid: null }] }, 'WARNING'],
  ])('says so when %s', (_, status, level) => {
    expect(levels(status)).toEqual([level]);
  });

  it('puts the worst first, in one line', () => {
    const findings = findTrouble({ ...FINE, controllers: [] }, [{ task: 9, groupid: 2 }], LIMITS);
    expect(checkLine(findings, FINE)).toMatch(/^MPP CRITICAL - no controller is active.*; task 9 /);
  });

  it('warns of a primary that another node is, and says who is in maintenance', () => {
    const node = {
      ...{ groupid: 1, nodeid: 2, nodename: 'a', nodeport: 1, cluster: 'default' },
      ...{ active: true, metadataSynced: true },
    };
    const seen = {
      ...{ source: 'probe', state: 'running', age: 1 },
      ...{ isStale: false, isUp: true, problem: null },
    };
    const standby = { ...node, role: 'secondary', seen: [{ ...seen, role: 'primary' }] };
    const findings = findTrouble({ ...FINE, nodes: [standby] }, [], LIMITS);
    expect(checkLine(findings, FINE)).toBe('MPP WARNING - group 1: a:1 is a primary, says probe');
    const right = { ...node, role: 'primary', seen: [{ ...seen, role: 'primary' }] };
    expect(levels({ nodes: [right] })).toEqual([]);
    const down = { ...right, seen: [{ ...seen, role: 'primary', isUp: false }] };
    expect(levels({ nodes: [down] })).toEqual(['WARNING']);
    const stale = { ...standby, seen: [{ ...seen, role: 'primary', isStale: true }] };
    expect(levels({ nodes: [stale] })).toEqual([]);
    const maintenance = [{ groupid: 1, until: '', startedBy: 'dba', reason: null }];
    expect(checkLine([], { ...FINE, maintenance })).toMatch(/, in maintenance: 1$/);
  });
});
