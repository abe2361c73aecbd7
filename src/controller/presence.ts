import { hostname } from 'node:os';
import type { ClientBase } from 'pg';
import type { ControlSession } from './leader.js';

/** What a controller says of itself in mpp_controllers. */
export interface Presence {
  readonly id: string;
  readonly version: string;
  readonly strategy: string;
  /** Infinity for no limit. */
  readonly maxHolds: number;
}

/** The same, with the bound that holds: fewer than asked for where the server allows one at a time. */
export async function announce(
  control: Pick<ControlSession, 'client' | 'handler'>,
  presence: Presence,
): Promise<void> {
  const several = await control.handler.canHoldAnother(control.client);
  await markPresent(control.client, several ? presence : { ...presence, maxHolds: 1 });
}

/**
 * Registers a controller, or renews its mark. Run on its control session, whose pid tells who is
 * active.
 */
export async function markPresent(control: ClientBase, presence: Presence): Promise<void> {
  await control.query({
    name: 'mpp-present',
    text: PRESENT,
    values: [
      presence.id,
      hostname(),
      process.pid,
      presence.version,
      presence.strategy,
      Number.isFinite(presence.maxHolds) ? presence.maxHolds : null,
    ],
  });
}

const PRESENT = `
  INSERT INTO @mpp.mpp_controllers AS c (id, host, pid, backend_pid, version, strategy, max_holds)
  VALUES ($1, $2, $3, pg_backend_pid(), $4, $5, $6)
  ON CONFLICT (id) DO UPDATE
  SET backend_pid = excluded.backend_pid,
      strategy = excluded.strategy,
      max_holds = excluded.max_holds,
      heartbeat_at = clock_timestamp()`;

/** Takes a controller off the list. */
export async function markGone(control: ClientBase, id: string): Promise<void> {
  await control.query('DELETE FROM @mpp.mpp_controllers WHERE id = $1', [id]);
}

/** Forgets controllers that died long ago, so that a list of crashes does not grow for ever. */
export async function forgetGone(control: ClientBase): Promise<void> {
  await control.query(FORGET);
}

const FORGET = `
  DELETE FROM @mpp.mpp_controllers AS c
  WHERE c.heartbeat_at < clock_timestamp() - interval '1 hour'
    AND c.id IN (SELECT s.controller FROM @mpp.mpp_status AS s WHERE s.state = 'gone')`;
