import type { HeldNode, Node, Pausing } from '../mpp/abstract.js';
import type { Attempt } from '../tasks/finish.js';
import type { Pause } from '../tasks/task.js';
import type { GroupSession } from './group-session.js';

/** One held group: an open transaction, what it changed, and the tasks that end with it. */
export interface Hold {
  readonly session: GroupSession;
  readonly groupid: number;
  pause: Pause;
  /** What makes the traffic wait; undefined while `pause` is none. */
  pausing: Pausing | undefined;
  /** The group's rows when the hold opened, for the log. */
  readonly before: readonly Node[];
  node: HeldNode;
  /** The acknowledged tasks of the hold. */
  readonly attempts: Attempt[];
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

  /** @param onDue called when a hold's deadline has passed. */
  constructor(onDue: (hold: Hold) => void) {
    this.#onDue = onDue;
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

  /** Takes the hold off the list. @returns false when it was not on it any more. */
  remove(hold: Hold): boolean {
    const entry = this.#entries.get(hold.groupid);
    if (entry?.hold !== hold) return false;
    clearTimeout(entry.timer);
    return this.#entries.delete(hold.groupid);
  }
}
