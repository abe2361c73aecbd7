import { CommanderError } from 'commander';
import { within } from '../wait.js';
import { ConfigError, DatabaseStateError, MppError } from '../errors.js';
import { errorText } from '../postgres/session.js';
import { sqlState } from '../postgres/sqlstate.js';

/**
 * What a command's exit code says. `usage`: only a person can put it right, in the command line, the
 * settings or the database. The last four are those of `notify`, `switchover` and `restart`.
 */
export const EXIT = {
  ok: 0,
  failure: 1,
  usage: 2,
  refused: 3,
  timedOut: 4,
  unreachable: 5,
  incomplete: 6,
} as const;

type ExitCode = (typeof EXIT)[keyof typeof EXIT];

/** A command's answer other than success, with the exit code that tells it. */
export class CommandError extends MppError {
  override readonly name = 'CommandError';
  readonly exitCode: ExitCode;
  constructor(exitCode: ExitCode, message: string, cause?: unknown) {
    super('COMMAND', message, { cause });
    this.exitCode = exitCode;
  }
}

/** Trouble that `status --check` or `doctor` has printed, with the exit code that says how bad it is. */
export class CheckError extends MppError {
  override readonly name = 'CheckError';
  readonly exitCode: number;
  constructor(exitCode: number) {
    super('CHECK', 'the check found trouble');
    this.exitCode = exitCode;
  }
}

/** How a command ends. */
export interface Ending {
  readonly exitCode: number;
  /** For standard error; null when all is said. */
  readonly line: string | null;
}

/** What a thrown value means to the caller of the command: an exit code and one line. */
export function endingOf(error: unknown): Ending {
  if (error instanceof CommanderError) {
    // Commander has printed its own line. It throws for --help and --version as well, with exit code 0.
    return { exitCode: error.exitCode === 0 ? EXIT.ok : EXIT.usage, line: null };
  }
  if (error instanceof CommandError)
    return { exitCode: error.exitCode, line: oneLine(error.message) };
  if (error instanceof CheckError) return { exitCode: error.exitCode, line: null };
  if (error instanceof ConfigError) return { exitCode: EXIT.usage, line: oneLine(error.message) };
  return { exitCode: needsOperator(error) ? EXIT.usage : EXIT.failure, line: lineOf(error) };
}

/** Whether the same command fails in the same way until a person has changed something. */
export function needsOperator(error: unknown): boolean {
  if (error instanceof DatabaseStateError) return OPERATOR_CODES.has(error.code);
  const states = statesOf(error);
  return states.length > 0 && states.every((state) => OPERATOR_STATES.test(state));
}

/** The SQLSTATEs of an error and of what caused it; of several hosts those of all. */
function statesOf(error: unknown): string[] {
  const state = sqlState(error);
  if (state !== undefined) return [state];
  if (error instanceof AggregateError) {
    // A host that did not answer may have accepted the login.
    return error.errors.flatMap((one) => {
      const states = statesOf(one);
      return states.length === 0 ? [UNKNOWN] : states;
    });
  }
  return error instanceof Error && error.cause !== undefined ? statesOf(error.cause) : [];
}

const UNKNOWN = 'unknown';

/**
 * Refused values (class 22, NULL and CHECK), a refused login (28), no such database (3D) or schema (3F),
 * and of class 42 a missing right, table, column and function.
 */
const OPERATOR_STATES = /^(22|28|3[DF])|^23(502|514)$|^42(501|P01|703|883)$/;

const OPERATOR_CODES: ReadonlySet<string> = new Set([
  'NOT_COORDINATOR',
  'NO_CITUS',
  'CITUS_NOT_LOADED',
  'BAD_AUTHINFO',
  'HIDDEN_GUCS',
  'GUCS_REFUSED',
  'NO_PRIVILEGE',
  'NO_UPDATE_NODE',
  'NO_PAUSE_NODE',
  'NO_SHARD_LOCKS',
  'SCHEMA_MISSING',
  'SCHEMA_OLDER',
  'SCHEMA_NEWER',
  'SCHEMA_OPEN',
  'SCHEMA_FOREIGN',
  'SCHEMA_DISTRIBUTED',
]);

/** One line for any error; of PostgreSQL's, what it said and what to do about it. */
function lineOf(error: unknown): string {
  const [state] = statesOf(error);
  const hint = state === undefined ? undefined : (HINTS[state] ?? hintOf(error));
  return oneLine(hint === undefined ? errorText(error) : `${errorText(error)}. ${hint}`);
}

function hintOf(error: unknown): string | undefined {
  return error instanceof Error && 'hint' in error && typeof error.hint === 'string'
    ? error.hint
    : undefined;
}

const NOT_MIGRATED =
  'Is MPP_SCHEMA right, and has mpp-controller migrate been run in this database?';

const LOGIN =
  'Check user and password: DATABASE_URL, PGUSER, PGPASSWORD, and pg_hba.conf of the server.';

/**
 * By SQLSTATE: undefined table, function and schema, a missing right, a server that takes no writes, a
 * missing database and a refused login.
 */
const HINTS: Readonly<Record<string, string>> = {
  '42P01': NOT_MIGRATED,
  '42883': NOT_MIGRATED,
  '3F000': NOT_MIGRATED,
  '25006': 'Connect to the primary, or name all hosts of the coordinator in DATABASE_URL.',
  '42501':
    'Connect as a member of mpp_client to report, of mpp_operator to look, as a superuser to set up.',
  '3D000': 'Name another database in DATABASE_URL or PGDATABASE, or run mpp-controller bootstrap.',
  '28P01': LOGIN,
  '28000': LOGIN,
};

function oneLine(text: string): string {
  return text.replace(/\s*\n\s*/g, ' ').trim();
}

/** How long `notify --hook` waits for an acknowledgement unless --wait says otherwise. */
export const HOOK_WAIT_MS = 10_000;
/** How much later it ends even when neither the network nor the database answers. */
export const HOOK_GRACE_MS = 2_000;

/** Whether a command line is that of an HA manager's hook, whose exit code must not stop a promotion. */
export function isHook(args: readonly string[]): boolean {
  const command = args.find((arg) => !arg.startsWith('-'));
  return command === 'hook' || (args.includes('notify') && args.includes('--hook'));
}

/** How a hook ends with a thrown value: exit code 0, and one line that says what the code would have been. */
export function endingOfHook(error: unknown): Ending {
  const { exitCode, line } = endingOf(error);
  if (exitCode === EXIT.ok) return { exitCode, line };
  // Commander's own lines are not printed for a hook.
  const said = line ?? oneLine(errorText(error).replace(/^error: /, ''));
  return {
    exitCode: EXIT.ok,
    line: `${said} (a hook ends with exit code 0 instead of ${exitCode})`,
  };
}

/**
 * What `work` comes to, in bounded time: a name that is not resolved or a peer that is silent would
 * take longer than what the work itself bounds.
 *
 * @throws CommandError with `EXIT.timedOut` when the time is over.
 */
export async function bounded<T>(ms: number, work: Promise<T>): Promise<T> {
  const late = Symbol('late');
  const result = await within(ms, work, late);
  if (result !== late) return result;
  // It may still fail, which is of no interest by then.
  work.catch(() => undefined);
  throw new CommandError(
    EXIT.timedOut,
    'neither reported nor refused in time; see mpp-controller status, or report again, which does no harm',
  );
}
