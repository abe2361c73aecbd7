import { setTimeout as delay } from 'node:timers/promises';
import type { Pool } from 'pg';
import { queryAgain } from '../../../postgres/again.js';

/** Citus takes 50 to 230 ms; each look is a read of a few rows. */
const LOOK_MS = 5;

/**
 * Waits until nodes have the metadata of the last commit.
 *
 * @param looks sessions with the coordinator
 * @param nodeids undefined: all that have metadata
 * @param mostMs how long to wait
 * @returns the nodes that have not got it by then
 */
export async function waitUntilSynced(
  looks: Pool,
  nodeids: readonly number[] | undefined,
  mostMs: number,
  signal: AbortSignal,
): Promise<number[]> {
  const until = performance.now() + mostMs;
  for (;;) {
    const { rows } = await queryAgain<{ nodeid: number }>(looks, {
      name: 'mpp-unsynced',
      text: UNSYNCED,
      values: [nodeids ?? null],
    });
    if (rows.length === 0 || signal.aborted || performance.now() >= until) {
      return rows.map(({ nodeid }) => nodeid);
    }
    await delay(LOOK_MS, undefined, { signal }).catch(() => undefined);
  }
}

const UNSYNCED = `
  SELECT n.nodeid
  FROM pg_catalog.pg_dist_node AS n
  WHERE n.hasmetadata AND n.isactive AND NOT n.metadatasynced
    AND ($1::integer[] IS NULL OR n.nodeid = ANY ($1::integer[]))`;
