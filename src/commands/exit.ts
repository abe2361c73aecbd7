import { CommanderError } from 'commander';
import { ConfigError, MppError } from '../errors.js';
import { errorText } from '../postgres/session.js';
import { sqlState } from '../postgres/sqlstate.js';

/** What a command's exit code says. The last three are those of `notify`. */
export const EXIT = {
  ok: 0,
  failure: 1,
  usage: 2,
  refused: 3,
  timedOut: 4,
  unreachable: 5,
} as const;

export type ExitCode = (typeof EXIT)[keyof typeof EXIT];

/** A command's answer other than success, with the exit code that tells it. */
export class CommandError extends MppError {
  override readonly name = 'CommandError';
  readonly exitCode: ExitCode;
  constructor(exitCode: ExitCode, message: string, cause?: unknown) {
    super('COMMAND', message, { cause });
    this.exitCode = exitCode;
  }
}

/** How a command ends. */
export interface Ending {
  readonly exitCode: ExitCode;
  /** For standard error; null when all is said. */
  readonly line: string | null;
}

/** What a thrown value means to whoever called the command: an exit code and one line. */
export function endingOf(error: unknown): Ending {
  if (error instanceof CommanderError) {
    // Commander has printed its own line. It throws for --help and --version as well, with exit code 0.
    return { exitCode: error.exitCode === 0 ? EXIT.ok : EXIT.usage, line: null };
  }
  if (error instanceof CommandError)
    return { exitCode: error.exitCode, line: oneLine(error.message) };
  if (error instanceof ConfigError) return { exitCode: EXIT.usage, line: oneLine(error.message) };
  return { exitCode: EXIT.failure, line: lineOf(error) };
}

/** One line for any error; of PostgreSQL's, what it said and what to do about it. */
export function lineOf(error: unknown): string {
  const state = sqlState(error);
  if (state === undefined) return oneLine(errorText(error));
  const hint = HINTS[state] ?? hintOf(error);
  return oneLine(hint === undefined ? errorText(error) : `${errorText(error)}. ${hint}`);
}

function hintOf(error: unknown): string | undefined {
  return error instanceof Error && 'hint' in error && typeof error.hint === 'string'
    ? error.hint
    : undefined;
}

const NOT_MIGRATED =
  'Is MPP_SCHEMA right, and has mpp-controller migrate been run in this database?';

/** By SQLSTATE: undefined table, function and schema, a missing right, and a server that takes no writes. */
const HINTS: Readonly<Record<string, string>> = {
  '42P01': NOT_MIGRATED,
  '42883': NOT_MIGRATED,
  '3F000': NOT_MIGRATED,
  '25006': 'Connect to the primary, or name all hosts of the coordinator in DATABASE_URL.',
  '42501':
    'Connect as a role that may: mpp_client reports, mpp_operator looks, a superuser sets up.',
};

function oneLine(text: string): string {
  return text.replace(/\s*\n\s*/g, ' ').trim();
}
