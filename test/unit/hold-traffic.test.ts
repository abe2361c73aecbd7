import type { Pool } from 'pg';
import { describe, expect, it, vi } from 'vitest';
import { holdTraffic } from '../../src/controller/hold-traffic.js';
import { Holds, type Hold } from '../../src/controller/holds.js';
import type { Work, Workplace } from '../../src/controller/work.js';
import { SessionLostError } from '../../src/errors.js';
import type { Node, Pausing } from '../../src/mpp/abstract.js';
import { NO_OBSERVER } from '../../src/tasks/observer.js';
import { Transaction } from '../../src/postgres/transaction.js';
import type { Task } from '../../src/tasks/task.js';

const NODE: Node = {
  nodeid: 7,
  groupid: 1,
  role: 'primary',
  address: { host: 'a', port: 1 },
  isInCluster: true,
};

const TASK: Task = {
  id: '5',
  event: 'before_demote',
  groupid: 1,
  address: NODE.address,
  secondaries: null,
  timeoutMs: 1_000,
  cooldownMs: 100,
  pause: 'writes',
  source: 'client',
  attempt: 1,
  remainingMs: 1_000,
  resumed: false,
};

const PAUSING: Pausing = {
  reason: null,
  shortfalls: [],
  strategy: 'shard-locks',
  locksNodes: false,
  retarget: () => Promise.resolve(),
  whole: () => Promise.resolve(),
  waiters: () => Promise.resolve(new Set()),
  waitingClients: () => Promise.resolve({ sessions: 0, longestMs: null }),
  expectCommit: () => undefined,
  extend: () => undefined,
};

/** A place whose statements go to `query`, and a task that is about to be held there. */
function scene(
  query: () => Promise<unknown>,
  onLost: (listener: () => void) => void,
): { place: Workplace; work: Work; holds: Holds } {
  const holds = new Holds(() => undefined);
  const session = Object.create(Transaction.prototype, {
    onLost: { value: onLost },
    rollback: { value: () => Promise.resolve(true) },
    destroy: { value: () => undefined },
  }) as Transaction;
  const place = {
    db: { query } as unknown as Pool,
    holds,
    controller: 'c',
    pause: 'writes',
    signal: new AbortController().signal,
    traffic: {
      pause: () => Promise.resolve(PAUSING),
      stop: () => Promise.resolve(),
    },
    otherDatabases: { follow: () => Promise.resolve(null) },
    handler: () => ({
      means: { strategies: ['shard-locks'], maySignal: true },
      readNodes: () => Promise.resolve([NODE]),
    }),
    onHoldLost: (hold: Hold) => void holds.remove(hold, 'lost'),
    observer: NO_OBSERVER,
  } as unknown as Workplace;
  const log = { info: () => undefined, debug: () => undefined };
  const work = { task: TASK, session, hold: undefined, nodes: [NODE], log } as unknown as Work;
  return { place, work, holds };
}

describe('a hold whose session is lost before it is acknowledged', () => {
  it('is not acknowledged', async () => {
    const acknowledged = vi.fn(() => Promise.resolve({ rows: [{ remaining_ms: 1_000 }] }));
    // It was lost between the last lock and now.
    const { place, work, holds } = scene(acknowledged, (listener) => listener());

    const outcome = await holdTraffic(place, work, { kind: 'hold', node: NODE, target: null });

    expect(acknowledged).not.toHaveBeenCalled();
    expect(holds.all()).toEqual([]);
    expect(outcome).toMatchObject({ mustInspect: true });
  });

  it('is not acknowledged by a second try of the statement that does it', async () => {
    let lose: () => void = () => undefined;
    // The server has ended all sessions at once, as it does while a machine is suspended.
    const query = vi.fn(() => {
      lose();
      return Promise.reject(new SessionLostError('the queue session was lost'));
    });
    const { place, work } = scene(query, (listener) => (lose = listener));

    const held = holdTraffic(place, work, { kind: 'hold', node: NODE, target: null });

    await expect(held).rejects.toThrow('the queue session was lost');
    expect(query).toHaveBeenCalledTimes(1);
  });
});
