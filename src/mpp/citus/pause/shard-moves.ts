import type { Queryable } from '../../../postgres/queryable.js';
import { formatAddress, type Address } from '../../../address.js';

interface ShardMove {
  readonly pid: string;
  readonly tables: string;
  readonly source: string;
  readonly target: string;
}

/**
 * Shard moves that are under way from or to a node. One that lets clients write (`force_logical`) waits for the
 * writes that a hold pauses; after the switchover its replication slot is on a server that is no primary.
 *
 * @param db a session with the coordinator
 * @returns a sentence for each session that moves shards
 */
export async function readShardMoves(db: Queryable, node: Address): Promise<string[]> {
  const { rows } = await db.query<ShardMove>({
    name: 'mpp-shard-moves',
    text: SHARD_MOVES,
    values: [node.host, node.port],
  });
  return rows.map(
    ({ pid, tables, source, target }) =>
      `a shard move of pid ${pid} (${tables}, from ${source} to ${target}) does not end while ` +
      `${formatAddress(node)} is held: end it with SELECT pg_cancel_backend(${pid}) and ` +
      `CALL citus_cleanup_orphaned_resources()`,
  );
}

/** Locks nothing. Progress 1 is under way. Without a move it reads shared memory alone (0.04 ms). */
const SHARD_MOVES = `
  SELECT m.sessionid::text AS pid, string_agg(DISTINCT m.table_name::text, ', ') AS tables,
         min(format('%s:%s'::text, m.sourcename, m.sourceport)) AS source,
         min(format('%s:%s'::text, m.targetname, m.targetport)) AS target
  FROM pg_catalog.get_rebalance_progress() AS m
  WHERE m.progress = 1
    AND ((m.sourcename, m.sourceport) = ($1::text, $2::integer)
      OR (m.targetname, m.targetport) = ($1::text, $2::integer))
  GROUP BY m.sessionid
  ORDER BY m.sessionid`;
