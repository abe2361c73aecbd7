import { parseDuration } from '../duration.js';
import { ConfigError } from '../errors.js';
import { HOOK_WAIT_MS } from './hook.js';
import type { Report } from './submit.js';

/** The options of `notify`, as commander gives them. */
export interface Flags {
  readonly group?: string;
  readonly host?: string;
  readonly port: string;
  readonly timeout?: string;
  readonly cooldown?: string;
  readonly pause?: string;
  readonly secondary?: readonly string[];
  /** False for --no-secondaries; commander sets it to true otherwise. */
  readonly secondaries: boolean;
  readonly wait?: true | string;
  readonly hook?: true;
}

const EVENTS = ['before_demote', 'before_promote', 'after_promote', 'suspect'];
const DAY_MS = 86_400_000;
const MOST_SECONDARIES = 64;

/**
 * Flags to a report. What can be decided without the database is refused here, with the option's name;
 * whether something is the host of a node the database decides.
 *
 * @throws ConfigError
 */
export function reportOf(event: string, flags: Flags): Report {
  if (!EVENTS.includes(event)) {
    throw new ConfigError(
      `the event cannot be ${JSON.stringify(event)}; give ${EVENTS.slice(0, -1).join(', ')} or ${EVENTS.at(-1) ?? ''}`,
    );
  }
  if (flags.secondary !== undefined && !flags.secondaries) {
    throw new ConfigError('--secondary and --no-secondaries exclude each other; give one of them');
  }
  if ((flags.secondary?.length ?? 0) > MOST_SECONDARIES) {
    throw new ConfigError(`--secondary may be given ${MOST_SECONDARIES} times at most`);
  }
  for (const secondary of flags.secondary ?? []) checkSecondary(secondary);
  const host = required('--host', 'the host of the node', flags.host);
  if (host.trim() === '')
    throw new ConfigError('--host cannot be empty; give the host of the node');
  return {
    event,
    groupid: integer(
      '--group',
      required('--group', 'a group id, 0 for the coordinator', flags.group),
      0,
      2_147_483_647,
    ),
    nodename: host,
    nodeport: integer('--port', flags.port, 1, 65_535),
    secondaries: flags.secondaries ? (flags.secondary ?? null) : [],
    timeoutMs: duration('--timeout', flags.timeout, 1),
    cooldownMs: duration('--cooldown', flags.cooldown, 0),
    pause: flags.pause ?? null,
  };
}

/** @returns milliseconds; null not to wait */
export function waitOf(report: Report, flags: Flags): number | null {
  if (flags.wait === undefined) return null;
  if (flags.wait !== true) return duration('--wait', flags.wait, 0);
  const holdMs = report.timeoutMs ?? (report.event === 'suspect' ? 10_000 : 30_000);
  return flags.hook === true ? Math.min(holdMs, HOOK_WAIT_MS) : holdMs;
}

/** Checked by commander it would hide an option that is misspelt: `--grup 1`. */
function required(flag: string, what: string, value: string | undefined): string {
  if (value !== undefined) return value;
  throw new ConfigError(`${flag} is missing; give ${what}`);
}

function checkSecondary(text: string): void {
  const [, port] = /^(?:\[[^[\]]+\]|[^[\]:]+):(\d{1,5})$/.exec(text) ?? [];
  if (port !== undefined && Number(port) >= 1 && Number(port) <= 65_535) return;
  throw new ConfigError(
    `--secondary cannot be ${JSON.stringify(text)}; give host:port, or [address]:port for IPv6`,
  );
}

function integer(flag: string, text: string, least: number, most: number): number {
  const value = /^[+-]?\d{1,15}$/.test(text.trim()) ? Number(text) : NaN;
  if (value >= least && value <= most) return value;
  throw new ConfigError(
    `${flag} cannot be ${JSON.stringify(text)}; give a whole number from ${least} to ${most}`,
  );
}

function duration(flag: string, text: string, leastMs: number): number;
function duration(flag: string, text: string | undefined, leastMs: number): number | null;
function duration(flag: string, text: string | undefined, leastMs: number): number | null {
  if (text === undefined) return null;
  try {
    const ms = parseDuration(text);
    if (ms >= leastMs && ms <= DAY_MS) return ms;
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    throw new ConfigError(`${flag}: ${error.message}`);
  }
  throw new ConfigError(
    `${flag} cannot be ${JSON.stringify(text)}; give ${leastMs === 0 ? '0s' : '1ms'} to 1d`,
  );
}
