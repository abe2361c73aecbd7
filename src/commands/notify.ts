import { Command } from 'commander';
import { formatDuration } from '../config/formats.js';
import { ConfigError } from '../errors.js';
import { bounded, HOOK_GRACE_MS, HOOK_WAIT_MS } from './exit.js';
import {
  addSettings,
  cooldownOption,
  duration,
  integer,
  type Io,
  pauseOption,
  readSettings,
  required,
} from './flags.js';
import { isAccepted, refusal, type Report, submitAndWait } from './submit.js';

const USES = ['schema', 'databases'] as const;

/** How long the report itself may take without --wait. */
const REPORT_MS = 10_000;
/** A short --wait is for the acknowledgement; the report gets this long in any case. */
const LEAST_REPORT_MS = 1_000;

export function notifyCommand(io: Io): Command {
  const command = addFlags(new Command('notify')).addHelpText('after', `\n${EXIT_CODES}`);
  return addSettings(command, USES).action(async (event: string) => {
    const settings = readSettings(io, command, USES);
    const flags = command.opts<Flags>();
    const report = reportOf(event, flags);
    const waitMs = waitOf(report, flags);
    const isHook = flags.hook === true;
    const outcome = submitAndWait(settings, report, { reportMs: reportMs(waitMs), waitMs });
    const answer = await (isHook ? bounded(reportMs(waitMs) + HOOK_GRACE_MS, outcome) : outcome);
    const { id, status, reason } = answer;
    if (waitMs === null || isAccepted(answer)) {
      io.print(`task ${id}: ${status}${isHook && reason !== null ? `: ${reason}` : ''}`);
      if (!isHook && reason !== null) io.print(reason);
      return;
    }
    // A hook says it in one line.
    if (!isHook) io.print(`task ${id}: ${status}`);
    throw refusal(answer, isHook);
  });
}

function addFlags(command: Command): Command {
  return command
    .description(
      "report a change of a worker group: a row for mpp_tasks, from an HA manager's hook",
    )
    .argument('<event>', 'before_demote, before_promote, after_promote or suspect')
    .option('--group <groupid>', 'group in pg_dist_node; 0 is the coordinator (required)')
    .option('--host <host>', 'host of the node, as pg_dist_node is to have it (required)')
    .option('--port <port>', 'port of the node', '5432')
    .option('--timeout <duration>', 'how long the hold may last (default 30s; 10s for suspect)')
    .addOption(cooldownOption())
    .addOption(pauseOption(['writes', 'all', 'none']))
    .option(
      '--secondary <host:port>',
      'another node of the group; once for each (default: they stay as they are)',
      (value: string, earlier: readonly string[] | undefined) => [...(earlier ?? []), value],
    )
    .option('--no-secondaries', 'the group has no other nodes')
    .option(
      '--wait [duration]',
      'wait until it is acknowledged (default: as long as the hold may last)',
    )
    .option(
      '--hook',
      'for a hook whose exit code decides something, such as pre_promote of Patroni: always ends with 0, ' +
        `and --wait alone waits ${formatDuration(HOOK_WAIT_MS)} at most`,
    );
}

/** How long the report itself may take. */
function reportMs(waitMs: number | null): number {
  return Math.max(waitMs ?? REPORT_MS, LEAST_REPORT_MS);
}

const EXIT_CODES = `Exit codes (with --hook always 0; the line on standard error names the code):
  0  reported; with --wait: holding or done
  1  anything else went wrong
  2  the same call fails until a person changes something: a wrong option or setting, input that the
     database refuses, no such database, wrong password, a missing right, not migrated, a worker
  3  with --wait: discarded, superseded, expired, failed, cancelled or rolled_back
  4  not acknowledged within --wait; or not even reported, because the database did not take it in
     that time (${formatDuration(LEAST_REPORT_MS)} at least; ${formatDuration(REPORT_MS)} without --wait)
  5  the database cannot be reached, or the session was lost: the line says so when it is unknown
     whether the report got in; to report again does no harm`;

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
function waitOf(report: Report, flags: Flags): number | null {
  if (flags.wait === undefined) return null;
  if (flags.wait !== true) return duration('--wait', flags.wait, 0);
  const holdMs = report.timeoutMs ?? (report.event === 'suspect' ? 10_000 : 30_000);
  return flags.hook === true ? Math.min(holdMs, HOOK_WAIT_MS) : holdMs;
}

function checkSecondary(text: string): void {
  const [, port] = /^(?:\[[^[\]]+\]|[^[\]:]+):(\d{1,5})$/.exec(text) ?? [];
  if (port !== undefined && Number(port) >= 1 && Number(port) <= 65_535) return;
  throw new ConfigError(
    `--secondary cannot be ${JSON.stringify(text)}; give host:port, or [address]:port for IPv6`,
  );
}
