import fc from 'fast-check';
import type pg from 'pg';
import { afterAll, beforeAll, describe, expect, inject, it } from 'vitest';
import { claimTask } from '../../src/tasks/claim.js';
import { expire, takeBack } from '../../src/tasks/sweep.js';
import {
  completeTasks,
  endTasks,
  markHolding,
  requeueTasks,
  type Attempt,
} from '../../src/tasks/finish.js';
import type { TaskEvent } from '../../src/tasks/task.js';
import { ContractServer, type ContractDatabase } from '../kit/contract.js';
import { QueueModel, type ModelTask } from '../kit/queue-model.js';

const CONTROLLER = 'controller-1';
const EVENTS: TaskEvent[] = ['before_demote', 'before_promote', 'after_promote', 'suspect'];

const groupid = fc.constantFrom<number>(0, 1, 1, 2);
const pick = fc.nat({ max: 9 });

const report = fc.record({
  do: fc.constant('report' as const),
  event: fc.constantFrom(...EVENTS),
  groupid,
  source: fc.constantFrom('client' as const, 'client' as const, 'sync' as const, 'probe' as const),
});
/** `aware`: the claiming controller knows what runs, as the one that runs it does. */
const claim = fc.record({
  do: fc.constant('claim' as const),
  open: fc.boolean(),
  aware: fc.boolean(),
});
const onGroup = fc.record({
  do: fc.constantFrom(
    ...([
      'hold',
      'hold',
      'hold',
      'hold',
      'complete',
      'discard',
      'fail',
      'release',
      'rollback',
      'crash',
    ] as const),
  ),
  groupid,
});
const requeue = fc.record({
  do: fc.constant('requeue' as const),
  groupid,
  delayed: fc.boolean(),
});
const onTask = fc.record({ do: fc.constantFrom('cancel', 'due', 'late'), pick });
const swept = fc.record({ do: fc.constant('sweep' as const) });

const step = fc.oneof(
  { weight: 6, arbitrary: report },
  { weight: 5, arbitrary: claim },
  { weight: 4, arbitrary: onGroup },
  { weight: 2, arbitrary: requeue },
  { weight: 2, arbitrary: onTask },
  { weight: 1, arbitrary: swept },
);
type Step = typeof step extends fc.Arbitrary<infer T> ? T : never;

async function sweep(db: pg.Client, busy: readonly number[]): Promise<void> {
  await expire(db);
  const swept = await takeBack(db, { busy, held: [] });
  // The model has no clock: what is put off for a moment is due at once.
  const ids = swept.filter(({ status }) => status === 'pending').map(({ id }) => id);
  await db.query('UPDATE mpp_tasks SET not_before = NULL WHERE id = ANY ($1::bigint[])', [ids]);
}

/** The queue of PostgreSQL beside that of the model, each step done to both. */
class Pair {
  readonly model = new QueueModel();
  readonly #contract: ContractDatabase;
  readonly #ids: string[] = [];

  constructor(contract: ContractDatabase) {
    this.#contract = contract;
  }

  async run(next: Step): Promise<void> {
    const { db } = this.#contract;
    switch (next.do) {
      case 'report': {
        const { event, groupid, source } = next;
        this.model.report(event, groupid, source);
        const values = { event, groupid, source, nodename: 'worker', cooldown: '1s' };
        this.#ids.push(await this.#contract.report({ ...values, timeout: '1h' }));
        return;
      }
      case 'claim':
        await this.claim(next.open, next.aware);
        return;
      case 'requeue': {
        const task = this.model.claimed(next.groupid);
        if (!task) return;
        const attempts = [this.#attempt(task)];
        await requeueTasks(db, attempts, 'to be tried again', next.delayed ? 3_600_000 : 0);
        this.model.requeue(task, next.delayed);
        return;
      }
      case 'sweep':
        await sweep(db, [...this.model.busy(), ...this.model.held()]);
        this.model.sweep([0, 1, 2]);
        return;
      case 'cancel':
      case 'due':
      case 'late':
        return this.#onTask(next.do, next.pick);
      default:
        return this.#onGroup(next.do, next.groupid);
    }
  }

  async #onTask(what: string, pick: number): Promise<void> {
    const { db } = this.#contract;
    const pending = this.model.tasks.filter(({ status }) => status === 'pending');
    const task = pending[pick % Math.max(pending.length, 1)];
    if (!task) return;
    const id = this.#id(task);
    if (what === 'cancel') {
      await db.query('SELECT mpp_cancel($1)', [id]);
      this.model.cancel(task);
    } else if (what === 'due') {
      await db.query(
        "UPDATE mpp_tasks SET not_before = not_before - interval '2 hours' WHERE id = $1",
        [id],
      );
      task.delayed = false;
    } else {
      await db.query(AGE, [id]);
      task.late = true;
    }
  }

  async #onGroup(what: string, groupid: number): Promise<void> {
    const { db } = this.#contract;
    const task = this.model.claimed(groupid);
    const all = this.model.running(groupid);
    switch (what) {
      case 'hold':
        if (!task || task.event === 'after_promote') return;
        expect(await markHolding(db, this.#attempt(task), 7, null)).toBeDefined();
        this.model.acknowledge(task);
        return;
      case 'complete': {
        if (!task) return;
        const attempts = all.map((each) => this.#attempt(each));
        const done = await completeTasks(db, attempts, { nodeid: 7, reason: null });
        expect(done).toBe(true);
        this.model.end(groupid, 'done');
        return;
      }
      case 'discard':
      case 'fail': {
        if (!task) return;
        const status = what === 'fail' ? ('failed' as const) : ('discarded' as const);
        await endTasks(db, [this.#attempt(task)], { status, reason: what });
        this.model.end(groupid, status, task);
        return;
      }
      case 'rollback': {
        if (all.length === 0) return;
        const attempts = all.map((each) => this.#attempt(each));
        await endTasks(db, attempts, { status: 'rolled_back', reason: what });
        this.model.end(groupid, 'rolled_back');
        return;
      }
      case 'release':
        await db.query('SELECT mpp_release($1)', [groupid]);
        this.model.release(groupid);
        return;
      case 'crash': {
        const others = [0, 1, 2].filter((each) => each !== groupid);
        await sweep(db, others);
        this.model.sweep(others);
      }
    }
  }

  /** Claims in both. @returns the model's id of the task, if one was taken. */
  async claim(open: boolean, aware = true): Promise<number | undefined> {
    const expected = this.model.next(open);
    const taken = await claimTask(this.#contract.db, {
      controller: CONTROLLER,
      busy: aware ? this.model.busy() : [],
      held: this.model.held(),
      open,
    });
    expect(taken && this.#ids.indexOf(taken.task.id)).toBe(expected?.id);
    if (!expected) return undefined;
    this.model.claim(expected);
    expect(taken?.task).toMatchObject({ attempt: expected.attempt, resumed: expected.wasHeld });
    return expected.id;
  }

  async compare(): Promise<void> {
    const { rows } = await this.#contract.db.query<{ id: string; status: string }>(
      'SELECT id, status, attempt FROM mpp_tasks ORDER BY id',
    );
    expect(rows.map((row) => ({ ...row, id: this.#ids.indexOf(row.id) }))).toEqual(
      this.model.tasks.map(({ id, status, attempt }) => ({ id, status, attempt })),
    );
    expect(await this.queue()).toEqual(this.model.order());
  }

  async queue(): Promise<number[]> {
    const { rows } = await this.#contract.db.query<{ id: string }>(
      'SELECT id FROM mpp_queue ORDER BY position',
    );
    return rows.map(({ id }) => this.#ids.indexOf(id));
  }

  /** Ends what is claimed, so that only holds and pending tasks are left. */
  async settle(): Promise<void> {
    for (const groupid of this.model.busy()) await this.run({ do: 'discard', groupid });
    await this.run({ do: 'sweep' });
  }

  #id({ id }: ModelTask): string {
    return this.#ids[id] ?? '';
  }

  #attempt(task: ModelTask): Attempt {
    return { controller: CONTROLLER, id: this.#id(task), attempt: task.attempt };
  }
}

/** As if a task had been reported, or held, long ago. */
const AGE = `
  UPDATE mpp_tasks
  SET created_at = created_at - interval '2 days', expires_at = expires_at - interval '2 days', deadline = deadline - interval '2 days'
  WHERE id = $1`;

describe('the queue and its model', () => {
  let server: ContractServer;
  let contract: ContractDatabase;

  beforeAll(async () => {
    server = await ContractServer.start(inject('template'));
    contract = await server.database('queue');
  });
  afterAll(async () => server.stop());

  it('agree on every status, every claim and the order of mpp_queue after each step', async () => {
    await fc.assert(
      fc.asyncProperty(fc.array(step, { minLength: 5, maxLength: 40 }), async (steps) => {
        await contract.clear();
        const pair = new Pair(contract);
        for (const next of steps) {
          await pair.run(next);
          await pair.compare();
        }
      }),
      { numRuns: 150 },
    );
  });

  it('give tasks in the order that mpp_queue has shown', async () => {
    await fc.assert(
      fc.asyncProperty(fc.array(step, { minLength: 10, maxLength: 25 }), async (steps) => {
        await contract.clear();
        const pair = new Pair(contract);
        for (const next of steps) await pair.run(next);
        await pair.settle();
        const due = new Set(pair.model.due());
        const shown = (await pair.queue()).filter((id) => due.has(id));
        const taken: number[] = [];
        for (let id = await pair.claim(true); id !== undefined; id = await pair.claim(true)) {
          taken.push(id);
          const { groupid } = pair.model.tasks[id] ?? { groupid: 0 };
          await pair.run({ do: 'discard', groupid });
        }
        expect(taken).toEqual(shown);
        expect(taken).toHaveLength(due.size);
      }),
      { numRuns: 40 },
    );
  });
});
