import { hostname } from 'node:os';
import type { ClientBase } from 'pg';
import { errorText } from '../postgres/session.js';
import { sqlState } from '../postgres/sqlstate.js';
import type { ControlSession } from './control-session.js';

/** What a controller says of itself in mpp_controllers. */
interface Presence {
  readonly id: string;
  readonly version: string;
  readonly strategy: string;
  /** Infinity for no limit. */
  readonly maxHolds: number;
}

/**
 * Registers a controller, with the bound that holds: fewer holds than asked for where the server allows one at
 * a time. Waits for no lock of another session.
 *
 * @returns undefined, or a sentence that says why the row could not be written; it is tried again.
 */
export async function announce(
  control: Pick<ControlSession, 'client' | 'handler'>,
  presence: Presence,
): Promise<string | undefined> {
  try {
    const several = await control.handler.canHoldAnother(control.client);
    const isWritten = await markPresent(
      control.client,
      several ? presence : { ...presence, maxHolds: 1 },
    );
    return isWritten ? undefined : await notWritten(control.client);
  } catch (error) {
    // A lock on a table, of DDL or LOCK TABLE.
    if (sqlState(error) !== LOCK_NOT_AVAILABLE) throw error;
    return `${await notWritten(control.client)}: ${errorText(error)}`;
  }
}

const LOCK_NOT_AVAILABLE = '55P03';

/**
 * Registers a controller, or renews its mark. Run on its control session, whose pid tells who is
 * active.
 *
 * @returns false when another session has locked the row
 */
export async function markPresent(control: ClientBase, presence: Presence): Promise<boolean> {
  const values = [
    presence.id,
    hostname(),
    process.pid,
    presence.version,
    presence.strategy,
    Number.isFinite(presence.maxHolds) ? presence.maxHolds : null,
  ];
  const { rowCount } = await control.query({
    name: 'mpp-present',
    text: PRESENT,
    values: [values[0], values[4], values[5]],
  });
  if (rowCount === 1) return true;
  const added = await control.query({ name: 'mpp-register', text: REGISTER, values });
  return added.rowCount === 1;
}

const PRESENT = `
  UPDATE @mpp.mpp_controllers AS c
  SET backend_pid = pg_backend_pid(),
      strategy = $2,
      max_holds = $3,
      heartbeat_at = clock_timestamp()
  WHERE c.id IN (SELECT p.id FROM @mpp.mpp_controllers AS p WHERE p.id = $1 FOR UPDATE SKIP LOCKED)`;

/** Its id is its own: what conflicts is its own row, which is locked. */
const REGISTER = `
  INSERT INTO @mpp.mpp_controllers AS c (id, host, pid, backend_pid, version, strategy, max_holds)
  VALUES ($1, $2, $3, pg_backend_pid(), $4, $5, $6)
  ON CONFLICT (id) DO NOTHING`;

async function notWritten(control: ClientBase): Promise<string> {
  const { rows } = await control.query<{ pid: number; role: string | null; application: string }>(
    LOCKED_BY,
  );
  const sessions = rows.map(
    ({ pid, role, application }) =>
      `pid ${pid} (role ${role ?? 'unknown'}, application ${application || 'unnamed'})`,
  );
  return (
    'the heartbeat could not be written: the row in mpp_controllers is locked by ' +
    `${sessions.join(', ') || 'a session that has just ended'}; end its transaction`
  );
}

/** Not by the heartbeat of another controller, whose transaction is one statement. */
const LOCKED_BY = `
  SELECT DISTINCT l.pid, r.rolname AS role, a.application_name AS application
  FROM pg_locks AS l
  CROSS JOIN LATERAL pg_stat_get_activity(l.pid) AS a
  LEFT JOIN pg_roles AS r ON r.oid = a.usesysid
  WHERE l.locktype = 'relation' AND l.granted AND l.pid <> pg_backend_pid()
    AND l.relation = (SELECT c.oid
                      FROM pg_class AS c
                      JOIN pg_class AS k ON k.relnamespace = c.relnamespace
                      WHERE c.relname = 'mpp_controllers'
                        AND k.oid = (SELECT t.tableoid FROM @mpp.mpp_leadership AS t))
    AND l.mode NOT IN ('AccessShareLock', 'ShareUpdateExclusiveLock')`;

/** Takes a controller off the list; a row that another session has locked stays, and is forgotten later. */
export async function markGone(control: ClientBase, id: string): Promise<void> {
  await control.query(GONE, [id]);
}

const GONE = `
  DELETE FROM @mpp.mpp_controllers
  WHERE id IN (SELECT c.id FROM @mpp.mpp_controllers AS c WHERE c.id = $1 FOR UPDATE SKIP LOCKED)`;

/** Forgets controllers that died long ago, so that a list of crashes does not grow for ever. */
export async function forgetGone(control: ClientBase): Promise<void> {
  await control.query(FORGET);
}

const FORGET = `
  DELETE FROM @mpp.mpp_controllers AS c
  WHERE c.id IN (
    SELECT o.id
    FROM @mpp.mpp_controllers AS o
    WHERE o.heartbeat_at < clock_timestamp() - interval '1 hour'
      AND o.id IN (SELECT s.controller FROM @mpp.mpp_status AS s WHERE s.state = 'gone')
    FOR UPDATE SKIP LOCKED)`;
