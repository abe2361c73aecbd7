import { isLoginRefused, sqlState } from './sqlstate.js';

/** What a person can do about an error that PostgreSQL reports, or undefined where that is not known. Pure. */
export function remedyOf(error: unknown): string | undefined {
  for (let cause = error; cause instanceof Error; cause = cause.cause) {
    const state = sqlState(cause);
    if (state === undefined) continue;
    return REMEDIES[state] ?? (isLoginRefused(cause) ? REMEDIES['28000'] : undefined);
  }
  return undefined;
}

const REMEDIES: Readonly<Record<string, string>> = {
  '28P01': 'check the user and the password in DATABASE_URL, PGPASSWORD or .pgpass',
  '28000':
    'check the user in DATABASE_URL and the entries for it in pg_hba.conf: host, database and encryption',
  '3D000': 'check the database in DATABASE_URL, or create it with mpp-controller bootstrap',
  '53100': 'make room on the disk of the coordinator',
  '53200': 'the server is out of memory: raise max_locks_per_transaction, or give it more',
  '53300': 'raise max_connections, or lower MPP_MAX_SESSIONS',
  '25006': 'the server takes no writes: check default_transaction_read_only',
  '42501':
    'make the role of DATABASE_URL a member of mpp_controller, and run mpp-controller bootstrap as a superuser',
};
