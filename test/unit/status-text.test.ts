import { describe, expect, it } from 'vitest';
import { statusText } from '../../src/commands/status-text.js';
import type { Status } from '../../src/controller/status.js';

const NOTHING: Status = {
  backlog: 0,
  oldestPending: null,
  controllers: [],
  holds: [],
  queue: [],
  nodes: null,
  maintenance: [],
};

const NODE = {
  ...{ groupid: 1, nodeid: 2, role: 'primary', nodename: 'a', nodeport: 5432, cluster: 'default' },
  ...{ active: true, metadataSynced: true },
};
const SEEN = {
  ...{ source: 'probe', role: 'primary', state: 'running', age: 1 },
  ...{ isStale: false, isUp: true, problem: null },
};

describe('statusText', () => {
  it('says so where there is nothing, and warns that no controller is active', () => {
    expect(statusText(NOTHING)).toBe(
      [
        'Controllers',
        '  none',
        '  None is active: reports wait until one runs (mpp-controller run).',
        '',
        'Groups held',
        '  none',
        '',
        'Tasks (0 pending)',
        '  none',
      ].join('\n'),
    );
  });

  it('lines up who is active, what is held and what waits', () => {
    const text = statusText({
      backlog: 1,
      oldestPending: 75,
      controllers: [
        {
          controller: 'c1',
          state: 'active',
          host: 'db1',
          pid: 42,
          version: '0.1.0',
          strategy: 'pause-node',
          maxHolds: null,
          startedAt: '2026-01-01T00:00:00Z',
          heartbeatAge: 2.31,
        },
      ],
      holds: [
        {
          groupid: 1,
          age: 3.2,
          remaining: 26.8,
          controller: 'c1',
          tasks: [7, 8],
          pid: 99,
          sessionsWaiting: 4,
          reason: null,
        },
      ],
      queue: [
        {
          position: 1,
          id: 9,
          groupid: 2,
          event: 'after_promote',
          nodename: '::1',
          nodeport: 5432,
          status: 'pending',
          source: 'client',
          attempt: 0,
          age: 93_784,
          why: 'by age',
        },
      ],
      nodes: [
        { ...NODE, seen: [{ ...SEEN, role: 'secondary' }] },
        { ...NODE, nodeid: 3, role: 'secondary', nodename: 'b', seen: [] },
        {
          ...{ groupid: 1, nodeid: null, role: null, nodename: 'c', nodeport: 5432, cluster: null },
          ...{ active: null, metadataSynced: null },
          seen: [{ ...SEEN, isStale: true, age: 65 }],
        },
      ],
      maintenance: [
        { groupid: null, until: '2026-01-01 10:00:00 +00', startedBy: 'dba', reason: null },
      ],
    });
    expect(text.split('\n')).toEqual([
      'Controllers',
      '  STATE   HOST  PID  VERSION  STRATEGY    MAX HOLDS  LAST SEEN  ID',
      '  active  db1   42   0.1.0    pause-node  unlimited  2.3s ago   c1',
      '',
      'Groups held',
      '  GROUP  SINCE     ENDS    WAITING  TASKS  PID  NOTE',
      '  1      3.2s ago  in 26s  4        7, 8   99',
      '',
      'Tasks (1 pending, the oldest for 1min 15s)',
      '  NEXT  TASK  GROUP  EVENT          NODE        STATUS   AGE    WHY',
      '  1     9     2      after_promote  [::1]:5432  pending  1d 2h  by age',
      '',
      'Nodes (pg_dist_node, and what they are seen to be)',
      '  GROUP  ROLE            NODE    NODEID  SEEN AS                               DIFFERENCE                ACTIVE  METADATA  CLUSTER',
      '  1      primary         a:5432  2       secondary running (probe)             is a standby, says probe  yes     in sync   default',
      '  1      secondary       b:5432  3       -                                                               yes     in sync   default',
      '  1      not registered  c:5432  -       primary running (probe, 1min 5s ago)  has no row',
      '',
      'Maintenance: the comparison and the probe make no tasks',
      '  GROUP  UNTIL                    STARTED BY  REASON',
      '  all    2026-01-01 10:00:00 +00  dba',
    ]);
  });
});
