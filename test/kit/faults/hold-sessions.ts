import type { Client } from 'pg';
import type { Harness } from '../harness.js';
import { waitFor, type Server } from '../servers/index.js';

/** A lock that a session of the controllers has, or waits for. */
export interface HoldLock {
  readonly pid: number;
  /** What the session is for: `group 1`, `shared locks`, `pause of group 1`, or `pause` when idle. */
  readonly purpose: string;
  /** The table; null for the lock of a shard or a group. */
  readonly relation: string | null;
  readonly mode: string;
  readonly granted: boolean;
}

/** The locks by which holds make traffic wait, on one server. */
export async function holdLocks(db: Client): Promise<HoldLock[]> {
  const { rows } = await db.query<HoldLock>(HOLD_LOCKS);
  return rows;
}

/** Every node that is a primary and runs. */
export function runningPrimaries(h: Harness): Server[] {
  return h.cluster.groups.map(({ primary }) => primary).filter(({ isRunning }) => isRunning);
}

/** Waits until no session of a hold has a lock or a transaction left on any of the servers. */
export async function waitUntilNothingHeld(
  h: Harness,
  servers: readonly Server[] = runningPrimaries(h),
): Promise<void> {
  for (const server of servers) {
    await server.withSession((db) =>
      waitFor(`holds to have no lock left on ${server.name}`, async () => {
        const locks = await holdLocks(db);
        if (locks.length > 0) throw new Error(JSON.stringify(locks));
        const { rows } = await db.query(OPEN);
        if (rows.length > 0) throw new Error(JSON.stringify(rows));
        return true;
      }),
    );
  }
}

/** Waits until a hold has, or waits for, a table on a server. @returns the server process. */
export async function waitUntilTable(
  server: Server,
  relation: string,
  { granted }: { readonly granted: boolean },
): Promise<number> {
  return server.withSession((db) =>
    waitFor(`a hold to ${granted ? 'have' : 'wait for'} ${relation}`, async () => {
      const locks = await holdLocks(db);
      const found = locks.find((lock) => lock.relation === relation && lock.granted === granted);
      if (!found) throw new Error(JSON.stringify(locks));
      return found.pid;
    }),
  );
}

/** Ends the sessions of holds with this purpose. @returns how many. */
export async function endHoldSessions(db: Client, purpose: string): Promise<number> {
  const { rows } = await db.query(END_SESSIONS, [`mpp-controller ${purpose}`]);
  return rows.length;
}

/** Relations and advisory locks: what is left are a session's own transaction and its snapshots. */
const HOLD_LOCKS = `
  SELECT a.pid, substring(a.application_name FROM '^mpp-controller (.*)$') AS purpose,
         l.relation::regclass::text AS relation, l.mode, l.granted
  FROM pg_stat_activity AS a
  JOIN pg_locks AS l USING (pid)
  WHERE a.application_name ~ '^mpp-controller (group|shared locks|pause)'
    AND l.locktype IN ('relation', 'advisory')
  ORDER BY a.pid, l.relation`;

/** The name is set for a transaction, and gone with it. */
const OPEN = `
  SELECT a.pid, a.application_name AS name, a.state
  FROM pg_stat_activity AS a
  WHERE a.application_name ~ '^mpp-controller (group [0-9]|shared locks|pause of)'`;

const END_SESSIONS = `
  SELECT pg_terminate_backend(a.pid, 5000)
  FROM pg_stat_activity AS a
  WHERE a.application_name = $1`;
