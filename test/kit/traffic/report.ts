import pg from 'pg';
import { errorText } from '../../../src/postgres/session.js';

/** What a client does at a time: one statement that writes or reads, or a whole transaction. */
export type WorkKind = 'write' | 'read' | 'transaction';

/** A count for each kind of work. A transaction counts once, whatever its number of statements. */
export type PerKind = Readonly<Record<WorkKind, number>>;

/** Work that failed. A transaction is here once, with the statement that failed. */
export interface FailedStatement {
  readonly kind: WorkKind;
  /** The SQL that was sent. */
  readonly statement: string;
  /** Undefined when the session was lost before the server answered. */
  readonly sqlstate: string | undefined;
  readonly message: string;
  /** `host:port` of the node where it entered. */
  readonly entry: string;
}

/** What work has changed, or would have. */
export interface Effects {
  /** Rows put into items. */
  readonly inserted: number;
  /** By how much the sum of `v` in items grew. */
  readonly items: number;
  /** By how much the sum of `v` in notes grew. */
  readonly notes: number;
}

/** What the clients have seen so far. */
export interface TrafficReport {
  /** Work begun, that in flight included. */
  readonly sent: PerKind;
  readonly succeeded: PerKind;
  readonly failed: PerKind;
  /** Work begun and not ended yet. */
  readonly inFlight: PerKind;
  readonly failures: readonly FailedStatement[];
  /**
   * Failures that are deadlocks, by SQLSTATE 40P01: PostgreSQL's and Citus's distributed ones, which
   * only their messages tell apart.
   */
  readonly deadlocks: number;
  /** The longest time that an answered statement took, in milliseconds; those in transactions, too. */
  readonly longestWaitMs: number;
  /** The same by the kind of work that the statement was part of. */
  readonly longestWaits: PerKind;
  /** Rows whose INSERT was acknowledged: `count(*)` of items is at least this. */
  readonly inserted: number;
  /** INSERTs that lost a session in the way; `count(*)` is at most `inserted` plus these. */
  readonly insertedPerhaps: number;
  /** What was acknowledged: `sum(v)` of items and notes is at least this. */
  readonly acknowledged: Effects;
  /** What lost a session in the way; `sum(v)` is at most what was acknowledged plus this. */
  readonly perhaps: Effects;
}

interface Waiter {
  readonly kind: WorkKind | undefined;
  readonly target: number;
  readonly resolve: () => void;
}

const DEADLOCK = '40P01';

function sqlstateOf(error: unknown): string | undefined {
  return error instanceof pg.DatabaseError ? error.code : undefined;
}

/** True when the session that the statement was sent to is gone, or about to go. */
export function isLostSession(error: unknown): boolean {
  return sqlstateOf(error)?.startsWith('57P') ?? true;
}

/** Class 08: the entry node lost the worker, perhaps between the worker's commit and its answer. */
function isInDoubt(error: unknown): boolean {
  return isLostSession(error) || sqlstateOf(error)?.startsWith('08') === true;
}

const perKind = (): Record<WorkKind, number> => ({ write: 0, read: 0, transaction: 0 });

const NO_EFFECTS: Effects = { inserted: 0, items: 0, notes: 0 };

function plus(a: Effects, b: Effects): Effects {
  return { inserted: a.inserted + b.inserted, items: a.items + b.items, notes: a.notes + b.notes };
}

/** Counts what the clients of one traffic do, and wakes those who wait for a count. */
export class Tally {
  readonly #sent = perKind();
  readonly #succeeded = perKind();
  readonly #failed = perKind();
  readonly #longestWaits = perKind();
  readonly #failures: FailedStatement[] = [];
  #acknowledged = NO_EFFECTS;
  #perhaps = NO_EFFECTS;
  #waiting = 0;
  #waiters: Waiter[] = [];

  /** Statements sent and not answered yet. */
  get waiting(): number {
    return this.#waiting;
  }

  report(): TrafficReport {
    const [sent, succeeded, failed] = [this.#sent, this.#succeeded, this.#failed];
    const inFlight = (kind: WorkKind) => sent[kind] - succeeded[kind] - failed[kind];
    return {
      sent: { ...sent },
      succeeded: { ...succeeded },
      failed: { ...failed },
      inFlight: {
        write: inFlight('write'),
        read: inFlight('read'),
        transaction: inFlight('transaction'),
      },
      failures: [...this.#failures],
      deadlocks: this.#failures.filter(({ sqlstate }) => sqlstate === DEADLOCK).length,
      longestWaitMs: Math.max(...Object.values(this.#longestWaits)),
      longestWaits: { ...this.#longestWaits },
      inserted: this.#acknowledged.inserted,
      insertedPerhaps: this.#perhaps.inserted,
      acknowledged: this.#acknowledged,
      perhaps: this.#perhaps,
    };
  }

  began(kind: WorkKind): void {
    this.#sent[kind] += 1;
  }

  /** Has `send` counted as a statement that waits for its answer. @throws what `send` does */
  async timed<T>(kind: WorkKind, send: () => Promise<T>): Promise<T> {
    const sentAt = performance.now();
    this.#waiting += 1;
    try {
      return await send();
    } finally {
      this.#waiting -= 1;
      this.#longestWaits[kind] = Math.max(this.#longestWaits[kind], performance.now() - sentAt);
    }
  }

  succeeded(kind: WorkKind, effects: Effects): void {
    this.#succeeded[kind] += 1;
    this.#acknowledged = plus(this.#acknowledged, effects);
    this.#waiters = this.#waiters.filter((waiter) => {
      if (this.#successes(waiter.kind) < waiter.target) return true;
      waiter.resolve();
      return false;
    });
  }

  /** @param effects what it would have changed, if this statement could have done that */
  failed(failure: FailedStatement, effects: Effects, error: unknown): void {
    this.#failed[failure.kind] += 1;
    this.#failures.push(failure);
    if (isInDoubt(error)) this.#perhaps = plus(this.#perhaps, effects);
  }

  /** Rows that were put there before the traffic began. */
  seeded(effects: Effects): void {
    this.#acknowledged = plus(this.#acknowledged, effects);
  }

  /** Resolves once `count` more (of a kind, or of any) have succeeded. */
  async further(count: number, kind?: WorkKind): Promise<void> {
    const target = this.#successes(kind) + count;
    await new Promise<void>((resolve) => {
      this.#waiters.push({ kind, target, resolve });
    });
  }

  #successes(kind: WorkKind | undefined): number {
    if (kind !== undefined) return this.#succeeded[kind];
    return Object.values(this.#succeeded).reduce((sum, count) => sum + count, 0);
  }
}

export function describeFailure(
  kind: WorkKind,
  statement: string,
  entry: string,
  error: unknown,
): FailedStatement {
  return { kind, statement, sqlstate: sqlstateOf(error), message: errorText(error), entry };
}
