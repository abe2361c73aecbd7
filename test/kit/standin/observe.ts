import type pg from 'pg';
import { waitFor } from '../servers/wait.js';

// Looks at a coordinator from a session that does nothing else; the same on Citus and the stand-in.

const NODE_ID = `
  SELECT nodeid FROM pg_dist_node WHERE groupid = $1::integer AND noderole = 'primary'`;

const IS_BLOCKED = 'SELECT $2::integer = ANY (pg_blocking_pids($1::integer)) AS blocked';

const OUT_OF_SYNC = 'SELECT FROM pg_dist_node WHERE hasmetadata AND NOT metadatasynced';

/** The nodeid of a group's primary. @throws Error when the group has none. */
export async function primaryNodeId(observer: pg.ClientBase, groupid: number): Promise<number> {
  const { rows } = await observer.query<{ nodeid: number }>(NODE_ID, [groupid]);
  if (rows[0] === undefined) throw new Error(`group ${groupid} has no primary in pg_dist_node`);
  return rows[0].nodeid;
}

/** The process id of a session's backend. */
export async function backendPid(session: pg.ClientBase): Promise<number> {
  const { rows } = await session.query<{ pid: number }>('SELECT pg_backend_pid() AS pid');
  return rows[0]?.pid ?? 0;
}

/** Resolves once the backend `waiting` waits for a lock that the backend `holding` is in front of. */
export async function waitUntilBlocked(
  observer: pg.ClientBase,
  waiting: number,
  holding: number,
): Promise<void> {
  await waitFor(`backend ${waiting} to wait for backend ${holding}`, async () => {
    const { rows } = await observer.query<{ blocked: boolean }>(IS_BLOCKED, [waiting, holding]);
    return rows[0]?.blocked;
  });
}

/** Resolves once every node has the metadata of the last committed change. */
export async function waitUntilSynced(observer: pg.ClientBase): Promise<void> {
  await waitFor('metadata to be in sync', async () => {
    const { rowCount } = await observer.query(OUT_OF_SYNC);
    return rowCount === 0;
  });
}
