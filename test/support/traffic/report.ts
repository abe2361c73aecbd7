import pg from 'pg';
import { errorText } from '../../../src/postgres/session.js';

/** What a statement does: INSERT and UPDATE are writes, SELECT is a read. */
export type StatementKind = 'write' | 'read';

/** A count for each kind of statement. */
export type PerKind = Readonly<Record<StatementKind, number>>;

/** One statement that failed. */
export interface FailedStatement {
  readonly kind: StatementKind;
  /** The SQL that was sent. */
  readonly statement: string;
  /** Undefined when the session was lost before the server answered. */
  readonly sqlstate: string | undefined;
  readonly message: string;
}

/** What the clients have seen so far. */
export interface TrafficReport {
  /** Statements sent, the ones in flight included. */
  readonly sent: PerKind;
  readonly succeeded: PerKind;
  readonly failed: PerKind;
  /** Statements sent and not answered yet. */
  readonly inFlight: PerKind;
  readonly failures: readonly FailedStatement[];
  /** The longest time that an answered statement took, in milliseconds. */
  readonly longestWaitMs: number;
  /** Rows whose INSERT was acknowledged: `count(*)` of the table is at least this. */
  readonly inserted: number;
  /** INSERTs that lost a session in the way; `count(*)` is at most `inserted` plus these. */
  readonly insertedPerhaps: number;
}

interface Waiter {
  readonly kind: StatementKind | undefined;
  readonly target: number;
  readonly resolve: () => void;
}

function sqlstateOf(error: unknown): string | undefined {
  return error instanceof pg.DatabaseError ? error.code : undefined;
}

/** True when the session that the statement was sent to is gone, or about to go. */
export function isLostSession(error: unknown): boolean {
  return sqlstateOf(error)?.startsWith('57P') ?? true;
}

/** Class 08: the coordinator lost the worker, perhaps between the worker's commit and its answer. */
function isInDoubt(error: unknown): boolean {
  return isLostSession(error) || sqlstateOf(error)?.startsWith('08') === true;
}

/** Counts what the clients of one traffic do, and wakes those who wait for a count. */
export class Tally {
  readonly #sent = { write: 0, read: 0 };
  readonly #succeeded = { write: 0, read: 0 };
  readonly #failed = { write: 0, read: 0 };
  readonly #failures: FailedStatement[] = [];
  #longestWaitMs = 0;
  #inserted = 0;
  #insertedPerhaps = 0;
  #waiters: Waiter[] = [];

  report(): TrafficReport {
    return {
      sent: { ...this.#sent },
      succeeded: { ...this.#succeeded },
      failed: { ...this.#failed },
      inFlight: {
        write: this.#sent.write - this.#succeeded.write - this.#failed.write,
        read: this.#sent.read - this.#succeeded.read - this.#failed.read,
      },
      failures: [...this.#failures],
      longestWaitMs: this.#longestWaitMs,
      inserted: this.#inserted,
      insertedPerhaps: this.#insertedPerhaps,
    };
  }

  sending(kind: StatementKind): void {
    this.#sent[kind] += 1;
  }

  succeeded(kind: StatementKind, tookMs: number, insertedRows: number): void {
    this.#succeeded[kind] += 1;
    this.#inserted += insertedRows;
    this.#longestWaitMs = Math.max(this.#longestWaitMs, tookMs);
    this.#waiters = this.#waiters.filter((waiter) => {
      if (this.#successes(waiter.kind) < waiter.target) return true;
      waiter.resolve();
      return false;
    });
  }

  failed(kind: StatementKind, statement: string, tookMs: number, error: unknown): void {
    this.#failed[kind] += 1;
    this.#longestWaitMs = Math.max(this.#longestWaitMs, tookMs);
    this.#failures.push({
      kind,
      statement,
      sqlstate: sqlstateOf(error),
      message: errorText(error),
    });
    if (isInDoubt(error) && statement.startsWith('INSERT')) this.#insertedPerhaps += 1;
  }

  /** Resolves once `count` more statements (of a kind, or of any) have succeeded. */
  async further(count: number, kind?: StatementKind): Promise<void> {
    const target = this.#successes(kind) + count;
    await new Promise<void>((resolve) => {
      this.#waiters.push({ kind, target, resolve });
    });
  }

  #successes(kind: StatementKind | undefined): number {
    if (kind !== undefined) return this.#succeeded[kind];
    return this.#succeeded.write + this.#succeeded.read;
  }
}
