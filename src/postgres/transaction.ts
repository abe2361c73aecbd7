import pg, { type Pool, type PoolClient, type QueryResult } from 'pg';
import { SessionLostError } from '../errors.js';
import { again } from './queries.js';
import { applicationName, errorText } from './session.js';
import { isSessionLost } from './sqlstate.js';

/** How long a session may take, in milliseconds. */
export interface Bounds {
  /** For the transaction to sit idle: as long as the hold may last, and a little. */
  readonly idleMs: number;
  /** For one lock. Longer than the cooldown, or `force` never gets to act. */
  readonly lockMs: number;
  /** For one statement. */
  readonly statementMs: number;
}

/** What the server gives a hold beyond its deadline, so that the controller ends it first. */
export const SERVER_GRACE_MS = 1_000;
/** Beginning waits for nothing; see ROLLBACK_MS. */
const BEGIN_MS = 10_000;
/** A rollback has nothing to wait for; a server that does not answer it is gone. */
const ROLLBACK_MS = 5_000;

/**
 * A row whose lock the transaction takes as it begins: a SELECT that ends with FOR UPDATE SKIP LOCKED and
 * returns the row. A constant of the code, never input.
 */
type RowLock = string;

interface BeginOptions {
  readonly bounds: Bounds;
  /** What it is for, in application_name. */
  readonly purpose: string;
  readonly lock?: RowLock;
  readonly savepoint?: string | undefined;
  readonly setup?: string | undefined;
}

/** How a transaction ended, as far as is known: `lost` when its COMMIT or ROLLBACK got no answer. */
export type Outcome = 'committed' | 'rolled back' | 'lost';

/**
 * An open transaction on a session of its own, bounded by the server itself: when the session dies, or
 * sits idle for too long, by whatever hand, the server frees its locks.
 */
export class Transaction {
  readonly #client: PoolClient;
  #pid = 0;
  #lost: Error | undefined;
  #released = false;
  #outcome: Outcome | undefined;
  #onLost: (() => void) | undefined;
  readonly #onEnd: ((outcome: Outcome) => void)[] = [];
  readonly #lose = (error?: Error): void => {
    if (this.#lost) return;
    this.#lost = error ?? new Error('the session ended');
    this.#onLost?.();
  };

  private constructor(client: PoolClient) {
    this.#client = client;
    client.on('error', this.#lose);
    client.on('end', this.#lose);
  }

  /**
   * For the statements of the transaction.
   *
   * @throws Error once the transaction has ended: the session may have another use by then.
   */
  get client(): PoolClient {
    if (this.#released) throw new Error('this transaction has ended');
    return this.#client;
  }

  /** The server process. */
  get pid(): number {
    return this.#pid;
  }

  /**
   * Begins a transaction whose DDL and LOCK TABLE stay on this server, where Citus would send them on.
   *
   * @param purpose what it is for, in application_name
   * @param first what it does at once: sets a savepoint of this name, after a statement
   */
  static async begin(
    pool: Pool,
    bounds: Bounds,
    purpose: string,
    first: { readonly savepoint?: string; readonly setup?: string | undefined } = {},
  ): Promise<Transaction> {
    const transaction = await Transaction.#begin(pool, { bounds, purpose, ...first });
    if (transaction === undefined) throw new Error('a lock that was not asked for was refused');
    return transaction;
  }

  /**
   * Begins a transaction that has the lock of a row, which is not waited for.
   *
   * @returns undefined when another session has the lock.
   */
  static async beginLocked(
    pool: Pool,
    bounds: Bounds,
    purpose: string,
    lock: RowLock,
  ): Promise<Transaction | undefined> {
    return Transaction.#begin(pool, { bounds, purpose, lock });
  }

  static async #begin(pool: Pool, options: BeginOptions): Promise<Transaction | undefined> {
    // One that a pool has kept may have been ended without its knowing yet.
    return again(() => Transaction.#beginOnce(pool, options));
  }

  static async #beginOnce(pool: Pool, options: BeginOptions): Promise<Transaction | undefined> {
    const transaction = new Transaction(await pool.connect());
    // The server's own bounds are not set yet, and a network that swallows everything has none.
    const watchdog = setTimeout(() => transaction.destroy(), BEGIN_MS);
    try {
      const { locked, pid } = await begin(transaction.#client, options);
      transaction.#pid = pid;
      if (locked) return transaction;
      await transaction.rollback();
      return undefined;
    } catch (error) {
      transaction.destroy();
      if (!isSessionLost(error)) throw error;
      throw new SessionLostError(`a session was lost: ${errorText(error)}`, error);
    } finally {
      clearTimeout(watchdog);
    }
  }

  /**
   * Sets the bounds again, counted from now. Text without parameters: the portal of a statement with
   * parameters keeps its snapshot while the session is idle, and VACUUM and CREATE INDEX CONCURRENTLY wait for that.
   */
  async bound(bounds: Bounds): Promise<void> {
    await this.client.query(`SELECT ${boundsSql(literals(bounds))}`);
  }

  /** Called once, when the session breaks. The last one that was given counts. */
  onLost(listener: () => void): void {
    this.#onLost = listener;
    if (this.#lost) listener();
  }

  /** Called once, when the transaction has ended; at once if it has. Any number of them. */
  onEnd(listener: (outcome: Outcome) => void): void {
    if (this.#outcome === undefined) this.#onEnd.push(listener);
    else listener(this.#outcome);
  }

  async commit(): Promise<void> {
    await this.client.query('COMMIT');
    this.#release('committed');
  }

  /**
   * Ends the transaction without effect. Never throws: a session that cannot is closed.
   *
   * @returns false when the session was lost; how its last statement ended is not known then.
   */
  async rollback(): Promise<boolean> {
    if (this.#released) return false;
    const watchdog = setTimeout(() => this.destroy(), ROLLBACK_MS);
    try {
      await this.#client.query('ROLLBACK');
      this.#release('rolled back');
      return true;
    } catch {
      this.destroy();
      return false;
    } finally {
      clearTimeout(watchdog);
    }
  }

  /** Closes the session; the server rolls back. */
  destroy(): void {
    this.#release('lost');
  }

  #release(outcome: Outcome): void {
    if (this.#released) return;
    this.#released = true;
    this.#outcome = outcome;
    this.#client.removeListener('error', this.#lose);
    this.#client.removeListener('end', this.#lose);
    this.#client.release(outcome === 'lost' || this.#lost !== undefined);
    for (const listener of this.#onEnd) listener(outcome);
  }
}

function literals({ idleMs, lockMs, statementMs }: Bounds): string[] {
  return [idleMs, lockMs, statementMs, idleMs + statementMs].map(
    (ms) => `'${Math.min(Math.ceil(ms), 2_147_483_647)}ms'`,
  );
}

/**
 * transaction_timeout (from PostgreSQL 17 on) ends what idle_in_transaction_session_timeout does not
 * see. It runs from where it is set, and only if none runs already, so it is switched off first.
 */
function boundsSql([idle, lock, statement, transaction]: readonly string[]): string {
  return `
    set_config('idle_in_transaction_session_timeout', ${idle}, true),
    set_config('lock_timeout', ${lock}, true),
    set_config('statement_timeout', ${statement}, true),
    CASE WHEN current_setting('transaction_timeout', true) IS NOT NULL
      THEN set_config('transaction_timeout', '0', true)
        || set_config('transaction_timeout', ${transaction}, true)
    END`;
}

/**
 * One message to the server for all of it, which only text without parameters can be: clients wait for
 * what is begun here, or fail.
 *
 * A process that waits for a lock does not look whether its client is still there, and a dead one's place
 * in the queue keeps all behind it waiting: so it is set to look.
 *
 * A transaction that waits for a lock looks for a deadlock after deadlock_timeout, and is the one that
 * dies of it. The controller's must not: the sessions that wait for it look as well. Setting it takes a right.
 */
async function begin(
  client: PoolClient,
  { bounds, purpose, lock, savepoint, setup }: BeginOptions,
): Promise<{ locked: boolean; pid: number }> {
  const name = pg.escapeLiteral(applicationName(purpose).slice(0, 63));
  const locked = lock ? 'EXISTS (SELECT FROM locked_row)' : 'true';
  const row = lock ? `WITH locked_row AS MATERIALIZED (${lock})` : '';
  const local = lock ? '' : "set_config('citus.enable_ddl_propagation', 'off', true),";
  const text = `
  BEGIN ISOLATION LEVEL READ COMMITTED;
  ${row} SELECT ${locked} AS locked,
    pg_backend_pid() AS pid,
    set_config('application_name', ${name}, true),
    CASE WHEN current_setting('client_connection_check_interval', true) IS NOT NULL
      THEN set_config('client_connection_check_interval', '200ms', true)
    END,
    ${local}
    CASE WHEN has_parameter_privilege('deadlock_timeout', 'SET')
      THEN set_config('deadlock_timeout', '1d', true)
    END,
    ${boundsSql(literals(bounds))};
  ${setup === undefined ? '' : `${setup};`}
  ${savepoint === undefined ? '' : `SAVEPOINT ${pg.escapeIdentifier(savepoint)};`}`;
  // The types of node-postgres do not know of several results.
  const results = (await client.query(text)) as unknown as [
    QueryResult,
    QueryResult<{ locked: boolean; pid: number }>,
  ];
  const [begun] = results[1].rows;
  if (begun === undefined) throw new Error('a query for the server process returned no row');
  return begun;
}
