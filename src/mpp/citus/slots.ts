import type { Queryable } from '../../postgres/queryable.js';
import type { ReplicationSlot } from '../setup.js';

/** The rule is in the SQL contract, so that a hook has the same answer without this program. */
export async function ignoreReplicationSlot(
  db: Queryable,
  { name, type, database, plugin }: ReplicationSlot,
): Promise<boolean> {
  const { rows } = await db.query<{ ignored: boolean }>(IGNORE_SLOT, [
    name,
    type,
    database,
    plugin,
  ]);
  return rows[0]?.ignored ?? false;
}

const IGNORE_SLOT =
  'SELECT @mpp.mpp_ignore_replication_slot($1::text, $2::text, $3::text, $4::text) AS ignored';
