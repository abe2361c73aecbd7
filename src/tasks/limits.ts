import type { Queryable } from '../postgres/queryable.js';

/** What a client may ask for, in milliseconds. */
interface Limits {
  readonly maxTimeoutMs: number;
  readonly minCooldownMs: number;
}

/**
 * Has the trigger of mpp_tasks hold clients to these limits, and notes the present name and members of the
 * roles that are limited to groups. Writes only what differs, and waits for no lock.
 */
export async function keepLimits(
  db: Queryable,
  controller: string,
  { maxTimeoutMs, minCooldownMs }: Limits,
): Promise<void> {
  await db.query({
    name: 'mpp-keep-limits',
    text: KEEP_LIMITS,
    values: [controller, maxTimeoutMs, minCooldownMs],
  });
}

const KEEP_LIMITS = `
  SELECT @mpp.mpp_keep_limits($1::text, $2::float8 * interval '1 millisecond', $3::float8 * interval '1 millisecond')`;
