/**
 * The errors of this package. Each says what happened, to what, and what to do; callers tell them
 * apart by class, `code` and `sqlstate`, never by message.
 */
export class MppError extends Error {
  override readonly name: string = 'MppError';
  readonly code: string;
  /** True when the same call may succeed later without anyone changing anything. */
  readonly retryable: boolean;
  /** The SQLSTATE that PostgreSQL reported, when it came from there. */
  readonly sqlstate: string | undefined;

  constructor(
    code: string,
    message: string,
    options: { cause?: unknown; retryable?: boolean; sqlstate?: string | undefined } = {},
  ) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.code = code;
    this.retryable = options.retryable ?? false;
    this.sqlstate = options.sqlstate;
  }
}

/** A setting, flag or argument that cannot be used. The commands exit with code 2. */
export class ConfigError extends MppError {
  override readonly name = 'ConfigError';
  constructor(message: string, cause?: unknown) {
    super('CONFIG', message, { cause });
  }
}

/** The database answered, and is not what the command needs: no Citus, no schema, too new, read-only. */
export class DatabaseStateError extends MppError {
  override readonly name = 'DatabaseStateError';
  constructor(code: string, message: string, options: { retryable?: boolean } = {}) {
    super(code, message, options);
  }
}

/** A session broke in the middle of its work: the same can be done on another. */
export class SessionLostError extends MppError {
  override readonly name = 'SessionLostError';
  constructor(message: string, cause?: unknown) {
    super('SESSION_LOST', message, { cause, retryable: true });
  }
}

/** No session with the database could be had, or it was lost. */
export class UnreachableError extends MppError {
  override readonly name = 'UnreachableError';
  constructor(message: string, cause?: unknown) {
    super('UNREACHABLE', message, { cause, retryable: true });
  }
}

/** All sessions that this controller may open for a purpose are in use (MPP_MAX_SESSIONS): try again later. */
export class PoolBusyError extends MppError {
  override readonly name = 'PoolBusyError';
  constructor(message: string) {
    super('POOL_BUSY', message, { retryable: true });
  }
}
