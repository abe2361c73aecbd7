import type { ClientBase } from 'pg';
import { RETRY_INTERVAL, SYNC_AGAIN } from './gucs.js';

/** Citus's own default is 5 s, and `mpp-controller gucs` wants 200 ms. */
const LONG_MS = 1_000;

interface Interval {
  /** As PostgreSQL writes it, such as `5s`. */
  readonly value: string;
  readonly ms: number;
}

/**
 * Looks whether Citus may keep the other nodes out of date for long after a row has moved: clients that
 * enter there wait so long.
 *
 * @returns sentences, each with the command that changes it; none where nothing is to be said.
 */
export async function adviseSyncInterval(session: ClientBase): Promise<string[]> {
  const { rows } = await session.query<Interval>(READ_INTERVAL, [RETRY_INTERVAL]);
  return rows[0] === undefined ? [] : describeInterval(rows[0]);
}

/** Pure. */
export function describeInterval({ value, ms }: Interval): string[] {
  if (ms <= LONG_MS) return [];
  return [
    `${RETRY_INTERVAL} is ${value}: after a switchover, clients of other nodes than the coordinator can wait ` +
      `so long for the new row; run mpp-controller gucs --apply or, where a configuration file sets it, ` +
      `ALTER SYSTEM SET ${RETRY_INTERVAL} = '${SYNC_AGAIN}' and SELECT pg_reload_conf()`,
  ];
}

/** No row where the parameter is not known. */
const READ_INTERVAL = `
  SELECT s.value, (extract(epoch FROM s.value::interval) * 1000)::float8 AS ms
  FROM current_setting($1, true) AS s (value)
  WHERE s.value ~ '^[0-9.]+ ?(us|ms|s|min|h|d)$'`;
