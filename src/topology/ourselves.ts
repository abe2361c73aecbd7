import type { Queryable } from '../postgres/queryable.js';

/**
 * Makes a task that registers the server that the controller works on as the coordinator, if pg_dist_node has it at another address: so
 * after a failover of the coordinator, when no other source says so. Not when it has no row at all: to
 * register it is a decision.
 *
 * @param nodesQuery see AbstractMPP.nodesQuery
 * @param host by which the workers reach this server
 * @param port undefined for the one that it listens on
 * @returns true when it was reported.
 */
export async function reportOurselves(
  db: Queryable,
  nodesQuery: string,
  host: string,
  port: number | undefined,
): Promise<boolean> {
  const { rowCount } = await db.query({
    name: 'mpp-report-ourselves',
    text: `
      WITH node AS (${nodesQuery}), here AS (
        SELECT coalesce($2::integer, current_setting('port')::integer) AS port,
               ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::integer AS timeline
      )
      SELECT @mpp.mpp_submit('after_promote'::text, 0, $1::text, here.port, NULL::text[],
               NULL::interval, NULL::interval, NULL::text, 'sync'::text)
      FROM here
      JOIN node AS n ON n.in_cluster AND n.groupid = 0 AND n.noderole = 'primary'
      WHERE (n.nodename, n.nodeport) <> ($1::text, here.port)
        AND NOT EXISTS (
          SELECT FROM @mpp.mpp_tasks AS t WHERE t.finished_at IS NULL AND t.groupid = 0)
        AND NOT EXISTS (
          SELECT
          FROM @mpp.mpp_members AS m
          WHERE m.groupid = 0 AND m.role = 'primary' AND @mpp.mpp_is_up(m.state) AND m.timeline > here.timeline)
        AND NOT EXISTS (
          SELECT
          FROM (
            SELECT t.status, t.finished_at, t.nodename, t.nodeport
            FROM @mpp.mpp_tasks AS t
            WHERE t.groupid = 0 AND t.event = 'after_promote' AND t.source = 'sync'
            ORDER BY t.id DESC
            LIMIT 1
          ) AS last
          WHERE last.status IN ('failed', 'discarded', 'cancelled')
            AND last.finished_at > statement_timestamp() - interval '5 minutes'
            AND (last.nodename, last.nodeport) = ($1::text, here.port))`,
    values: [host, port],
  });
  return (rowCount ?? 0) > 0;
}
