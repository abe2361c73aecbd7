import type { Queryable } from '../postgres/queryable.js';

/** Something that is to be forwarded to another database: a report, or what became of it. */
export interface Entry {
  readonly id: string;
  /** null when its task has been pruned. */
  readonly groupid: number | null;
  /** This database, as the other one is to know it. */
  readonly origin: string;
  /**
   * The row of mpp_tasks as JSON; null when there is nothing to forward: it has been pruned, or is a confirmed
   * report since which another was confirmed. Forwarded after all, it would move the row back for a moment.
   */
  readonly report: string | null;
}

/** Says to which databases reports are forwarded from now on. Writes nothing where that is known. */
export async function registerDatabases(
  db: Queryable,
  databases: readonly string[],
): Promise<void> {
  await db.query({ name: 'mpp-register-databases', text: REGISTER, values: [databases] });
}

const REGISTER = `
  WITH gone AS (
    DELETE FROM @mpp.mpp_databases AS s WHERE s.database <> ALL ($1::name[])
  )
  INSERT INTO @mpp.mpp_databases (database)
  SELECT wanted.database
  FROM unnest($1::name[]) AS wanted (database)
  WHERE wanted.database NOT IN (SELECT s.database FROM @mpp.mpp_databases AS s)
  ON CONFLICT DO NOTHING`;

/**
 * @param without groups that are passed over
 * @returns the oldest entries for one database, at most `limit`.
 */
export async function readOutbox(
  db: Queryable,
  database: string,
  limit: number,
  without: readonly number[],
): Promise<Entry[]> {
  const { rows } = await db.query<Entry>({
    name: 'mpp-read-outbox',
    text: READ,
    values: [database, limit, without],
  });
  return rows;
}

const READ = `
  SELECT o.id, t.groupid, current_database() AS origin,
         CASE
           WHEN NOT (t.event = 'after_promote' AND EXISTS (
             SELECT
             FROM @mpp.mpp_tasks AS f
             WHERE f.groupid = t.groupid AND f.event = 'after_promote' AND f.source = 'client'
               AND f.id > t.id AND f.status = 'done' AND f.origin_id IS NULL))
             THEN to_jsonb(t)::text
         END AS report
  FROM @mpp.mpp_outbox AS o
  LEFT JOIN @mpp.mpp_tasks AS t ON t.id = o.task_id
  WHERE o.database = $1
    AND (t.groupid IS NULL OR t.groupid <> ALL ($3::integer[]))
  ORDER BY o.id
  LIMIT $2`;

export async function forgetEntry(db: Queryable, id: string): Promise<void> {
  await db.query({ name: 'mpp-forget-entry', text: FORGET, values: [id] });
}

const FORGET = 'DELETE FROM @mpp.mpp_outbox AS o WHERE o.id = $1';
