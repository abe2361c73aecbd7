import type { Pool, PoolClient } from 'pg';
import { GROUP_LOCK } from '../postgres/locks.js';
import { applicationName } from '../postgres/session.js';

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
 * A session with an open transaction that has the lock of one group. While it lives nobody else works
 * on the group; when it dies, by whatever hand, the server frees the lock and lets the traffic go on.
 */
export class GroupSession {
  readonly #client: PoolClient;
  #pid = 0;
  #lost: Error | undefined;
  #released = false;
  #onLost: (() => void) | undefined;
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
   * @throws Error once the transaction has ended: the session may be another group's by then.
   */
  get client(): PoolClient {
    if (this.#released) throw new Error('the transaction of this group has ended');
    return this.#client;
  }

  /** The server process. */
  get pid(): number {
    return this.#pid;
  }

  /**
   * Begins a transaction and takes the group's lock without waiting.
   *
   * @returns undefined when another session has the lock.
   */
  static async begin(
    pool: Pool,
    groupid: number,
    bounds: Bounds,
  ): Promise<GroupSession | undefined> {
    const session = new GroupSession(await pool.connect());
    // The server's own bounds are not set yet, and a network that swallows everything has none.
    const watchdog = setTimeout(() => session.destroy(), BEGIN_MS);
    try {
      await session.#client.query('BEGIN ISOLATION LEVEL READ COMMITTED');
      const { rows } = await session.#client.query<{ locked: boolean; pid: number }>({
        name: 'mpp-begin',
        text: BEGIN_GROUP,
        values: [
          ...boundValues(bounds),
          GROUP_LOCK,
          groupid,
          applicationName(`group ${groupid}`).slice(0, 63),
        ],
      });
      session.#pid = rows[0]?.pid ?? 0;
      if (rows[0]?.locked === true) return session;
      await session.rollback();
      return undefined;
    } catch (error) {
      session.destroy();
      throw error;
    } finally {
      clearTimeout(watchdog);
    }
  }

  /** Sets the bounds anew, counted from now. */
  async bound(bounds: Bounds): Promise<void> {
    await this.client.query({ name: 'mpp-bound', text: BOUND, values: boundValues(bounds) });
  }

  /** Called once, when the session breaks while nobody has a statement running on it. */
  onLost(listener: () => void): void {
    this.#onLost = listener;
    if (this.#lost) listener();
  }

  async commit(): Promise<void> {
    await this.client.query('COMMIT');
    this.#release();
  }

  /**
   * Ends the transaction without effect. Never throws: a session that cannot is closed.
   *
   * @returns false when the session was lost; nobody can tell then how its last statement ended.
   */
  async rollback(): Promise<boolean> {
    if (this.#released) return false;
    const watchdog = setTimeout(() => this.destroy(), ROLLBACK_MS);
    try {
      await this.#client.query('ROLLBACK');
      this.#release();
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
    this.#release(true);
  }

  #release(destroy = false): void {
    if (this.#released) return;
    this.#released = true;
    this.#client.removeListener('error', this.#lose);
    this.#client.removeListener('end', this.#lose);
    this.#client.release(destroy || this.#lost !== undefined);
  }
}

function boundValues({ idleMs, lockMs, statementMs }: Bounds): string[] {
  return [idleMs, lockMs, statementMs, idleMs + statementMs].map(
    (ms) => `${Math.min(Math.ceil(ms), 2_147_483_647)}ms`,
  );
}

/**
 * transaction_timeout (from PostgreSQL 17 on) ends what idle_in_transaction_session_timeout does not
 * see. It runs from where it is set, and only if none runs already, so it is switched off first.
 */
const BOUNDS = `
         set_config('idle_in_transaction_session_timeout', $1, true),
         set_config('lock_timeout', $2, true),
         set_config('statement_timeout', $3, true),
         CASE WHEN current_setting('transaction_timeout', true) IS NOT NULL
           THEN set_config('transaction_timeout', '0', true) || set_config('transaction_timeout', $4, true)
         END`;

const BOUND = `SELECT ${BOUNDS}`;

const BEGIN_GROUP = `
  SELECT pg_try_advisory_xact_lock($5, $6) AS locked,
         pg_backend_pid() AS pid,
         set_config('application_name', $7, true),
         ${BOUNDS}`;
