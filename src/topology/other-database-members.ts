import { componentLogger } from '../logger.js';
import type { Queryable } from '../postgres/queries.js';
import { errorText } from '../postgres/session.js';
import { Loop } from '../wait.js';
import type { SourceContext, TopologySource } from './members.js';

interface OtherDatabaseMembersOptions extends SourceContext {
  readonly database: string;
  /** Sessions in that database. */
  readonly otherDb: Queryable;
  readonly intervalMs: number;
}

/** What hooks say of the nodes in another database on the same nodes, by mpp_report: copied to this one. */
export class OtherDatabaseMembers implements TopologySource {
  readonly #options: OtherDatabaseMembersOptions;
  readonly #loop: Loop;
  /** Rows of an earlier time have been read, in seconds since 1970; null before the first look. */
  #readUntil: number | null = null;
  #failure: string | undefined;

  constructor(options: OtherDatabaseMembersOptions) {
    const logger = componentLogger(options.logger, 'databases');
    this.#options = { ...options, logger };
    this.#loop = new Loop({
      intervalMs: options.intervalMs,
      signal: options.signal,
      work: () => this.#copy(),
    });
  }

  start(): void {
    this.#loop.start();
  }

  async stop(): Promise<void> {
    await this.#loop.stop();
  }

  async #copy(): Promise<void> {
    const { database, otherDb, db, ttlMs, onChange, logger } = this.#options;
    try {
      const { rows } = await otherDb.query<{ members: string | null; until: number }>({
        name: 'mpp-read-reports',
        text: READ,
        values: [ttlMs, this.#readUntil],
      });
      const [seen] = rows;
      if (seen?.members) {
        const { rowCount } = await db.query({
          name: 'mpp-copy-reports',
          text: COPY,
          values: [seen.members],
        });
        if ((rowCount ?? 0) > 0) onChange();
      }
      this.#readUntil = seen?.until ?? null;
      this.#failure = undefined;
    } catch (error) {
      const text = errorText(error);
      if (text !== this.#failure) {
        logger.warn(
          { err: error },
          `the members of database ${database} cannot be copied: ${text}`,
        );
      }
      this.#failure = text;
    }
  }
}

/** Some seconds are read again: what was reported then may have been committed since. */
const READ = `
  SELECT json_agg(m)::text AS members,
         extract(epoch FROM statement_timestamp() - interval '10 s')::float8 AS until
  FROM @mpp.mpp_members AS m
  WHERE m.source = 'table'
    AND m.reported_at > greatest(
      to_timestamp($2::float8), statement_timestamp() - $1::float8 * interval '1 millisecond')`;

/**
 * The newest report of a node counts, whichever database it was made in; writes nothing else. A row of the
 * future is none: it was written by a server whose clock was ahead.
 */
const COPY = `
  INSERT INTO @mpp.mpp_members AS m (nodename, nodeport, source, groupid, role, state, timeline, since, reported_at)
  SELECT r.nodename, r.nodeport, 'table', r.groupid, r.role, r.state, r.timeline, r.reported_at, r.reported_at
  FROM json_populate_recordset(NULL::@mpp.mpp_members, $1::json) AS r
  LEFT JOIN @mpp.mpp_members AS o ON o.nodename = r.nodename AND o.nodeport = r.nodeport AND o.source = 'table'
  WHERE o.reported_at IS NULL OR o.reported_at < r.reported_at OR o.reported_at > clock_timestamp()
  ORDER BY r.nodename, r.nodeport
  ON CONFLICT (nodename, nodeport, source) DO UPDATE
  SET groupid = excluded.groupid,
      role = excluded.role,
      state = excluded.state,
      timeline = excluded.timeline,
      reported_at = excluded.reported_at
  WHERE m.reported_at < excluded.reported_at OR m.reported_at > clock_timestamp()`;
