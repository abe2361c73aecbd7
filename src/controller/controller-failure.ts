import { DatabaseStateError, MppError, UnreachableError } from '../errors.js';
import { type Logger, OncePerChange } from '../logger.js';
import { remedyOf, isLoginRefused, isSessionLost, sqlState } from '../postgres/sqlstate.js';
import { loginDelay } from '../postgres/pool.js';
import { errorText } from '../postgres/session.js';

/** What kept a controller from working, by what can be done about it. */
export type Trouble =
  /** The server is a standby: it may be promoted at any moment. */
  | 'standby'
  /** The network or the server is gone: it may be back at any moment. */
  | 'network'
  /** The server refused the login. */
  | 'login'
  /** No session, and it is not clear why. */
  | 'unclear'
  /** The database is not what the controller needs. */
  | 'state'
  /** PostgreSQL refused a statement. */
  | 'refused'
  /** A mistake in this program, most likely. */
  | 'unknown';

const SOON_MS = 250;
const UNCLEAR_MOST_MS = 1_000;

/** Codes of node:net and node:dns for a host or a server that is not there now. */
const NETWORK = new Set([
  'ECONNREFUSED',
  'ECONNRESET',
  'ECONNABORTED',
  'EPIPE',
  'ETIMEDOUT',
  'EHOSTUNREACH',
  'EHOSTDOWN',
  'ENETUNREACH',
  'ENETDOWN',
  'ENOENT',
  'EAI_AGAIN',
]);

/** Says what kind of trouble an error is. Pure. */
export function classifyTrouble(error: unknown): Trouble {
  if (error instanceof DatabaseStateError)
    return error.code === 'IN_RECOVERY' ? 'standby' : 'state';
  if (error instanceof UnreachableError) {
    if (isLoginRefused(error)) return 'login';
    return isNetwork(error) ? 'network' : 'unclear';
  }
  if (error instanceof MppError) return 'state';
  if (sqlState(error) !== undefined) return isSessionLost(error) ? 'network' : 'refused';
  if (isNetwork(error)) return 'network';
  // node-postgres throws a plain Error when a session breaks; mistakes of this program have classes of their own.
  return error instanceof Error && error.constructor === Error ? 'unclear' : 'unknown';
}

/**
 * Milliseconds until the next attempt.
 *
 * @param attempt how many in a row have ended with the same trouble, this one included
 */
export function troubleDelay(trouble: Trouble, attempt: number, heartbeatMs: number): number {
  switch (trouble) {
    case 'standby':
    case 'network':
      return SOON_MS;
    case 'unclear':
      return Math.min(loginDelay(attempt), UNCLEAR_MOST_MS);
    case 'state':
      return heartbeatMs;
    case 'login':
    case 'refused':
    case 'unknown':
      return loginDelay(attempt);
  }
}

/** Starting up, shutting down and out of connections are over soon; class 57P and 53 say so. */
function isNetwork(error: unknown): boolean {
  if (error instanceof AggregateError) return error.errors.every(isNetwork);
  for (let cause = error; cause instanceof Error; cause = cause.cause) {
    if (cause instanceof AggregateError) return cause.errors.every(isNetwork);
    const state = sqlState(cause);
    if (state !== undefined) return /^(57P|53|08)/.test(state);
    if ('code' in cause && NETWORK.has(String(cause.code))) return true;
  }
  return false;
}

/** Says what keeps a controller from working, once for each change, and how long to wait. */
export class TroubleReporter {
  readonly #logger: Logger;
  readonly #heartbeatMs: number;
  readonly #said = new OncePerChange();
  #kind: Trouble | undefined;
  /** How often in a row it has come. */
  #times = 0;

  constructor(logger: Logger, heartbeatMs: number) {
    this.#logger = logger;
    this.#heartbeatMs = heartbeatMs;
  }

  /** @returns milliseconds until the next attempt. */
  report(error: unknown): number {
    const kind = classifyTrouble(error);
    this.#times = this.#kind === kind ? this.#times + 1 : 1;
    this.#kind = kind;
    const remedy = remedyOf(error);
    const text = `${errorText(error)}${remedy === undefined ? '' : `; ${remedy}`}`;
    if (kind === 'unknown') this.#said.say(text, () => this.#logger.error({ err: error }, text));
    else this.warn(kind === 'state' ? `stands down: ${text}` : text);
    return troubleDelay(kind, this.#times, this.#heartbeatMs);
  }

  warn(line: string): void {
    this.#said.say(line, () => this.#logger.warn(line));
  }

  /** Says what is as it should be; that is not repeated. */
  note(line: string): void {
    this.#said.say(line, () => this.#logger.info(line), Infinity);
  }

  /** The next trouble is the first of its kind again. */
  isOver(): void {
    this.#kind = undefined;
  }

  /** The same trouble is news again. */
  clear(): void {
    this.#said.clear();
  }
}
