import { mayDelay } from './delays.js';
import type { StatusChange } from './recorder.js';
import type { Fault } from './schedule.js';
import { POLL_MS } from './stage.js';

/** A task as the table has it once all is over. */
export interface EndedTask {
  readonly id: string;
  readonly event: string;
  readonly groupid: number;
  readonly node: string;
  readonly status: string;
  readonly reason: string | null;
  readonly created_ms: number;
  readonly timeout_ms: number;
}

/** A row of mpp_task_log, in the order of the log. */
export interface LogEntry {
  readonly task_id: string;
  readonly status: string;
  readonly attempt: number;
  readonly reason: string | null;
  readonly logged_ms: number;
  readonly before: string | null;
  readonly after: string | null;
}

/** How long a fault lasted, in milliseconds of the clock. */
export interface Span {
  readonly fault: Fault;
  readonly from: number;
  readonly to: number;
}

/** What a schedule has left, and what it did. */
export interface Evidence {
  readonly tasks: readonly EndedTask[];
  readonly log: readonly LogEntry[];
  /** In the order in which they were made. */
  readonly changes: readonly StatusChange[];
  /** Where each group was before, and is now. */
  readonly initial: ReadonlyMap<number, string>;
  readonly rows: ReadonlyMap<number, string>;
  readonly cancelled: ReadonlySet<string>;
  readonly released: ReadonlySet<number>;
  /** The addresses of each group's node; another one must never be in its row. */
  readonly nodes: ReadonlyMap<number, ReadonlySet<string>>;
  /** The role of each controller, by its process id. */
  readonly roles: ReadonlyMap<number, string>;
  readonly impaired: readonly Span[];
  /** By how much this machine was late at most, in milliseconds. */
  readonly lagMs: number;
}

/**
 * From the end of a fault until controllers work as before: sessions are lost, found out, and opened, and the
 * table is looked at where a notification was lost.
 */
const RECOVERY_MS = POLL_MS + 2_000;

const NEXT: Readonly<Record<string, readonly string[]>> = {
  pending: ['pending', 'claimed', 'superseded', 'expired', 'rolled_back', 'cancelled'],
  claimed: [
    ...['pending', 'holding', 'done', 'superseded', 'discarded'],
    ...['expired', 'rolled_back', 'failed'],
  ],
  holding: ['pending', 'done', 'superseded', 'rolled_back', 'failed'],
};
const OPEN = new Set(['pending', 'claimed', 'holding']);
/** What a controller writes of a task that is no longer another one's. */
const SWEPT = /^(the hold was lost|not acknowledged|still pending|taken up again)/;

/** @returns a sentence for each thing that must not be. */
export function judge(evidence: Evidence): string[] {
  const byTask = groupByTask(evidence.log);
  const changes = groupByTask(evidence.changes);
  const found: string[] = [];
  for (const task of evidence.tasks) {
    const entries = byTask.get(task.id) ?? [];
    found.push(...judgePath(task, changes.get(task.id) ?? [], evidence));
    found.push(...judgeEnd(task, evidence));
    found.push(...judgeAnswer(task, entries, evidence));
  }
  for (const groupid of evidence.rows.keys()) found.push(...judgeGroup(groupid, byTask, evidence));
  return found;
}

function groupByTask<T extends { readonly task_id: string }>(
  things: readonly T[],
): Map<string, T[]> {
  const byTask = new Map<string, T[]>();
  for (const thing of things) {
    const known = byTask.get(thing.task_id);
    if (known) known.push(thing);
    else byTask.set(thing.task_id, [thing]);
  }
  return byTask;
}

/** Each status follows from the one before it, by the controller that has the task; an end is final. */
function judgePath(
  task: EndedTask,
  changes: readonly StatusChange[],
  { roles }: Evidence,
): string[] {
  const found: string[] = [];
  const name = `task ${task.id} (${task.event} of group ${task.groupid})`;
  let last: StatusChange | undefined;
  for (const change of changes) {
    const { status, attempt, changed_by } = change;
    if (last === undefined) {
      last = change;
      continue;
    }
    if (NEXT[last.status]?.includes(status) !== true) {
      found.push(`${name} went from ${last.status} to ${status}`);
    }
    if (attempt !== last.attempt + (status === 'claimed' ? 1 : 0)) {
      found.push(`${name} became ${status} with attempt ${attempt} after ${last.attempt}`);
    }
    // The row keeps the controller that claimed it last; the role is that of the session that wrote it.
    const owner = roles.get(Number(change.controller?.split(':')[1]));
    if (isOwnWork(change) && owner !== changed_by) {
      found.push(
        `${name} became ${status} by ${changed_by}, and it was a task of ${String(owner)}`,
      );
    }
    last = change;
  }
  if (last?.status !== task.status) {
    found.push(`${name} is ${task.status}, and its last change was to ${String(last?.status)}`);
  }
  return found;
}

/** What only the controller that has claimed a task may make of it. */
function isOwnWork({ status, reason }: StatusChange): boolean {
  if (['claimed', 'holding', 'done', 'discarded', 'failed'].includes(status)) return true;
  if (status === 'pending') return !SWEPT.test(reason ?? '');
  return status === 'rolled_back' && !SWEPT.test(reason ?? '') && !/released by/.test(reason ?? '');
}

/** A fact is done or superseded; the others may end in any way that was asked for. */
function judgeEnd(task: EndedTask, evidence: Evidence): string[] {
  const { id, event, groupid, status, node, reason } = task;
  const name = `task ${id} (${event} of group ${groupid})`;
  if (OPEN.has(status)) return [`${name} has no end: ${status}, ${reason ?? 'without a reason'}`];
  if (status === 'cancelled' && !evidence.cancelled.has(id))
    return [`${name} was cancelled by no operator`];
  if (/released by/.test(reason ?? '') && !evidence.released.has(groupid)) {
    return [`${name} was released by no operator`];
  }
  if (event !== 'after_promote') return [];
  if (evidence.nodes.get(groupid)?.has(node) !== true) {
    return status === 'done' ? [`${name} is done, and ${node} is no node of the group`] : [];
  }
  if (status === 'superseded') {
    const isNewer = evidence.tasks.some(
      (other) =>
        other.groupid === groupid && other.event === event && BigInt(other.id) > BigInt(id),
    );
    return isNewer ? [] : [`${name} was superseded by no newer report`];
  }
  return ['done', 'cancelled'].includes(status)
    ? []
    : [`${name} is a fact and became ${status}: ${reason ?? 'without a reason'}`];
}

/** A report that a waiter waits for is answered within its timeout and a second, where a controller could. */
function judgeAnswer(
  task: EndedTask,
  entries: readonly LogEntry[],
  { impaired, lagMs }: Evidence,
): string[] {
  if (task.event === 'after_promote') return [];
  const answer = entries.find(({ status }) => status !== 'pending' && status !== 'claimed');
  if (answer === undefined) return [];
  let due = task.created_ms + task.timeout_ms + 1_000;
  for (const { fault, from, to } of impaired) {
    if (from <= due && mayDelay(fault, task.groupid)) due = Math.max(due, to + RECOVERY_MS);
  }
  const lateMs = Math.round(answer.logged_ms - due - lagMs);
  return lateMs > 0
    ? [
        `task ${task.id} (${task.event} of group ${task.groupid}) was answered ${lateMs} ms too late`,
      ]
    : [];
}

/** The row is that of the last fact; each change begins where the one before it ended. */
function judgeGroup(
  groupid: number,
  byTask: ReadonlyMap<string, readonly LogEntry[]>,
  { tasks, log, initial, rows }: Evidence,
): string[] {
  const found: string[] = [];
  const facts = tasks.filter((task) => task.groupid === groupid && task.event === 'after_promote');
  const doneAt = (task: EndedTask): number => {
    const entry = byTask.get(task.id)?.find(({ status }) => status === 'done');
    return entry === undefined ? -1 : log.indexOf(entry);
  };
  const done = facts
    .filter(({ status }) => status === 'done')
    .sort((a, b) => doneAt(a) - doneAt(b));
  const expected = done.at(-1)?.node ?? initial.get(groupid);
  const row = rows.get(groupid);
  if (row !== expected) {
    found.push(
      `group ${groupid} is at ${String(row)}, and its last report that is done says ${String(expected)}`,
    );
  }
  for (const [index, task] of done.entries()) {
    const before = done[index - 1];
    if (before && BigInt(before.id) > BigInt(task.id)) {
      found.push(`group ${groupid}: task ${task.id} was done after the newer task ${before.id}`);
    }
  }
  let known = initial.get(groupid);
  const ofGroup = new Set(tasks.filter((task) => task.groupid === groupid).map(({ id }) => id));
  for (const { task_id, before, after } of log) {
    if (!ofGroup.has(task_id) || after === null || after === known) continue;
    if (before !== known) {
      found.push(
        `group ${groupid}: the log of task ${task_id} begins at ${String(before)}, not at ${String(known)}`,
      );
    }
    known = after;
  }
  if (known !== row)
    found.push(`group ${groupid} is at ${String(row)}, and its log ends at ${String(known)}`);
  return found;
}
