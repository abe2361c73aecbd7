import type { KnownSystem } from '../mpp/node-answer.js';
import type { Queryable } from '../postgres/queryable.js';
import type { Address } from '../tasks/task.js';

/** What is known of a group's system. @returns null when nothing is. */
export async function readSystem(db: Queryable, groupid: number): Promise<KnownSystem | null> {
  const { rows } = await db.query<KnownSystem>({
    name: 'mpp-read-system',
    text: READ_SYSTEM,
    values: [groupid],
  });
  return rows[0] ?? null;
}

const READ_SYSTEM = `
  SELECT s.system_identifier AS "systemIdentifier", s.timeline, s.accepted_at IS NOT NULL AS "isAccepted"
  FROM @mpp.mpp_systems AS s
  WHERE s.groupid = $1`;

/** What a node has said that is, or becomes, the primary of its group. */
export interface SeenSystem {
  readonly groupid: number;
  readonly address: Address;
  readonly systemIdentifier: string | null;
  readonly timeline: number | null;
}

/** Writes down what a node was confirmed with. It ends what an operator has accepted. */
export async function confirmSystem(db: Queryable, seen: SeenSystem): Promise<void> {
  await db.query({ name: 'mpp-confirm-system', text: CONFIRM_SYSTEM, values: valuesOf(seen) });
}

/** Locks the row of the group, until the statement commits. */
const CONFIRM_SYSTEM = `
  INSERT INTO @mpp.mpp_systems AS s (groupid, nodename, nodeport, system_identifier, timeline)
  VALUES ($1, $2, $3, $4, $5)
  ON CONFLICT (groupid) DO UPDATE
  SET system_identifier = coalesce(excluded.system_identifier, s.system_identifier),
      timeline = coalesce(excluded.timeline, s.timeline),
      nodename = excluded.nodename,
      nodeport = excluded.nodeport,
      since = CASE WHEN s.system_identifier IS DISTINCT FROM excluded.system_identifier
        THEN clock_timestamp() ELSE s.since END,
      accepted_at = NULL,
      forgotten = NULL
  WHERE (s.system_identifier, s.timeline, s.nodename, s.nodeport, s.accepted_at, s.forgotten) IS DISTINCT FROM
        (excluded.system_identifier, excluded.timeline, excluded.nodename, excluded.nodeport, NULL, NULL)`;

/**
 * Learns a group's system from its registered node. A system that is known already, and one that an
 * operator has had forgotten, stay as they are.
 */
export async function learnSystem(db: Queryable, seen: SeenSystem): Promise<void> {
  await db.query({ name: 'mpp-learn-system', text: LEARN_SYSTEM, values: valuesOf(seen) });
}

/** Locks the row of the group, until the statement commits. */
const LEARN_SYSTEM = `
  INSERT INTO @mpp.mpp_systems AS s (groupid, nodename, nodeport, system_identifier, timeline)
  VALUES ($1, $2, $3, $4, $5)
  ON CONFLICT (groupid) DO UPDATE
  SET system_identifier = coalesce(s.system_identifier, excluded.system_identifier),
      timeline = greatest(s.timeline, excluded.timeline),
      nodename = excluded.nodename,
      nodeport = excluded.nodeport,
      since = CASE WHEN s.system_identifier IS NULL THEN clock_timestamp() ELSE s.since END,
      accepted_at = NULL,
      forgotten = NULL
  WHERE (s.accepted_at IS NULL OR s.forgotten <> excluded.system_identifier)
    AND (s.system_identifier IS NULL OR s.system_identifier = excluded.system_identifier)
    AND (s.system_identifier, s.timeline, s.nodename, s.nodeport) IS DISTINCT FROM
        (excluded.system_identifier, excluded.timeline, excluded.nodename, excluded.nodeport)`;

function valuesOf({ groupid, address, systemIdentifier, timeline }: SeenSystem): unknown[] {
  return [groupid, address.host, address.port, systemIdentifier, timeline];
}

/** A registered primary, and the system that its group is known to be. */
export interface RegisteredPrimary {
  readonly groupid: number;
  readonly address: Address;
  /** True when this node has not said the group's system yet. */
  readonly isNew: boolean;
  readonly systemIdentifier: string | null;
  readonly forgotten: string | null;
}

/**
 * The registered primary of every worker group.
 *
 * @param nodesQuery SELECT of the catalog's rows, see AbstractMPP.nodesQuery: a constant, never input.
 */
export async function readPrimaries(
  db: Queryable,
  nodesQuery: string,
): Promise<RegisteredPrimary[]> {
  const { rows } = await db.query<
    Omit<RegisteredPrimary, 'address'> & { nodename: string; nodeport: number }
  >({ name: 'mpp-read-primaries', text: primariesStatement(nodesQuery) });
  return rows.map(({ nodename, nodeport, ...rest }) => ({
    ...rest,
    address: { host: nodename, port: nodeport },
  }));
}

function primariesStatement(nodesQuery: string): string {
  return `
  SELECT n.groupid, n.nodename, n.nodeport, s.system_identifier AS "systemIdentifier", s.forgotten,
         s.timeline IS NULL OR (s.nodename, s.nodeport) IS DISTINCT FROM (n.nodename, n.nodeport) AS "isNew"
  FROM (${nodesQuery}) AS n
  LEFT JOIN @mpp.mpp_systems AS s ON s.groupid = n.groupid
  WHERE n.in_cluster AND n.noderole = 'primary' AND n.groupid <> 0`;
}
