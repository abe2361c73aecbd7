import type { ClientBase } from 'pg';
import { DatabaseStateError } from '../errors.js';

/** Which server answers: a standby that was promoted is another one, though it has the same data. */
export interface ServerIdentity {
  /** null where this role may not ask for it. */
  readonly systemIdentifier: string | null;
  readonly timeline: number;
}

/** The same of any server; without a timeline while it is in recovery. */
interface Standing {
  readonly systemIdentifier: string | null;
  readonly timeline: number | null;
}

export async function readStanding(client: ClientBase): Promise<Standing> {
  const { rows } = await client.query<{ timeline: number | null; may: boolean }>(READ_TIMELINE);
  const { timeline = null, may = false } = rows[0] ?? {};
  if (timeline === null || !may) return { systemIdentifier: null, timeline };
  const system = await client.query<{ identifier: string }>(READ_SYSTEM);
  return { systemIdentifier: system.rows[0]?.identifier ?? null, timeline };
}

/** @throws DatabaseStateError `IN_RECOVERY` on a standby. */
export async function readIdentity(client: ClientBase): Promise<ServerIdentity> {
  const { systemIdentifier, timeline } = await readStanding(client);
  if (timeline !== null) return { systemIdentifier, timeline };
  throw new DatabaseStateError(
    'IN_RECOVERY',
    'the server is a standby; the controller does nothing until it is promoted',
    { retryable: true },
  );
}

export function sameServer(one: ServerIdentity, other: ServerIdentity): boolean {
  return one.timeline === other.timeline && one.systemIdentifier === other.systemIdentifier;
}

/** @throws DatabaseStateError `IN_RECOVERY` on a standby, `OTHER_SERVER` when it is not `expected`. */
export async function checkIdentity(client: ClientBase, expected: ServerIdentity): Promise<void> {
  const found = await readIdentity(client);
  if (sameServer(found, expected)) return;
  throw new DatabaseStateError(
    'OTHER_SERVER',
    `another server answers now: timeline ${found.timeline}, system identifier ` +
      `${found.systemIdentifier ?? 'unknown'}; before it was timeline ${expected.timeline}, ` +
      `system identifier ${expected.systemIdentifier ?? 'unknown'}`,
    { retryable: true },
  );
}

/** From the name of the WAL file that is being written: the control file is behind after a promotion. */
const READ_TIMELINE = `
  SELECT CASE WHEN NOT pg_is_in_recovery()
           THEN ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::integer
         END AS timeline,
         has_function_privilege('pg_catalog.pg_control_system()', 'EXECUTE') AS may`;

/** By itself: a function without the right to call it fails even where CASE would not call it. */
const READ_SYSTEM = 'SELECT system_identifier::text AS identifier FROM pg_control_system()';
