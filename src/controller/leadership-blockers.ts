import { setTimeout as delay } from 'node:timers/promises';
import type pg from 'pg';
import { DatabaseStateError } from '../errors.js';

/** A session that keeps a controller from taking the leadership. */
export interface Blocker {
  readonly pid: number;
  readonly role: string | null;
  readonly application: string;
  readonly holds: string;
  /** A leader of a version before mpp_leadership, the leader of another schema, or a lock on the table. */
  readonly kind: 'older' | 'schema' | 'row';
  readonly lockClass: number | null;
}

/** The lock of a session that leads, or is about to. */
export interface OwnLock {
  readonly key: number;
  readonly lockClass: number;
  isHeld: boolean;
}

/** How long the controllers of two schemas may take to find out which of them gives way. */
const SETTLE_MS = 1_000;
const LOOK_MS = 50;

export async function readBlockers(
  client: pg.ClientBase,
  kind: Blocker['kind'],
): Promise<Blocker[]> {
  const { rows } = await client.query<Blocker>({
    name: 'mpp-blockers',
    text: BLOCKERS,
    values: [kind],
  });
  return rows;
}

const BLOCKERS = `
  SELECT b.pid, b.role, b.application, b.holds, b.kind, b.lock_class AS "lockClass"
  FROM @mpp.mpp_leadership_blockers() AS b
  WHERE b.kind = $1`;

export function describeBlockers(blockers: readonly Blocker[]): string {
  return blockers
    .map(
      ({ pid, role, application, holds }) =>
        `pid ${pid} (role ${role ?? 'unknown'}, application ${application}) holds ${holds}`,
    )
    .join('; ');
}

/** @throws DatabaseStateError `OTHER_SCHEMA` when the controller of another schema leads in this database. */
export async function refuseOtherSchema(client: pg.ClientBase): Promise<void> {
  const [other] = await readBlockers(client, 'schema');
  if (other !== undefined && !(await isGoneSoon(client, other))) throw otherSchema(other);
}

/**
 * Two controllers of different schemas would change one pg_dist_node. Each has its lock before it looks,
 * so at least one sees the other. One that leads does not look any more; of two that are about to, the
 * one with the higher class gives way.
 *
 * @param own this session's lock
 * @param unlock gives it up
 * @returns false when this one has given way; it may try again.
 * @throws DatabaseStateError `OTHER_SCHEMA` when the other one stays.
 */
export async function settleWithOthers(
  client: pg.ClientBase,
  own: OwnLock,
  unlock: () => Promise<void>,
): Promise<boolean> {
  const [other] = await readBlockers(client, 'schema');
  if (other === undefined) return true;
  const givesWay = own.lockClass > (other.lockClass ?? 0);
  if (givesWay) await unlock();
  if (!(await isGoneSoon(client, other))) throw otherSchema(other);
  return !givesWay && (await readBlockers(client, 'schema')).length === 0;
}

async function isGoneSoon(client: pg.ClientBase, other: Blocker): Promise<boolean> {
  const until = performance.now() + SETTLE_MS;
  while (performance.now() < until) {
    await delay(LOOK_MS);
    if (!(await readBlockers(client, 'schema')).some(({ pid }) => pid === other.pid)) return true;
  }
  return false;
}

function otherSchema(other: Blocker): DatabaseStateError {
  return new DatabaseStateError(
    'OTHER_SCHEMA',
    `${describeBlockers([other])}: two controllers would change one pg_dist_node; stop that one, or ` +
      'set MPP_SCHEMA to its schema',
  );
}
