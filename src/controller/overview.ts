import type pg from 'pg';
import { PAST_SWITCHOVERS, type PastSwitchover } from './past-switchovers.js';
import { readStatus, type Status } from './status.js';
import { DEFAULT_LIMITS, type Failures, readFailures } from './trouble.js';

/** A row of mpp_blockers. */
export interface PresentBlocker {
  readonly groupid: number;
  readonly blocks: string;
  readonly described: string;
  /** HH:MM:SS in UTC; null where it is waited for. */
  readonly endsAt: string | null;
}

/** What a person looks at first. */
export interface Overview {
  readonly status: Status;
  readonly failures: readonly Failures[];
  readonly blockers: readonly PresentBlocker[];
  /** The newest first. */
  readonly switchovers: readonly PastSwitchover[];
}

const NEWEST = 10;

/** @param client a session that names the schema as `@mpp.` */
export async function readOverview(client: pg.ClientBase): Promise<Overview> {
  const status = await readStatus(client);
  const failures = await readFailures(client, DEFAULT_LIMITS.failedMs);
  const blockers = await client.query<PresentBlocker>(BLOCKERS);
  const past = await client.query<{ entry: PastSwitchover }>(PAST_SWITCHOVERS, [
    ...[null, null, NEWEST],
  ]);
  return {
    ...{ status, failures, blockers: blockers.rows },
    switchovers: past.rows.map(({ entry }) => entry),
  };
}

/** Locks nothing. Reads what is open. */
const BLOCKERS = `
  SELECT b.groupid, b.blocks, b.described, to_char(b.ends_at AT TIME ZONE 'UTC', 'HH24:MI:SS') AS "endsAt"
  FROM @mpp.mpp_blockers AS b
  ORDER BY b.groupid, b.ends_at`;
