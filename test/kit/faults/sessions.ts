import type { Client } from 'pg';
import { waitFor } from '../servers/index.js';

/** What a session of the controller is for; `group` are those of the groups' transactions. */
export type Purpose = 'control' | 'listen' | 'queue' | 'group';

export const PURPOSES: readonly Purpose[] = ['control', 'listen', 'queue', 'group'];

/** Server processes of the controllers' sessions, of one purpose or of all. */
export async function sessionsOf(db: Client, purpose?: Purpose): Promise<number[]> {
  const { rows } = await db.query<{ pid: number }>(SESSIONS, [purpose ?? ANY_PURPOSE]);
  return rows.map(({ pid }) => pid);
}

/** Ends them as an administrator would, and waits until they are gone. @returns how many. */
export async function terminateSessions(db: Client, purpose: Purpose): Promise<number> {
  const pids = await sessionsOf(db, purpose);
  await db.query('SELECT pg_terminate_backend(pid, 5000) FROM unnest($1::integer[]) AS pid', [
    pids,
  ]);
  return pids.length;
}

/** Waits until no controller has a session on the server. */
export async function waitUntilNoSession(db: Client): Promise<void> {
  await waitFor('the sessions of the controllers to end', async () => {
    return (await sessionsOf(db)).length === 0;
  });
}

const ANY_PURPOSE = '(control|listen|queue|group)';

const SESSIONS = `
  SELECT a.pid
  FROM pg_stat_activity AS a
  WHERE a.application_name ~ ('^mpp-controller ' || $1)
  ORDER BY a.pid`;
