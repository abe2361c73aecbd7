import type pg from 'pg';
import type { CatalogSeen, GroupsSeen, NodeSeen, TriggerSeen, WorkSeen } from './observed.js';
import { TRIGGERS } from './triggers.js';

// What the coordinator's tables say: pg_dist_node, and those of the schema. The sessions name the schema as `@mpp.`.

export async function readCatalog(session: pg.ClientBase): Promise<CatalogSeen> {
  const { rows } = await session.query<CatalogSeen>(CATALOG);
  return rows[0] ?? { nodes: [], groupsWithShards: [] };
}

/** Takes no lock. Placements are read once. */
const CATALOG = `
  SELECT ARRAY(SELECT DISTINCT p.groupid FROM pg_catalog.pg_dist_placement AS p ORDER BY p.groupid)
           AS "groupsWithShards",
         (SELECT coalesce(json_agg(json_build_object(
            'nodeid', n.nodeid, 'groupid', n.groupid,
            'address', json_build_object('host', n.nodename, 'port', n.nodeport),
            'role', n.noderole::text, 'isInCluster', n.nodecluster = 'default', 'isActive', n.isactive,
            'hasMetadata', n.hasmetadata, 'isSynced', n.metadatasynced
          ) ORDER BY n.groupid, n.noderole, n.nodeid), '[]')
          FROM pg_catalog.pg_dist_node AS n) AS nodes`;

/** The triggers of the control table, those that are missing included. */
export async function readTriggers(session: pg.ClientBase): Promise<TriggerSeen[]> {
  const { rows } = await session.query<TriggerSeen>(READ_TRIGGERS, [
    TRIGGERS.map(({ table }) => table),
    TRIGGERS.map(({ name }) => name),
  ]);
  return rows;
}

/** Takes no lock. The type of a table is in its schema. */
const READ_TRIGGERS = `
  SELECT w.tablename AS table, w.name, t.tgenabled::text AS enabled
  FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS w (tablename, name, place)
  LEFT JOIN pg_class AS c ON c.relname = w.tablename
    AND c.relnamespace = (SELECT y.typnamespace FROM pg_type AS y WHERE y.oid = pg_typeof(NULL::@mpp.mpp_tasks))
  LEFT JOIN pg_trigger AS t ON t.tgrelid = c.oid AND t.tgname = w.name
  ORDER BY w.place`;

export async function readWork(session: pg.ClientBase, olderMs: number): Promise<WorkSeen> {
  const { rows } = await session.query<{ work: WorkSeen }>(WORK, [olderMs]);
  const [row] = rows;
  if (row === undefined) throw new Error('the statement WORK returns one row');
  return row.work;
}

/** Takes no lock. A lock on the row of the leadership keeps a controller out only while none leads. */
const WORK = `
  SELECT json_build_object(
    'controllers', (
      SELECT coalesce(json_agg(json_build_object('state', s.state, 'host', s.host, 'version', s.version)), '[]')
      FROM @mpp.mpp_status AS s),
    'blockers', (
      SELECT coalesce(json_agg(json_build_object(
        'pid', b.pid, 'role', b.role, 'application', b.application, 'holds', b.holds, 'kind', b.kind)), '[]')
      FROM @mpp.mpp_leadership_blockers() AS b
      WHERE b.kind <> 'row' OR @mpp.mpp_leader_pid() IS NULL),
    'pending', (
      SELECT coalesce(json_agg(json_build_object(
        'id', q.id, 'groupid', q.groupid, 'event', q.event,
        'ageMs', extract(epoch FROM q.age) * 1000, 'why', concat_ws(': ', q.why, q.reason)
      ) ORDER BY q.position), '[]')
      FROM @mpp.mpp_queue AS q
      WHERE q.status = 'pending' AND extract(epoch FROM q.age) * 1000 >= $1::float8),
    'holds', (
      SELECT coalesce(json_agg(json_build_object(
        'groupid', h.groupid, 'pid', h.pid,
        'remainingMs', extract(epoch FROM h.deadline - clock_timestamp()) * 1000)), '[]')
      FROM @mpp.mpp_holds AS h)
  ) AS work`;

export async function readGroups(
  session: pg.ClientBase,
  nodes: readonly NodeSeen[],
): Promise<GroupsSeen> {
  const { rows } = await session.query<{ groups: GroupsSeen }>(GROUPS, [
    nodes.map(({ address }) => address.host),
    nodes.map(({ address }) => address.port),
  ]);
  return rows[0]?.groups ?? { systems: [], unregistered: [] };
}

/** Takes no lock. */
const GROUPS = `
  SELECT json_build_object(
    'systems', (
      SELECT coalesce(json_agg(json_build_object(
        'groupid', s.groupid, 'systemIdentifier', s.system_identifier, 'timeline', s.timeline,
        'isAccepted', s.accepted_at IS NOT NULL)), '[]')
      FROM @mpp.mpp_systems AS s),
    'unregistered', (
      SELECT coalesce(json_agg(DISTINCT jsonb_build_object(
        'groupid', m.groupid, 'address', jsonb_build_object('host', m.nodename, 'port', m.nodeport))), '[]')
      FROM @mpp.mpp_members AS m
      WHERE m.role = 'secondary' AND m.state <> 'removed' AND NOT m.noloadbalance
        AND (m.nodename, m.nodeport) NOT IN (SELECT * FROM unnest($1::text[], $2::integer[])))
  ) AS groups`;
