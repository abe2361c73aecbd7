import type pg from 'pg';
import type { LocalSeen } from './observed.js';

/**
 * What a server says of itself.
 *
 * @param olderMs transactions and prepared transactions that are younger are left out
 */
export async function readLocal(session: pg.ClientBase, olderMs: number): Promise<LocalSeen> {
  const before = Date.now();
  const clock = await session.query<{ ms: number }>(CLOCK);
  const after = Date.now();
  const { rows } = await session.query<{ local: Omit<LocalSeen, 'clockMs' | 'clockErrorMs'> }>(
    LOCAL,
    [olderMs],
  );
  const [row] = rows;
  if (row === undefined) throw new Error('the statement LOCAL returns one row');
  return {
    ...row.local,
    clockMs: (clock.rows[0]?.ms ?? 0) - (before + after) / 2,
    clockErrorMs: (after - before) / 2,
  };
}

const CLOCK = 'SELECT (extract(epoch FROM clock_timestamp()) * 1000)::float8 AS ms';

/**
 * Takes no lock. Sessions of controllers are left out: a hold is an open transaction on purpose. So are slots
 * that PostgreSQL 17 and newer keep in step with the primary, which are never active.
 */
const LOCAL = `
  SELECT json_build_object(
    'isEncrypted', coalesce((SELECT s.ssl FROM pg_stat_ssl AS s WHERE s.pid = pg_backend_pid()), false),
    'pendingRestart', (
      SELECT coalesce(json_agg(s.name ORDER BY s.name), '[]') FROM pg_settings AS s WHERE s.pending_restart),
    'prepared', (
      SELECT coalesce(json_agg(json_build_object('gid', p.gid, 'ageMs', p.age_ms) ORDER BY p.prepared), '[]')
      FROM (
        SELECT x.gid, x.prepared, extract(epoch FROM clock_timestamp() - x.prepared) * 1000 AS age_ms
        FROM pg_prepared_xacts AS x
        WHERE x.database = current_database()
      ) AS p
      WHERE p.age_ms >= $1::float8 OR p.gid LIKE 'master\\_update\\_node %'),
    'transactions', (
      SELECT coalesce(json_agg(json_build_object(
        'pid', a.pid, 'role', a.usename, 'application', coalesce(nullif(a.application_name, ''), 'unnamed'),
        'state', a.state, 'ageMs', extract(epoch FROM clock_timestamp() - a.xact_start) * 1000
      ) ORDER BY a.xact_start), '[]')
      FROM pg_stat_activity AS a
      WHERE a.backend_type = 'client backend' AND a.pid <> pg_backend_pid()
        AND a.datname = current_database()
        AND a.application_name NOT LIKE 'mpp-controller %'
        AND clock_timestamp() - a.xact_start >= $1::float8 * interval '1 ms'
        AND (a.state LIKE 'idle in transaction%' OR a.backend_xid IS NOT NULL OR a.backend_xmin IS NOT NULL)),
    'slots', (
      SELECT coalesce(json_agg(json_build_object(
        'name', s.slot_name, 'isOfCitus', s.slot_name ~ '^citus_shard_(move|split)_slot'
      ) ORDER BY s.slot_name), '[]')
      FROM pg_replication_slots AS s
      WHERE NOT s.active AND NOT s.temporary AND NOT pg_is_in_recovery()
        AND NOT coalesce((to_jsonb(s)->>'synced')::boolean, false)),
    'standbys', (
      SELECT coalesce(json_agg(json_build_object(
        'application', r.application_name, 'host', host(r.client_addr)) ORDER BY r.pid), '[]')
      FROM pg_stat_replication AS r
      WHERE r.application_name NOT IN ('pg_basebackup', 'pg_receivewal')
        AND NOT EXISTS (
          SELECT FROM pg_replication_slots AS s WHERE s.active_pid = r.pid AND s.slot_type = 'logical'))
  ) AS local`;
