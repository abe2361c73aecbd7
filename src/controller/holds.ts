import type { Pool } from 'pg';
import type { Queryable } from '../postgres/queries.js';
import { Transaction, type Bounds } from '../postgres/transaction.js';
import type { HeldNode, Node, Pausing, WaitingClients } from '../mpp/abstract.js';
import type { Attempt, Summary } from '../tasks/finish.js';
import {
  type HoldOutcome,
  NO_OBSERVER,
  type Observer,
  type SwitchoverKind,
} from '../tasks/observer.js';
import type { Pause } from '../tasks/task.js';

/** One held group: an open transaction, what it changed, and the tasks that end with it. */
export interface Hold {
  readonly session: GroupSession;
  readonly groupid: number;
  readonly kind: SwitchoverKind;
  /** When it began to take its locks, by performance.now(). */
  readonly beganAt: number;
  /** When its traffic waited first; undefined until then. */
  heldAt: number | undefined;
  pause: Pause;
  /** What makes the traffic wait; undefined while `pause` is none. */
  pausing: Pausing | undefined;
  /** The group's rows when the hold opened, for the log. */
  readonly before: readonly Node[];
  node: HeldNode;
  /** The acknowledged tasks of the hold. */
  readonly attempts: Attempt[];
  readonly interventions: Interventions;
}

/** How often the controller has ended what blocked a hold or a change. */
export interface Interventions {
  /** Sessions. */
  terminated: number;
  /** Statements. */
  cancelled: number;
}

/**
 * What the log says of a hold that ends, or of a primary that moves without one.
 *
 * @param last id of the task that ends it; undefined when the hold is rolled back
 * @param seen what was done and seen while the rows changed
 */
export function summarize(
  hold: Hold | undefined,
  last: string | undefined,
  seen: Partial<Interventions> & { readonly waiting?: WaitingClients | undefined } = {},
): Summary | undefined {
  const tasks = [
    ...(hold?.attempts.map(({ id }) => id) ?? []),
    ...(last === undefined ? [] : [last]),
  ];
  const task = last ?? tasks[0];
  if (task === undefined) return undefined;
  const { terminated = 0, cancelled = 0 } = hold?.interventions ?? {};
  return {
    ...{ task, tasks, pause: hold?.pause ?? 'none' },
    sessionsWaiting: seen.waiting?.sessions ?? null,
    longestWaitMs: seen.waiting?.longestMs ?? null,
    terminated: terminated + (seen.terminated ?? 0),
    cancelled: cancelled + (seen.cancelled ?? 0),
  };
}

interface Entry {
  readonly hold: Hold;
  dueAt: number;
  timer: NodeJS.Timeout | undefined;
}

/** The holds of this process, each with the alarm that ends it. */
export class Holds {
  readonly #entries = new Map<number, Entry>();
  readonly #onDue: (hold: Hold) => void;
  readonly #observer: Observer;

  /** @param onDue called when a hold's deadline has passed. */
  constructor(onDue: (hold: Hold) => void, observer = NO_OBSERVER) {
    this.#onDue = onDue;
    this.#observer = observer;
  }

  get(groupid: number): Hold | undefined {
    return this.#entries.get(groupid)?.hold;
  }

  groups(): number[] {
    return [...this.#entries.keys()];
  }

  all(): Hold[] {
    return [...this.#entries.values()].map(({ hold }) => hold);
  }

  add(hold: Hold): void {
    this.#entries.set(hold.groupid, { hold, dueAt: Infinity, timer: undefined });
  }

  /** Moves the deadline to `ms` from now, unless it is later already. */
  extend(hold: Hold, ms: number): void {
    const entry = this.#entries.get(hold.groupid);
    if (entry?.hold !== hold) return;
    const dueAt = performance.now() + ms;
    if (Number.isFinite(entry.dueAt) && dueAt < entry.dueAt) return;
    clearTimeout(entry.timer);
    entry.dueAt = dueAt;
    // A timer may ring up to a millisecond early, and then the hold would not be due yet.
    entry.timer = setTimeout(() => this.#onDue(hold), Math.ceil(Math.max(0, ms)) + 1);
  }

  /** Milliseconds until the deadline; negative once it has passed. */
  remaining(hold: Hold): number {
    const entry = this.#entries.get(hold.groupid);
    return entry?.hold === hold ? entry.dueAt - performance.now() : 0;
  }

  /**
   * Takes the hold off the list.
   *
   * @param outcome `unknown` where `tellEnd` follows
   * @returns false when it was not on it any more.
   */
  remove(hold: Hold, outcome: HoldOutcome | 'unknown'): boolean {
    const entry = this.#entries.get(hold.groupid);
    if (entry?.hold !== hold) return false;
    clearTimeout(entry.timer);
    if (outcome !== 'unknown') this.tellEnd(hold, outcome);
    return this.#entries.delete(hold.groupid);
  }

  tellEnd({ kind, beganAt }: Hold, outcome: HoldOutcome): void {
    this.#observer.holdEnded({ kind, outcome, heldMs: performance.now() - beganAt });
  }
}

/** The primary of a group among rows of the catalog. */
export function primaryOf(nodes: readonly Node[], groupid: number): Node | undefined {
  return nodes.find(
    (node) => node.isInCluster && node.groupid === groupid && node.role === 'primary',
  );
}

/** A group's rows as mpp_task_log shows them. */
export function describeGroup(nodes: readonly Node[], groupid: number): Record<string, unknown>[] {
  return nodes
    .filter((node) => node.isInCluster && node.groupid === groupid)
    .map(({ nodeid, role, address }) => ({
      nodeid,
      noderole: role,
      nodename: address.host,
      nodeport: address.port,
    }));
}

/** Whether two readings of the same rows say the same. */
export function sameNodes(one: readonly Node[], other: readonly Node[]): boolean {
  return JSON.stringify(one) === JSON.stringify(other);
}

/**
 * A transaction that has the lock of one group. While it lives no other session works on the group; when it
 * dies, by whatever hand, the server frees the lock and lets the traffic go on.
 */
export type GroupSession = Transaction;

/**
 * @param db for a statement of its own: the row of a group is made where it is missing. A claim does not make
 *   it, because the table may be locked (VACUUM FULL) by a session that waits for the end of a hold.
 * @returns undefined when another session has the lock of the group.
 */
export async function beginGroupSession(
  pool: Pool,
  db: Queryable,
  groupid: number,
  bounds: Bounds,
): Promise<GroupSession | undefined> {
  const begun = await beginOnRow(pool, groupid, bounds);
  if (begun !== undefined) return begun;
  const { rowCount } = await db.query({
    name: 'mpp-add-group',
    text: ADD_GROUP,
    values: [groupid],
  });
  return rowCount === 1 ? beginOnRow(pool, groupid, bounds) : undefined;
}

const ADD_GROUP = 'INSERT INTO @mpp.mpp_groups (groupid) VALUES ($1) ON CONFLICT DO NOTHING';

/** Who has the lock of a group, for people; undefined when that has just ended. */
export async function groupLocker(db: Queryable, groupid: number): Promise<string | undefined> {
  const { rows } = await db.query<{ locker: string }>({
    name: 'mpp-group-locker',
    text: GROUP_LOCKER,
    values: [groupid],
  });
  return rows[0]?.locker;
}

const GROUP_LOCKER = `
  SELECT format('pid %s (user %s, application %s)'::text, s.pid, r.rolname, coalesce(nullif(a.application_name, ''), 'unnamed')) AS locker
  FROM @mpp.mpp_group_sessions AS s
  JOIN pg_stat_get_activity(s.pid) AS a ON true
  LEFT JOIN pg_roles AS r ON r.oid = a.usesysid
  WHERE s.groupid = $1
  LIMIT 1`;

async function beginOnRow(
  pool: Pool,
  groupid: number,
  bounds: Bounds,
): Promise<GroupSession | undefined> {
  const lock = `SELECT FROM @mpp.mpp_groups AS g WHERE g.groupid = ${groupid} FOR UPDATE SKIP LOCKED`;
  return Transaction.beginLocked(pool, bounds, `group ${groupid}`, lock);
}
