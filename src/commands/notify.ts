import { Command, Option } from 'commander';
import { formatDuration, parseDuration } from '../duration.js';
import { ConfigError, UnreachableError } from '../errors.js';
import { sqlState } from '../postgres/sqlstate.js';
import { CommandError, EXIT, lineOf } from './exit.js';
import { addSettings, readSettings, type Io } from './settings.js';
import { submitTask, waitForTask, type Acknowledgement, type Report } from './submit.js';

const USES = ['schema', 'databases'] as const;

/** How long the report itself may take without --wait. */
const REPORT_MS = 10_000;
/** A short --wait is for the acknowledgement; the report gets this long in any case. */
const LEAST_REPORT_MS = 1_000;

interface Flags {
  readonly group: string;
  readonly host: string;
  readonly port: string;
  readonly timeout?: string;
  readonly cooldown?: string;
  readonly pause?: string;
  readonly secondary?: readonly string[];
  /** False for --no-secondaries; commander sets it to true otherwise. */
  readonly secondaries: boolean;
  readonly wait?: true | string;
}

export function notifyCommand(io: Io): Command {
  const command = new Command('notify')
    .description(
      "report a change of a worker group: a row for mpp_tasks, from an HA manager's hook",
    )
    .argument('<event>', 'before_demote, before_promote, after_promote or suspect')
    .requiredOption('--group <groupid>', 'group in pg_dist_node; 0 is the coordinator')
    .requiredOption('--host <host>', 'host of the node, as pg_dist_node is to have it')
    .option('--port <port>', 'port of the node', '5432')
    .option('--timeout <duration>', 'how long the hold may last (default 30s; 10s for suspect)')
    .option('--cooldown <duration>', 'how long sessions in the way may go on (default 10s)')
    .addOption(
      new Option('--pause <what>', 'what waits: writes, all or none (default: as run is told)'),
    )
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
    .addHelpText('after', `\n${EXIT_CODES}`);
  return addSettings(command, USES).action(async (event: string) => {
    const settings = readSettings(io, command, USES);
    const flags = command.opts<Flags>();
    const report = reportOf(event, flags);
    const waitMs = waitOf(report, flags);
    try {
      const begun = performance.now();
      const id = await submitTask(settings, report, Math.max(waitMs ?? REPORT_MS, LEAST_REPORT_MS));
      if (waitMs === null) {
        io.print(`task ${id}: pending`);
        return;
      }
      const left = Math.max(0, waitMs - (performance.now() - begun));
      const answer = await waitForTask(settings, id, left);
      io.print(`task ${id}: ${answer.status}`);
      if (answer.reason !== null && isAccepted(answer)) io.print(answer.reason);
      assertAccepted(id, answer);
    } catch (error) {
      throw asCommandError(error);
    }
  });
}

/** Flags to a report. The database checks ranges and names; only what is no number is refused here. */
function reportOf(event: string, flags: Flags): Report {
  if (flags.secondary !== undefined && !flags.secondaries) {
    throw new ConfigError('--secondary and --no-secondaries exclude each other; give one of them');
  }
  return {
    event,
    groupid: integer('--group', flags.group),
    nodename: flags.host,
    nodeport: integer('--port', flags.port),
    secondaries: flags.secondaries ? (flags.secondary ?? null) : [],
    timeoutMs: duration('--timeout', flags.timeout),
    cooldownMs: duration('--cooldown', flags.cooldown),
    pause: flags.pause ?? null,
  };
}

/** @returns milliseconds; null not to wait */
function waitOf(report: Report, flags: Flags): number | null {
  if (flags.wait === undefined) return null;
  if (flags.wait !== true) return duration('--wait', flags.wait);
  return report.timeoutMs ?? (report.event === 'suspect' ? 10_000 : 30_000);
}

function isAccepted({ status }: Acknowledgement): boolean {
  return status === 'holding' || status === 'done';
}

function assertAccepted(id: string, answer: Acknowledgement): void {
  if (isAccepted(answer)) return;
  if (answer.status === 'pending' || answer.status === 'claimed') {
    throw new CommandError(
      EXIT.timedOut,
      `task ${id} is still ${answer.status}; see mpp-controller status`,
    );
  }
  throw new CommandError(EXIT.refused, answer.reason ?? `task ${id} is ${answer.status}`);
}

function asCommandError(error: unknown): unknown {
  if (error instanceof UnreachableError) {
    return new CommandError(EXIT.unreachable, error.message, error);
  }
  // Class 22 and 23: it is the input that the database does not take.
  const refused = /^2[23]/.test(sqlState(error) ?? '');
  return refused ? new CommandError(EXIT.refused, lineOf(error), error) : error;
}

function integer(flag: string, text: string): number {
  if (/^-?\d{1,15}$/.test(text)) return Number(text);
  throw new ConfigError(`${flag} cannot be ${JSON.stringify(text)}; give a whole number`);
}

function duration(flag: string, text: string): number;
function duration(flag: string, text: string | undefined): number | null;
function duration(flag: string, text: string | undefined): number | null {
  if (text === undefined) return null;
  try {
    return parseDuration(text);
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    throw new ConfigError(`${flag}: ${error.message}`);
  }
}

const EXIT_CODES = `Exit codes:
  0  reported; with --wait: holding or done
  1  anything else went wrong
  2  wrong usage or setting
  3  refused: by the database, or discarded, superseded, expired, failed, cancelled, rolled_back
  4  not acknowledged within --wait; or not even reported, because the database did not take it in
     that time (${formatDuration(LEAST_REPORT_MS)} at least; ${formatDuration(REPORT_MS)} without --wait)
  5  the database cannot be reached, or was lost on the way: it says so when nobody can tell whether
     the report got in; to report again does no harm`;
