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
  /** What it answered to the reports of one group, while it takes those of others. */
  readonly #refusals = new Map<number, string>();

  constructor(options: SiblingOptions) {
    this.database = options.database;
    this.#options = options;
  }

  /** For statements in it. */
  get db(): Queryable {
    return this.#options.pool;
  }

  /** Why it could not be told of a group the last time; undefined when it could. */
  failureOf(groupid: number): string | undefined {
    return this.#failure ?? this.#refusals.get(groupid);
  }

  /**
   * Tells it what it has yet to be told, in order; for a group that it cannot be told of now, nothing
   * that came later either. Never throws.
   *
   * @returns true when somebody else reports for a group just now: it is soon to be tried again.
   */
  async tell(signal: AbortSignal): Promise<boolean> {
    const left = new Set<number>();
    try {
      let entries: Entry[];
      do {
        entries = await readOutbox(this.#options.db, this.database, BATCH, [...left]);
        for (const entry of entries) {
          if (signal.aborted) return false;
          const { groupid } = entry;
          if (groupid !== null && left.has(groupid)) continue;
          if (!(await this.#tellOne(entry)) && groupid !== null) left.add(groupid);
        }
      } while (entries.length === BATCH);
      this.#failure = undefined;
    } catch (error) {
      const text = errorText(error);
      if (text !== this.#failure) this.#options.onTrouble(this.database, text, error);
      this.#failure = text;
      return false;
    }
    for (const groupid of this.#refusals.keys()) {
      if (!left.has(groupid)) this.#refusals.delete(groupid);
    }
    return [...left].some((groupid) => !this.#refusals.has(groupid));
  }

  /** @returns false when the sibling cannot be told of it now. */
  async #tellOne(entry: Entry): Promise<boolean> {
    const { db, onTold } = this.#options;
    if (entry.report !== null && !(await this.#follow(entry, entry.report))) return false;
    await forgetEntry(db, entry.id);
    onTold(entry);
    return true;
  }

  async #follow({ groupid, origin }: Entry, report: string): Promise<boolean> {
    // Without a session the next entry would fare no better.
    const session = await this.#options.pool.connect();
    let lost = false;
    try {
      const { rows } = await session.query<{ told: boolean }>({
        name: 'mpp-follow',
        text: FOLLOW,
        values: [origin, report],
      });
      return rows[0]?.told === true;
    } catch (error) {
      lost = sqlState(error) === undefined || isSessionLost(error);
      if (lost) throw error;
      this.#refused(groupid ?? 0, error);
      return false;
    } finally {
      session.release(lost);
    }
  }

  /** By group: that of one must not keep the reports of others from being waited for. */
  #refused(groupid: number, error: unknown): void {
    const text = errorText(error);
    if (text !== this.#refusals.get(groupid))
      this.#options.onTrouble(this.database, `group ${groupid}: ${text}`, error);
    this.#refusals.set(groupid, text);
  }
}

const FOLLOW = 'SELECT @mpp.mpp_follow($1::name, $2::jsonb) AS told';
