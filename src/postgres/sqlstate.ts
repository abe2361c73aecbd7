import pg from 'pg';

/** The SQLSTATE of an error that PostgreSQL sent, else undefined. */
export function sqlState(error: unknown): string | undefined {
  return error instanceof pg.DatabaseError ? error.code : undefined;
}

/**
 * True when the session is gone: ended by an administrator, a restart, a timeout, or the network. Class
 * 08 from the server does not say so: with 08006 Citus reports another node that it cannot reach.
 */
export function isSessionLost(error: unknown): boolean {
  const state = sqlState(error);
  // node-postgres throws a plain Error, or one of the socket's, when the connection breaks.
  if (state === undefined) return true;
  return state === '08P01' || state.startsWith('57P') || SESSION_TIMEOUTS.has(state);
}

/** True when the transaction was picked to give way and may simply be run again. */
export function isVictim(error: unknown): boolean {
  const state = sqlState(error);
  return state === '40P01' || state === '40001';
}

/**
 * True when no retry can help: the values themselves are refused or the server cannot do
 * this at all (0A). A missing right or function may be put right between two tries, so it is not here.
 */
export function isHopeless(error: unknown): boolean {
  const state = sqlState(error);
  return state !== undefined && (/^(22|0A)/.test(state) || REFUSED_VALUES.has(state));
}

/** True when a statement was cancelled: by its timeout, or by pg_cancel_backend. */
export function isCancelled(error: unknown): boolean {
  return sqlState(error) === '57014';
}

/** Adds what is known of an error's cause to what PostgreSQL says of it. */
export function addDetail(error: unknown, sentence: string): void {
  if (!(error instanceof pg.DatabaseError)) return;
  error.detail = [error.detail, sentence].filter(Boolean).join('; ');
}

/** True when a unique value is another row's by now. */
export function isTaken(error: unknown): boolean {
  return sqlState(error) === '23505';
}

/** NULL where none may be, and a failed check. A row that is there already may go: that is no refusal. */
const REFUSED_VALUES = new Set(['23502', '23514']);

/** idle_in_transaction_session_timeout, idle_session_timeout, transaction_timeout. */
const SESSION_TIMEOUTS = new Set(['25P03', '57P05', '25P04']);

/**
 * Of an error of a login: true when the server refused it, for wrong credentials, no entry in pg_hba.conf,
 * no such database or no right to connect to it. Only a person can change that.
 */
export function isLoginRefused(error: unknown): boolean {
  for (let cause = error; cause instanceof Error; cause = cause.cause) {
    const state = sqlState(cause);
    if (state !== undefined) return /^28/.test(state) || REFUSED_LOGIN.has(state);
  }
  return false;
}

/** invalid_catalog_name, and insufficient_privilege for CONNECT. */
const REFUSED_LOGIN = new Set(['3D000', '42501']);

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
