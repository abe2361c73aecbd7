import type { Queryable } from '../postgres/queryable.js';
import { errorText } from '../postgres/session.js';
import { sqlState } from '../postgres/sqlstate.js';

/**
 * What an error of a session in another database means, and what to do about it. After a lock timeout it names the
 * session that has locked mpp_tasks there.
 *
 * @param db sessions in the other database
 */
export async function describeTrouble(
  db: Queryable,
  schema: string,
  error: unknown,
): Promise<string> {
  if (isUnprepared(error)) {
    return 'it has no tables of mpp-controller; run mpp-controller migrate, or take it out of MPP_DATABASES';
  }
  if (sqlState(error) !== LOCK_NOT_AVAILABLE) return errorText(error);
  const { rows } = await db
    .query<{ blocker: string }>({ name: 'mpp-lock-holder', text: HOLDER, values: [schema] })
    .catch(() => ({ rows: [] }));
  return rows[0]?.blocker ?? `mpp_tasks is locked there: ${errorText(error)}`;
}

/** True where the schema, a table or a function of it is missing: no report can be forwarded there. */
export function isUnprepared(error: unknown): boolean {
  return ['42P01', '42883', '3F000'].includes(sqlState(error) ?? '');
}

const LOCK_NOT_AVAILABLE = '55P03';

/** The strongest lock first: a weak one is held for a row, and only a writer's can be in conflict. */
const HOLDER = `
  SELECT format('mpp_tasks is locked there by pid %s (%s), whose transaction began %s s ago; wait for it, or run ' ||
                'SELECT pg_terminate_backend(%s)',
                a.pid, coalesce(nullif(a.application_name, ''), a.usename, 'unknown'),
                coalesce(round(extract(epoch FROM clock_timestamp() - a.xact_start)), 0), a.pid) AS blocker
  FROM pg_locks AS l
  JOIN pg_stat_activity AS a ON a.pid = l.pid
  WHERE l.locktype = 'relation' AND l.granted
    AND l.relation = to_regclass(format('%I.mpp_tasks', $1::text))
    AND l.database = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
    AND l.mode <> 'AccessShareLock'
    AND l.pid <> pg_backend_pid()
  ORDER BY array_position(
             ARRAY['AccessExclusiveLock', 'ExclusiveLock', 'ShareRowExclusiveLock', 'ShareLock'], l.mode),
           a.xact_start
  LIMIT 1`;
