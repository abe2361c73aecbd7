import { PoolBusyError, SessionLostError } from '../errors.js';
import { isHopeless, isVictim } from '../postgres/sqlstate.js';
import type { Task } from '../tasks/task.js';
import { SERVER_GRACE_MS, type Bounds } from '../postgres/transaction.js';

const GROUP_BUSY_MOST_MS = 1_000;
/** When what was planned is no longer so. */
export const PUT_BACK_DELAY_MS = 20;
const VICTIM_DELAY_MS = 20;
const RETRY_FIRST_MS = 100;
const RETRY_MOST_MS = 30_000;
const UNCONFIRMED_FIRST_MS = 50;
const HELD_MOST_MS = 500;
/** So many attempts, which take two minutes. */
const OFTEN = 60;
const OFTEN_MS = 2_000;
/** After so many, some ten minutes, a secondary that is not one has had its time. */
export const SECONDARY_ATTEMPTS = 80;
/** What citus_update_node and its like may take beyond the cooldown. */
const STATEMENT_SLACK_MS = 30_000;
const LOCK_SLACK_MS = 5_000;
/** What a statement may take whose hold has no time left. */
const HELD_LEAST_MS = 100;

/** Milliseconds until the next attempt, or undefined when there is to be none. */
export function retryDelay(task: Task, error: unknown): number | undefined {
  if (isVictim(error) || error instanceof SessionLostError) return VICTIM_DELAY_MS;
  if (error instanceof PoolBusyError) return groupBusyDelay(task.attempt);
  if (task.event !== 'after_promote' || isHopeless(error)) return undefined;
  return growingDelay(task.attempt);
}

/** While another session has the group's lock, or all sessions for groups are in use. */
export function groupBusyDelay(attempt: number): number {
  return Math.min(growingDelay(attempt), GROUP_BUSY_MOST_MS);
}

/** 100 ms, then twice as long each time, up to 30 s. */
export function growingDelay(attempt: number): number {
  return Math.min(RETRY_FIRST_MS * 2 ** Math.min(attempt - 1, 20), RETRY_MOST_MS);
}

/**
 * While the traffic of a hold waits for the change, it is tried often.
 *
 * @returns undefined when it is not tried in the hold.
 */
export function heldRetryDelay(task: Task, error: unknown): number | undefined {
  if (retryDelay(task, error) === undefined) return undefined;
  return Math.min(growingDelay(task.attempt), HELD_MOST_MS);
}

/**
 * When a node is asked again that was not confirmed. While traffic waits for it, or in its first minutes, it
 * is asked often: most are being promoted.
 */
export function unconfirmedDelay(attempt: number, isHeld: boolean): number {
  if (isHeld) return Math.min(UNCONFIRMED_FIRST_MS * 2 ** Math.min(attempt - 1, 20), HELD_MOST_MS);
  const delay = growingDelay(attempt);
  return attempt <= OFTEN ? Math.min(delay, OFTEN_MS) : delay;
}

/**
 * What a task may take.
 *
 * @param heldMs how long the hold that it is part of still has. Only an acknowledged report changes
 *   that, so no other may change what the server makes of it.
 */
export function boundsOf(task: Task, heldMs?: number): Bounds {
  const late = task.event === 'after_promote';
  const holdMs = task.resumed ? task.remainingMs : task.timeoutMs;
  // What waits in a hold ends with it: its traffic would wait beyond the deadline.
  const mostMs = late && heldMs !== undefined ? Math.max(heldMs, HELD_LEAST_MS) : Infinity;
  return {
    idleMs: (heldMs ?? holdMs) + SERVER_GRACE_MS,
    lockMs: Math.min(task.cooldownMs + LOCK_SLACK_MS, mostMs),
    // A before_ task that could not be acknowledged in time is of no use to any client.
    statementMs: late
      ? Math.min(task.cooldownMs + STATEMENT_SLACK_MS, mostMs + HELD_LEAST_MS)
      : Math.max(task.remainingMs, 1),
  };
}

/** For a server that has stopped answering altogether, so that its own bounds do not reach the controller. */
export function watchdogMs(task: Task): number {
  return Math.min(boundsOf(task).statementMs * 2 + STATEMENT_SLACK_MS, 2_147_483_647);
}
