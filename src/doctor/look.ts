import type pg from 'pg';
import type { Settings } from '../config/settings.js';
import { DatabaseStateError } from '../errors.js';
import { checkMigrated } from '../postgres/migrate.js';
import {
  chooseServer,
  closeSession,
  describeServers,
  errorText,
  isMissingDatabase,
  openSession,
} from '../postgres/session.js';
import { remedyOf } from '../postgres/sqlstate.js';
import type { Observed, SchemaSeen, ServerSeen, Target } from './observed.js';

/** How long a server may take to answer, in milliseconds. */
const ANSWER_MS = 2_000;

/** What keeps the doctor from waiting: for a server, for a lock, and for a statement. */
const BOUNDS = {
  connectionTimeoutMillis: ANSWER_MS,
  statement_timeout: 5_000,
  lock_timeout: ANSWER_MS,
  query_timeout: 6_000,
};

/** Looks at one database. Changes nothing. */
export async function look(settings: Settings): Promise<Observed> {
  const nothing = { server: null, schema: null };
  let session: pg.Client;
  let target = targetOf(settings);
  try {
    const connection = await chooseServer({ ...settings.connection, ...BOUNDS });
    target = targetOf({ ...settings, connection });
    session = await openSession(connection, 'doctor', settings.schema);
  } catch (error) {
    const unreachable = {
      reason: errorText(error),
      remedy: remedyOf(error) ?? null,
      isMissingDatabase: isMissingDatabase(error),
    };
    return { ...nothing, target, unreachable };
  }
  try {
    const server = await readServer(session);
    const isCoordinator = !server.inRecovery && server.localGroup === 0;
    const schema = isCoordinator ? await readSchema(session, settings.schema) : null;
    return { target, unreachable: null, server, schema };
  } finally {
    await closeSession(session);
  }
}

function targetOf({ connection, schema }: Pick<Settings, 'connection' | 'schema'>): Target {
  const { user = '', database = user } = connection;
  return { node: describeServers(connection), database, user, schema };
}

async function readServer(session: pg.ClientBase): Promise<ServerSeen> {
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
         NULL::integer AS "localGroup",
         NULL::text AS coordinator,
         coalesce(has_table_privilege(to_regclass('pg_catalog.pg_dist_local_group'), 'SELECT'), false) AS readable`;

const GROUP = `
  SELECT (SELECT l.groupid FROM pg_catalog.pg_dist_local_group AS l LIMIT 1) AS "localGroup",
         (SELECT format('%s:%s', n.nodename, n.nodeport)
          FROM pg_catalog.pg_dist_node AS n
          WHERE n.groupid = 0 AND n.noderole = 'primary' AND n.nodecluster = 'default'
          LIMIT 1) AS coordinator`;

async function readSchema(session: pg.ClientBase, schema: string): Promise<SchemaSeen> {
  try {
    await checkMigrated(session, schema);
    return { code: null, reason: '' };
  } catch (error) {
    if (!(error instanceof DatabaseStateError)) throw error;
    return { code: error.code, reason: error.message };
  }
}
