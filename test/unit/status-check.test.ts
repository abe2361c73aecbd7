import { describe, expect, it } from 'vitest';
import { checkLine, findTrouble } from '../../src/commands/status.js';
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
});
