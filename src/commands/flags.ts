import type pg from 'pg';
import { Option, type Command } from 'commander';
import {
  type Settings,
  flagOf,
  loadSettings,
  SETTINGS,
  type SettingName,
} from '../config/settings.js';
import { parseDuration } from '../config/formats.js';
import { ConfigError, MppError, UnreachableError } from '../errors.js';
import { closeSession, describeConnection, errorText, openSession } from '../postgres/session.js';
import { isSessionLost } from '../postgres/sqlstate.js';

/** What a command has of the process; a test gives its own. */
export interface Io {
  readonly env: NodeJS.ProcessEnv;
  /** Prints one line, or several, on standard output. */
  readonly print: (text: string) => void;
  /** Prints one line on standard error. */
  readonly complain: (text: string) => void;
  /** True where standard output is a terminal. */
  readonly isTerminal?: boolean;
  /** Asks the person at the terminal; missing where there is none. */
  readonly confirm?: (question: string) => Promise<boolean>;
}

/** Gives a command the flags of these settings. */
export function addSettings(command: Command, names: readonly SettingName[]): Command {
  for (const name of names) {
    const setting = SETTINGS[name];
    command.addOption(
      new Option(
        `${flagOf(setting)} <value>`,
        `${setting.description} (${[setting.env, defaultText(name)].filter(Boolean).join(', ')})`,
      ),
    );
  }
  return command;
}

/**
 * Reads the settings: from these flags of the command, then from the environment. Other options of a
 * command may have the name of a setting (`notify --pause`) and are none.
 *
 * @throws ConfigError
 */
export function readSettings(io: Io, command: Command, names: readonly SettingName[]): Settings {
  return loadSettings(io.env, flagsOf(command, names));
}

/** What was given for the flags of these settings, by the attribute names of commander. */
export function flagsOf(
  command: Command,
  names: readonly SettingName[],
): Record<string, string | undefined> {
  const flags = new Set(names.map((name) => flagOf(SETTINGS[name])));
  const options = command.opts<Record<string, string | undefined>>();
  const given = command.options
    .filter((option) => flags.has(option.long ?? ''))
    .map((option) => [option.attributeName(), options[option.attributeName()]] as const);
  return Object.fromEntries(given);
}

/** All settings, for the help of the program. */
export function settingsHelp(): string {
  const rows = (Object.keys(SETTINGS) as SettingName[]).map((name) => ({
    title: `${SETTINGS[name].env}, ${flagOf(SETTINGS[name])}`,
    text: [SETTINGS[name].description, defaultText(name)],
  }));
  const all = [
    {
      title: 'DATABASE_URL',
      text: ['postgresql://user@host:5432/database; without it the PG* variables', 'no flag'],
    },
    ...rows,
    {
      title: 'MPP_NODE_URL',
      text: [
        'as whom nodes are asked: user, password, database, ssl; else as DATABASE_URL',
        'no flag',
      ],
    },
    { title: 'MPP_PATRONI_AUTH', text: ["user:password of Patroni's REST API", 'no flag'] },
    { title: 'MPP_AUTHINFO', text: ['what bootstrap writes to pg_dist_authinfo', 'no flag'] },
  ];
  const width = Math.max(...all.map((row) => row.title.length));
  const lines = all.map(
    ({ title, text: [description = '', more = ''] }) =>
      `  ${title.padEnd(width)}  ${description}${more === '' ? '' : ` (${more})`}`,
  );
  return [
    'Settings (an environment variable, or the flag on a command that uses it; the flag wins):',
    ...lines,
    '',
    'What may carry a password has no flag: flags show in the list of processes.',
    'A duration has its unit: 500ms, 10s, 5min, 2h, 30d.',
  ].join('\n');
}

function defaultText(name: SettingName): string {
  const value = SETTINGS[name].default;
  return value === '' ? '' : `default ${value}`;
}

/**
 * Runs `work` in a session of its own whose statements name the schema as `@mpp.`, and ends the session in any case.
 *
 * @throws UnreachableError when there is no session to be had, or it is lost
 */
export async function withSession<T>(
  settings: Settings,
  purpose: string,
  work: (client: pg.Client) => Promise<T>,
): Promise<T> {
  const client = await openSession(settings.connection, purpose, settings.schema);
  try {
    return await work(client);
  } catch (error) {
    if (error instanceof MppError || !isSessionLost(error)) throw error;
    throw new UnreachableError(
      `lost the session with ${describeConnection(settings.connection)}: ${errorText(error)}`,
      error,
    );
  } finally {
    await closeSession(client);
  }
}

/** What a report may say of its hold, on each command that makes one. */
export function cooldownOption(): Option {
  return new Option(
    '--cooldown <duration>',
    'how long a blocking session may keep running before it is terminated (default 10s)',
  );
}

export function pauseOption(choices: readonly string[]): Option {
  return new Option('--pause <what>', 'what waits (default: MPP_PAUSE of the controller)').choices(
    choices,
  );
}

const DAY_MS = 86_400_000;

/**
 * A flag that must be given.
 *
 * Checked by commander it would hide an option that is misspelt: `--grup 1`.
 *
 * @throws ConfigError
 */
export function required(flag: string, what: string, value: string | undefined): string {
  if (value !== undefined) return value;
  throw new ConfigError(`${flag} is missing; give ${what}`);
}

/** @throws ConfigError */
export function integer(flag: string, text: string, least: number, most: number): number {
  const value = /^[+-]?\d{1,15}$/.test(text.trim()) ? Number(text) : NaN;
  if (value >= least && value <= most) return value;
  throw new ConfigError(
    `${flag} cannot be ${JSON.stringify(text)}; give a whole number from ${least} to ${most}`,
  );
}

/**
 * @returns milliseconds; null where the flag is not given
 * @throws ConfigError
 */
export function duration(flag: string, text: string, leastMs: number, mostDays?: number): number;
export function duration(
  flag: string,
  text: string | undefined,
  leastMs: number,
  mostDays?: number,
): number | null;
export function duration(
  flag: string,
  text: string | undefined,
  leastMs: number,
  mostDays = 1,
): number | null {
  if (text === undefined) return null;
  try {
    const ms = parseDuration(text);
    if (ms >= leastMs && ms <= mostDays * DAY_MS) return ms;
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    throw new ConfigError(`${flag}: ${error.message}`);
  }
  throw new ConfigError(
    `${flag} cannot be ${JSON.stringify(text)}; give ${leastMs === 0 ? '0s' : '1ms'} to ${mostDays}d`,
  );
}
