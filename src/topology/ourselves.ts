import type { Queryable } from '../postgres/queryable.js';

/**
 * Reports the server that we work on as the coordinator, if pg_dist_node has it at another address: so
 * after a failover of the coordinator, when nobody else says so. Not when it has no row at all: to
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
      WITH node AS (${nodesQuery})
      SELECT @mpp.mpp_report(0, $1::text, here.port, 'primary'::text, 'running'::text, here.timeline)
      FROM (
        SELECT coalesce($2::integer, current_setting('port')::integer) AS port,
               ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::integer AS timeline
      ) AS here
      JOIN node AS n ON n.ours AND n.groupid = 0 AND n.noderole = 'primary'
      WHERE (n.nodename, n.nodeport) <> ($1::text, here.port)`,
    values: [host, port],
  });
  return (rowCount ?? 0) > 0;
}
