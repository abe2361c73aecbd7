import type { Task, TaskEvent } from '../../src/tasks/task.js';

/** A task as the model knows it. Ids are the order of arrival, from 0. */
export interface ModelTask {
  readonly id: number;
  readonly event: TaskEvent;
  readonly groupid: number;
  readonly source: Task['source'];
  status: string;
  attempt: number;
  /** A retry that is not due yet. */
  delayed: boolean;
  /** Its timeout has passed since it was created, or the deadline of its hold. */
  late: boolean;
  /** Whether it has been acknowledged, so that it has a deadline. */
  wasHeld: boolean;
}

type Kind = Pick<ModelTask, 'event' | 'source'>;

const RUNNING = new Set(['claimed', 'holding']);

/** The rules of the queue in memory, as DESIGN says them: what PostgreSQL must do as well. */
export class QueueModel {
  readonly tasks: ModelTask[] = [];

  report(event: TaskEvent, groupid: number, source: Task['source']): ModelTask {
    const task: ModelTask = {
      ...{ id: this.tasks.length, event, groupid, source, status: 'pending' },
      ...{ attempt: 0, delayed: false, late: false, wasHeld: false },
    };
    for (const older of this.#pending(groupid)) {
      if (supersedes(task, older)) older.status = 'superseded';
      older.delayed = false;
    }
    this.tasks.push(task);
    this.#giveWay(groupid);
    return task;
  }

  /** What a controller with these groups takes next. Ends what must not run beside a client's report. */
  next(open: boolean): ModelTask | undefined {
    const held = this.held();
    const task = this.tasks
      .filter((each) => this.#claimable(each) && (open || held.includes(each.groupid)))
      .sort((a, b) => this.#rank(a, b))[0];
    const mustNot = task && isForeignFact(task) && this.#giveWay(task.groupid);
    return mustNot ? this.next(open) : task;
  }

  claim(task: ModelTask): void {
    task.status = 'claimed';
    task.attempt += 1;
    task.delayed = false;
  }

  acknowledge(task: ModelTask): void {
    task.status = 'holding';
    task.wasHeld = true;
  }

  /** Ends the running tasks of a group, or the one that is given. */
  end(groupid: number, status: string, only?: ModelTask): void {
    for (const task of only ? [only] : this.running(groupid)) task.status = status;
  }

  /** Gives a task back; what was reported while it ran may supersede it. */
  requeue(task: ModelTask, delayed: boolean): void {
    const superseded = this.#supersededSince(task);
    task.status = superseded ? 'superseded' : 'pending';
    task.delayed = delayed;
  }

  cancel(task: ModelTask): void {
    task.status = 'cancelled';
  }

  release(groupid: number): void {
    for (const task of this.running(groupid)) {
      if (task.status === 'holding' || task.event !== 'after_promote') task.status = 'rolled_back';
    }
    for (const task of this.tasks.filter((each) => each.groupid === groupid)) {
      // Lost, and about to be taken again.
      const lost = task.status === 'pending' && task.wasHeld && task.event !== 'after_promote';
      if (lost) task.status = 'rolled_back';
    }
  }

  /** @param ours groups whose running tasks have a living controller. */
  sweep(ours: readonly number[]): void {
    const swept = this.tasks
      .filter(({ status, groupid }) => {
        return status === 'pending' || (RUNNING.has(status) && !ours.includes(groupid));
      })
      .map((task) => ({ task, superseded: this.#supersededSince(task) }));
    for (const { task, superseded } of swept) {
      if (task.late && task.event !== 'after_promote') {
        task.status = task.wasHeld ? 'rolled_back' : 'expired';
      } else task.status = superseded ? 'superseded' : 'pending';
    }
  }

  running(groupid: number): ModelTask[] {
    return this.tasks.filter((task) => task.groupid === groupid && RUNNING.has(task.status));
  }

  claimed(groupid: number): ModelTask | undefined {
    return this.running(groupid).find(({ status }) => status === 'claimed');
  }

  held(): number[] {
    return this.#groupsWith('holding');
  }

  busy(): number[] {
    return this.#groupsWith('claimed');
  }

  /** The order of mpp_queue: what runs, what is due, what is not. */
  order(): number[] {
    const rank = (task: ModelTask) => (RUNNING.has(task.status) ? 0 : this.#due(task) ? 1 : 2);
    return this.tasks
      .filter(({ status }) => status === 'pending' || RUNNING.has(status))
      .sort((a, b) => rank(a) - rank(b) || this.#rank(a, b))
      .map(({ id }) => id);
  }

  /** What can be taken, some of it only after other tasks of its group. */
  due(): number[] {
    return this.tasks.filter((task) => this.#due(task)).map(({ id }) => id);
  }

  #pending(groupid: number): ModelTask[] {
    return this.tasks.filter((task) => task.groupid === groupid && task.status === 'pending');
  }

  /** Ends what would undo a client's report. @returns whether one is pending. */
  #giveWay(groupid: number): boolean {
    const pending = this.#pending(groupid);
    if (!pending.some(isClientsFact)) return false;
    for (const task of pending.filter(isForeignFact)) task.status = 'superseded';
    return true;
  }

  #groupsWith(status: string): number[] {
    const tasks = this.tasks.filter((task) => task.status === status);
    return [...new Set(tasks.map(({ groupid }) => groupid))];
  }

  #supersededSince(task: ModelTask): boolean {
    return this.#pending(task.groupid).some(
      (newer) => newer.id > task.id && newer.attempt === 0 && supersedes(newer, task),
    );
  }

  /** Pending, in time, and not put off by a hold that it must not touch. */
  #due(task: ModelTask): boolean {
    const late = task.late && task.event !== 'after_promote';
    const frozen = this.running(task.groupid).some(
      ({ status, id, source }) =>
        status === 'holding' && (id > task.id || (isForeignFact(task) && source !== 'probe')),
    );
    return task.status === 'pending' && !late && !task.delayed && !frozen;
  }

  #claimable(task: ModelTask): boolean {
    if (!this.#due(task) || this.claimed(task.groupid)) return false;
    return !this.#pending(task.groupid).some((older) => older.id < task.id && this.#due(older));
  }

  #rank(a: ModelTask, b: ModelTask): number {
    const held = (task: ModelTask) => Number(!this.held().includes(task.groupid));
    const other = (task: ModelTask) => Number(task.groupid !== 0);
    return held(a) - held(b) || other(a) - other(b) || a.id - b.id;
  }
}

function supersedes(newer: Kind, older: Kind): boolean {
  const counts = newer.source === 'client' && newer.event !== 'suspect';
  if (!counts && older.source === 'client') return false;
  return older.event !== 'after_promote' || newer.event === 'after_promote';
}

/** One that was tried five times keeps no other from the group. */
const isClientsFact = ({
  event,
  source,
  attempt,
}: Pick<ModelTask, 'event' | 'source' | 'attempt'>) =>
  event === 'after_promote' && source === 'client' && attempt < 5;
const isForeignFact = ({ event, source }: Kind) => event === 'after_promote' && source !== 'client';
