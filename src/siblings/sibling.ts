import type { Pool } from 'pg';
import { errorText } from '../postgres/session.js';
import { isSessionLost, sqlState } from '../postgres/sqlstate.js';
import type { Queryable } from '../postgres/queryable.js';
import { forgetEntry, readOutbox, type Entry } from './outbox.js';

/** Entries that are read at once. */
const BATCH = 100;

export interface SiblingOptions {
  readonly database: string;
  /** Sessions in it. */
  readonly pool: Pool;
  /** Sessions in our own database, where its outbox is. */
  readonly db: Queryable;
  readonly onTold: (entry: Entry) => void;
  readonly onTrouble: (database: string, text: string, error: unknown) => void;
}

/** Another Citus database on the same nodes, which is told of every report into ours. */
export class Sibling {
  readonly database: string;
  readonly #options: SiblingOptions;
  #failure: string | undefined;

  constructor(options: SiblingOptions) {
    this.database = options.database;
    this.#options = options;
  }

  /** For statements in it. */
  get db(): Queryable {
    return this.#options.pool;
  }

  /** Why it could not be told the last time; undefined when it could. */
  get failure(): string | undefined {
    return this.#failure;
  }

  /**
   * Tells it what it has yet to be told, in order; for a group that it cannot be told of now, nothing
   * that came later either. Never throws.
   *
   * @returns false when something is left, to be tried again.
   */
  async tell(signal: AbortSignal): Promise<boolean> {
    const left = new Set<number | null>();
    try {
      for (;;) {
        const entries = await readOutbox(this.#options.db, this.database, BATCH);
        const due = entries.filter(({ groupid }) => !left.has(groupid));
        for (const entry of due) {
          if (signal.aborted) return false;
          if (!(await this.#tellOne(entry))) left.add(entry.groupid);
        }
        if (entries.length < BATCH || due.length === 0) break;
      }
      if (left.size === 0) this.#failure = undefined;
    } catch (error) {
      this.#trouble(error);
      return false;
    }
    return left.size === 0;
  }

  async #tellOne(entry: Entry): Promise<boolean> {
    const { pool, db, onTold } = this.#options;
    try {
      if (entry.report !== null) {
        const { rows } = await pool.query<{ told: boolean }>({
          name: 'mpp-follow',
          text: FOLLOW,
          values: [entry.origin, entry.report],
        });
        if (rows[0]?.told !== true) return false;
      }
    } catch (error) {
      // Without a SQLSTATE, or with the session gone, the next entry would fare no better.
      if (sqlState(error) === undefined || isSessionLost(error)) throw error;
      this.#trouble(error);
      return false;
    }
    await forgetEntry(db, entry.id);
    onTold(entry);
    return true;
  }

  #trouble(error: unknown): void {
    const text = errorText(error);
    if (text !== this.#failure) this.#options.onTrouble(this.database, text, error);
    this.#failure = text;
  }
}

const FOLLOW = 'SELECT mpp_follow($1::name, $2::jsonb) AS told';
