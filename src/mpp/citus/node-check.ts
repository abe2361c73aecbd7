import type { ClientBase } from 'pg';
import type { AskNode } from '../abstract.js';
import type { NodeAnswer } from '../node-answer.js';

/**
 * Prepares a session for asking its node: what cannot change while the server runs is read once.
 *
 * @param session in the Citus database of the node.
 */
export async function prepareAsking(session: ClientBase): Promise<AskNode> {
  const { rows } = await session.query<{
    startedAt: string;
    maySeeSystem: boolean;
    maySeeGroup: boolean;
  }>(PREPARE);
  const [node] = rows;
  if (node === undefined) throw new Error('the statement PREPARE returns one row');
  const systemIdentifier = node.maySeeSystem ? await readSystemIdentifier(session) : null;
  const text = node.maySeeGroup ? ASK_WITH_GROUP : ASK;
  return async () => {
    const answer = await session.query<
      Pick<NodeAnswer, 'inRecovery' | 'timeline'> & { localGroup?: number | null }
    >(text);
    const [row] = answer.rows;
    if (row === undefined) throw new Error('the statement ASK returns one row');
    const { localGroup = null, ...rest } = row;
    return checked({ ...rest, localGroup, systemIdentifier, startedAt: node.startedAt });
  };
}

/** What answers may be no PostgreSQL at all. @throws Error when no PostgreSQL answers so */
function checked(answer: NodeAnswer): NodeAnswer {
  const { inRecovery, timeline, localGroup, systemIdentifier, startedAt } = answer;
  const isWhole = (value: unknown): boolean => value === null || Number.isInteger(value);
  const isNumber = (value: string): boolean => /^\d{1,20}(\.\d{1,9})?$/.test(value);
  if (
    typeof inRecovery === 'boolean' &&
    isWhole(timeline) &&
    isWhole(localGroup) &&
    (systemIdentifier === null || isNumber(systemIdentifier)) &&
    isNumber(startedAt)
  ) {
    return answer;
  }
  throw new Error('the node answers what no PostgreSQL server does');
}

/** One statement finds PostgreSQL's own objects alone from then on, and none that the node's role made. */
const PREPARE = `
  SELECT pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', false),
         pg_catalog.date_part('epoch', pg_catalog.pg_postmaster_start_time())::pg_catalog.text AS "startedAt",
         pg_catalog.has_function_privilege('pg_catalog.pg_control_system()', 'EXECUTE') AS "maySeeSystem",
         COALESCE(pg_catalog.has_table_privilege(
           pg_catalog.to_regclass('pg_catalog.pg_dist_local_group'), 'SELECT'), false) AS "maySeeGroup"`;

async function readSystemIdentifier(session: ClientBase): Promise<string | null> {
  const { rows } = await session.query<{ identifier: string }>(SYSTEM_IDENTIFIER);
  return rows[0]?.identifier ?? null;
}

const SYSTEM_IDENTIFIER = 'SELECT system_identifier::text AS identifier FROM pg_control_system()';

/** The timeline is in the name of the WAL file being written: the control file is behind after a promotion. */
const STANDING = `
  SELECT r.recovery AS "inRecovery",
         CASE WHEN NOT r.recovery
           THEN ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::integer
         END AS timeline`;

const IN_RECOVERY = '(SELECT pg_is_in_recovery() AS recovery OFFSET 0) AS r';

const ASK = `${STANDING} FROM ${IN_RECOVERY}`;

const ASK_WITH_GROUP = `${STANDING},
         (SELECT g.groupid FROM pg_catalog.pg_dist_local_group AS g LIMIT 1) AS "localGroup"
  FROM ${IN_RECOVERY}`;
