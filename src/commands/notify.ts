import { setTimeout as delay } from 'node:timers/promises';
import type pg from 'pg';
import { Command, Option } from 'commander';
import type { Settings } from '../config/settings.js';
import { formatDuration, parseDuration } from '../config/forms.js';
import { ConfigError, UnreachableError } from '../errors.js';
import { createMPP } from '../mpp/index.js';
import { requireContract } from '../postgres/migration-session.js';
import {
  CONNECT_MS,
  describeConnection,
  eachServer,
  errorText,
  isReadOnlyServer,
  type Connection,
} from '../postgres/session.js';
import { isSessionLost, sqlState } from '../postgres/sqlstate.js';
import { CommandError, EXIT, needsOperator, bounded, HOOK_GRACE_MS, HOOK_WAIT_MS } from './exit.js';
import { withSession, addSettings, type Io, readSettings } from './settings.js';

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
    );
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
function waitOf(report: Report, flags: Flags): number | null {
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

/** What a client says about a group; null is the default of `mpp_submit`. Times are in milliseconds. */
export interface Report {
  readonly event: string;
  readonly groupid: number;
  readonly nodename: string;
  readonly nodeport: number;
  /** `host:port` each; an empty list says that there are none, null leaves them as they are. */
  readonly secondaries: readonly string[] | null;
  readonly timeoutMs: number | null;
  readonly cooldownMs: number | null;
  readonly pause: string | null;
}

/** How a task stands. */
export interface Acknowledgement {
  readonly status: string;
  readonly reason: string | null;
}

/**
 * Reports with `mpp_submit`.
 *
 * @param withinMs how long the server may take for it; one that is silent gets a little more
 * @returns the id of the task, a bigint in text
 * @throws CommandError with `EXIT.timedOut` when the server gave up and nothing was reported;
 *   UnreachableError, which says so when it is not known whether it was, or when no server takes writes
 *   (with several hosts, not before the time is over); whatever PostgreSQL says about the input
 */
export async function submitTask(
  settings: Settings,
  report: Report,
  withinMs: number,
): Promise<string> {
  const until = performance.now() + withinMs;
  for (let retryMs = FIRST_RETRY_MS; ; retryMs = Math.min(2 * retryMs, LAST_RETRY_MS)) {
    try {
      return await submitOnce(settings, report, Math.max(1, Math.ceil(until - performance.now())));
    } catch (error) {
      const remaining = until - performance.now();
      // An attempt without time would only fail for want of time, and hide why.
      if (!isAnotherComing(settings, error) || remaining < retryMs + LEAST_ATTEMPT_MS) throw error;
      await delay(retryMs);
    }
  }
}

/**
 * With several hosts, one of them is soon to be promoted. A report whose fate is unknown is made again, which
 * does no harm; a login that was refused would be refused again.
 */
function isAnotherComing({ connection }: Settings, error: unknown): boolean {
  if (connection.servers === undefined || !(error instanceof UnreachableError)) return false;
  if (error.cause instanceof ConfigError) return false;
  const state = sqlState(error.cause);
  return state === undefined || isReadOnlyServer(error) || isSessionLost(error.cause);
}

async function submitOnce(settings: Settings, report: Report, withinMs: number): Promise<string> {
  const mpp = createMPP(settings);
  return withSession(boundTo(settings, withinMs), 'notify', async (client) => {
    await mpp.refuseWorker(client);
    await requireContract(client, settings.schema);
    const values = [
      report.event,
      report.groupid,
      report.nodename,
      report.nodeport,
      report.secondaries,
      report.timeoutMs,
      report.cooldownMs,
      report.pause,
    ];
    const { rows } = await client.query<{ id: string }>(SUBMIT, values).catch((error: unknown) => {
      throw unreported(error, settings, withinMs);
    });
    return rows[0]?.id ?? '';
  });
}

/** What has become of a report whose statement failed, for the caller, who must decide to report again. */
function unreported(error: unknown, settings: Settings, withinMs: number): unknown {
  if (GIVEN_UP.has(sqlState(error) ?? '')) {
    return new CommandError(
      EXIT.timedOut,
      `the database did not take the report within ${formatDuration(withinMs)} ` +
        `(${errorText(error)}), nothing was reported; see who has locked mpp_tasks, and report again`,
      error,
    );
  }
  if (isReadOnlyServer(error)) {
    return new UnreachableError(
      `${describeConnection(settings.connection)} takes no writes (${errorText(error)}), nothing was ` +
        'reported; report to the primary, or name all hosts of the coordinator in DATABASE_URL',
      error,
    );
  }
  if (!isSessionLost(error)) return error;
  return new UnreachableError(
    `lost the session with ${describeConnection(settings.connection)} (${errorText(error)}); ` +
      'it is not known whether it was reported: see mpp-controller status, or report again, which does no harm',
    error,
  );
}

/** The settings with every step of a session bounded, on the server and here. */
function boundTo(settings: Settings, withinMs: number): Settings {
  return {
    ...settings,
    connection: {
      ...settings.connection,
      ...connectWithin(settings, withinMs),
      statement_timeout: withinMs,
      query_timeout: withinMs + GRACE_MS,
    },
  };
}

/** One host that does not answer must leave time for the others. */
function connectWithin(
  { connection }: Settings,
  withinMs: number,
): Pick<Connection, 'connectionTimeoutMillis'> {
  const eachMs = Math.ceil(withinMs / eachServer(connection).length);
  const { connectionTimeoutMillis = CONNECT_MS } = connection;
  return { connectionTimeoutMillis: Math.max(1, Math.min(connectionTimeoutMillis, eachMs)) };
}

/**
 * Waits until a task is acknowledged, or `timeoutMs` have passed: then its status is `pending` or
 * `claimed`. A session that is lost, or answers no more, is replaced as long as there is time.
 *
 * @throws UnreachableError when the time is over and the database cannot be reached
 */
export async function waitForTask(
  settings: Settings,
  id: string,
  timeoutMs: number,
): Promise<Acknowledgement> {
  const until = performance.now() + timeoutMs;
  const bounded: Settings = {
    ...settings,
    connection: {
      ...settings.connection,
      ...(settings.connection.servers && connectWithin(settings, timeoutMs)),
      query_timeout: LOOK_MS + GRACE_MS,
    },
  };
  for (let retryMs = FIRST_RETRY_MS; ; retryMs = Math.min(2 * retryMs, LAST_RETRY_MS)) {
    try {
      return await withSession(bounded, 'notify', async (client) => {
        retryMs = FIRST_RETRY_MS;
        return watch(client, id, until);
      });
    } catch (error) {
      if (!(error instanceof UnreachableError)) throw error;
      const remaining = until - performance.now();
      if (remaining <= 0) {
        throw new UnreachableError(
          `task ${id} was reported, but the database cannot be asked what became of it`,
          error,
        );
      }
      await delay(Math.min(retryMs, remaining));
    }
  }
}

async function watch(client: pg.Client, id: string, until: number): Promise<Acknowledgement> {
  // A role may have a statement_timeout; the wait has its own end.
  await client.query("SELECT set_config('statement_timeout', '0', false)");
  for (;;) {
    const look = Math.min(LOOK_MS, Math.max(0, Math.ceil(until - performance.now())));
    const { rows } = await client.query<{ status: string }>(WAIT, [id, look]);
    const status = rows[0]?.status ?? 'pending';
    const over = performance.now() >= until;
    if (!over && (status === 'pending' || status === 'claimed')) continue;
    const found = await client.query<Acknowledgement>(STATUS, [id]);
    const [answer] = found.rows;
    if (answer !== undefined) return answer;
    throw new CommandError(EXIT.failure, `task ${id} is gone; was it pruned?`);
  }
}

/** A wait is cut in looks, so that a server that has vanished is found by its silence. */
const LOOK_MS = 2_000;
const GRACE_MS = 3_000;
const FIRST_RETRY_MS = 50;
const LAST_RETRY_MS = 1_000;
const LEAST_ATTEMPT_MS = 250;

/** The server ends the statement for statement_timeout (or pg_cancel_backend), or a role's lock_timeout. */
const GIVEN_UP = new Set(['57014', '55P03']);

const SUBMIT = `
  SELECT @mpp.mpp_submit(
    event => $1::text, groupid => $2::integer, nodename => $3::text, nodeport => $4::integer,
    secondaries => $5::text[], timeout => $6::bigint * interval '1 ms',
    cooldown => $7::bigint * interval '1 ms', pause => $8::text, source => 'client'::text
  ) AS id`;

const WAIT = `CALL @mpp.mpp_wait($1::bigint, $2::bigint * interval '1 ms', NULL::text)`;

const STATUS =
  'SELECT status, reason FROM @mpp.mpp_task_status($1::bigint) WHERE status IS NOT NULL';
