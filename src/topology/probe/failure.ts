import { UnreachableError } from '../../errors.js';
import { errorText } from '../../postgres/session.js';
import { sqlState } from '../../postgres/sqlstate.js';

/** How a node failed to answer. */
export interface Failure {
  /**
   * - `down`: no server takes connections there, or the server says that it is going or not yet there.
   * - `silent`: no answer in time. It may be slow, or cut off from the controller alone.
   * - `closed`: it is there, and refuses the login: a password, a right, too many connections.
   */
  readonly kind: 'down' | 'silent' | 'closed';
  readonly reason: string;
  /** A connection that was kept broke before. */
  readonly dropped?: boolean;
}

/** Distinguished by SQLSTATE and the system's codes, never by the text. */
export function classifyFailure(error: unknown): Failure {
  const cause = error instanceof UnreachableError ? error.cause : error;
  const reason = errorText(error);
  const state = sqlState(cause);
  // 57P01 to 57P03: shutting down, crashed, starting up.
  if (state !== undefined) return { kind: state.startsWith('57P') ? 'down' : 'closed', reason };
  const codes = systemCodes(cause);
  if (codes.some((code) => DOWN.has(code))) return { kind: 'down', reason };
  return { kind: 'silent', reason };
}

/** Whether it means that the primary has gone, so that its traffic had better wait. */
export function isSuspicious({ kind, dropped }: Failure): boolean {
  return kind === 'down' || (dropped === true && kind === 'silent');
}

const DOWN = new Set(['ECONNREFUSED', 'ECONNRESET', 'EPIPE', 'ENOENT']);

/** Of a host with several addresses node gives the errors of all. */
function systemCodes(error: unknown): string[] {
  if (error instanceof AggregateError) return error.errors.flatMap(systemCodes);
  return error instanceof Error && 'code' in error && typeof error.code === 'string'
    ? [error.code]
    : [];
}
