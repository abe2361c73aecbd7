import type pg from 'pg';
import { DatabaseStateError } from '../errors.js';
import { checkMigrated, isOpenSchema } from '../postgres/migrate.js';
import type { SchemaSeen, ServerSeen } from './observed.js';

export async function readServer(session: pg.ClientBase): Promise<ServerSeen> {
  const { rows } = await session.query<ServerSeen & { readable: boolean }>(SERVER);
  const [row] = rows;
  if (row === undefined) throw new Error('the statement SERVER returns one row');
  const { readable, ...server } = row;
  if (!readable) return server;
  const group = await session.query<Pick<ServerSeen, 'localGroup' | 'coordinator'>>(GROUP);
  return { ...server, ...group.rows[0] };
}

/** Takes no lock. */
const SERVER = `
  SELECT current_setting('server_version_num')::integer AS version,
         pg_is_in_recovery() AS "inRecovery",
         (SELECT format('%s:%s', w.sender_host, w.sender_port)
          FROM pg_stat_wal_receiver AS w
          WHERE w.sender_host IS NOT NULL) AS follows,
         (SELECT e.extversion FROM pg_extension AS e WHERE e.extname = 'citus') AS citus,
         (SELECT a.default_version FROM pg_available_extensions AS a WHERE a.name = 'citus') AS "citusAvailable",
         s.setting = 'on' AS "isReadOnly",
         s.source AS "readOnlySource",
         r.rolsuper AS "isSuperuser",
         (SELECT pg_has_role(m.oid, 'MEMBER') FROM pg_roles AS m WHERE m.rolname = 'mpp_controller') AS "isMember",
         NULL::integer AS "localGroup",
         NULL::text AS coordinator,
         coalesce(has_table_privilege(to_regclass('pg_catalog.pg_dist_local_group'), 'SELECT'), false) AS readable
  FROM pg_roles AS r
  CROSS JOIN pg_settings AS s
  WHERE r.rolname = current_user AND s.name = 'default_transaction_read_only'`;

const GROUP = `
  SELECT (SELECT l.groupid FROM pg_catalog.pg_dist_local_group AS l LIMIT 1) AS "localGroup",
         (SELECT format('%s:%s', n.nodename, n.nodeport)
          FROM pg_catalog.pg_dist_node AS n
          WHERE n.groupid = 0 AND n.noderole = 'primary' AND n.nodecluster = 'default'
          LIMIT 1) AS coordinator`;

export async function readSchema(session: pg.ClientBase, schema: string): Promise<SchemaSeen> {
  const isOpen = await isOpenSchema(session, schema);
  try {
    await checkMigrated(session, schema);
    return { code: null, reason: '', isOpen };
  } catch (error) {
    if (!(error instanceof DatabaseStateError)) throw error;
    return { code: error.code, reason: error.message, isOpen };
  }
}
