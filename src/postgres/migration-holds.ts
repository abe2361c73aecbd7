import pg from 'pg';

/** A sentence for each group that is held now: a migration makes its controller stand down. */
export async function heldGroups(client: pg.ClientBase, schema: string): Promise<string[]> {
  const prefix = `${pg.escapeIdentifier(schema)}.`;
  const { rows: tables } = await client.query<{ present: boolean }>(
    'SELECT to_regclass($1) IS NOT NULL AND to_regclass($2) IS NOT NULL AS present',
    [`${prefix}mpp_tasks`, `${prefix}mpp_controllers`],
  );
  if (tables[0]?.present !== true) return [];
  const { rows } = await client.query<{ groupid: number; since: string; controller: string }>(
    HELD.replaceAll('@mpp.', prefix),
  );
  return rows.map(
    ({ groupid, since, controller }) =>
      `group ${groupid} is held since ${since} by controller ${controller}`,
  );
}

const HELD = `
  SELECT t.groupid,
         to_char(min(t.held_at), 'YYYY-MM-DD HH24:MI:SS TZ') AS since,
         concat_ws(' ', max(t.claimed_by), max(format('(pid %s on %s, version %s)', c.pid, c.host, c.version)))
           AS controller
  FROM @mpp.mpp_tasks AS t
  LEFT JOIN @mpp.mpp_controllers AS c ON c.id = t.claimed_by
  WHERE t.finished_at IS NULL AND t.status = 'holding'
  GROUP BY t.groupid
  ORDER BY t.groupid`;
