import { Command, Option } from 'commander';
import { formatDuration } from '../duration.js';
import { UnreachableError } from '../errors.js';
import type { Settings } from '../config.js';
import { CommandError, EXIT, needsOperator } from './exit.js';
import { bounded, HOOK_GRACE_MS, HOOK_WAIT_MS } from './hook.js';
import { reportOf, waitOf, type Flags } from './report-flags.js';
import { addSettings, readSettings, type Io } from './settings.js';
import { submitTask, waitForTask, type Acknowledgement, type Report } from './submit.js';

const USES = ['schema', 'databases'] as const;

/** How long the report itself may take without --wait. */
const REPORT_MS = 10_000;
/** A short --wait is for the acknowledgement; the report gets this long in any case. */
const LEAST_REPORT_MS = 1_000;

export function notifyCommand(io: Io): Command {
  const command = new Command('notify')
    .description(
      "report a change of a worker group: a row for mpp_tasks, from an HA manager's hook",
    )
    .argument('<event>', 'before_demote, before_promote, after_promote or suspect')
    .option('--group <groupid>', 'group in pg_dist_node; 0 is the coordinator (required)')
    .option('--host <host>', 'host of the node, as pg_dist_node is to have it (required)')
    .option('--port <port>', 'port of the node', '5432')
    .option('--timeout <duration>', 'how long the hold may last (default 30s; 10s for suspect)')
    .option(
      '--cooldown <duration>',
      'how long a blocking session may keep running before it is terminated (default 10s)',
    )
    .addOption(
      new Option('--pause <what>', 'what waits (default: MPP_PAUSE of the controller)').choices([
        'writes',
        'all',
        'none',
      ]),
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
    .option(
      '--hook',
      'for a hook whose exit code decides something, such as pre_promote of Patroni: always ends with 0, ' +
        `and --wait alone waits ${formatDuration(HOOK_WAIT_MS)} at most`,
    )
    .addHelpText('after', `\n${EXIT_CODES}`);
  return addSettings(command, USES).action(async (event: string) => {
    const settings = readSettings(io, command, USES);
    const flags = command.opts<Flags>();
    const report = reportOf(event, flags);
    const waitMs = waitOf(report, flags);
    const isHook = flags.hook === true;
    const outcome = submitAndWait(settings, report, waitMs);
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

/** How long the report itself may take. */
function reportMs(waitMs: number | null): number {
  return Math.max(waitMs ?? REPORT_MS, LEAST_REPORT_MS);
}

/** @throws CommandError when it was not reported, or nothing is known of what became of it. */
async function submitAndWait(
  settings: Settings,
  report: Report,
  waitMs: number | null,
): Promise<Acknowledgement & { readonly id: string }> {
  try {
    const begun = performance.now();
    const id = await submitTask(settings, report, reportMs(waitMs));
    if (waitMs === null) return { id, status: 'pending', reason: null };
    const left = Math.max(0, waitMs - (performance.now() - begun));
    return { id, ...(await waitForTask(settings, id, left)) };
  } catch (error) {
    throw asCommandError(error);
  }
}

function isAccepted({ status }: Acknowledgement): boolean {
  return status === 'holding' || status === 'done';
}

/** An answer other than the one that was waited for. */
function refusal(
  { id, status, reason }: Acknowledgement & { readonly id: string },
  isHook: boolean,
): CommandError {
  if (status === 'pending' || status === 'claimed') {
    const why = reason === null ? '' : ` (${reason})`;
    return new CommandError(
      EXIT.timedOut,
      `task ${id} is still ${status}${why}; see mpp-controller status`,
    );
  }
  const said = `task ${id} is ${status}`;
  if (reason === null) return new CommandError(EXIT.refused, said);
  return new CommandError(EXIT.refused, isHook ? `${said}: ${reason}` : reason);
}

function asCommandError(error: unknown): unknown {
  if (!(error instanceof UnreachableError) || needsOperator(error)) return error;
  return new CommandError(EXIT.unreachable, error.message, error);
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
