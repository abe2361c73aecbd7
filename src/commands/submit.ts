import { setTimeout as delay } from 'node:timers/promises';
import type pg from 'pg';
import type { Settings } from '../config/settings.js';
import { formatDuration } from '../config/formats.js';
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
import { CommandError, EXIT, needsOperator } from './exit.js';
import { withSession } from './flags.js';

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

/** The same with the id of the task, a bigint in text. */
export interface Acknowledged extends Acknowledgement {
  readonly id: string;
}

/** What a hook says of a node, for `mpp_report`. */
export interface MemberReport {
  readonly groupid: number;
  readonly host: string;
  readonly port: number;
  readonly role: string;
  readonly state: string;
}

/** The traffic waits, or the change is committed. */
export function isAccepted({ status }: Acknowledgement): boolean {
  return status === 'holding' || status === 'done';
}

/** Not acknowledged yet. */
export function isOpen({ status }: Pick<Acknowledgement, 'status'>): boolean {
  return status === 'pending' || status === 'claimed';
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
  return retried(settings, withinMs, async (client) => {
    const { rows } = await client.query<{ id: string }>(SUBMIT, values);
    return rows[0]?.id ?? '';
  });
}

/** Says what a node is, with `mpp_report`. @throws the same as `submitTask` */
export async function reportMember(
  settings: Settings,
  { groupid, host, port, role, state }: MemberReport,
  withinMs: number,
): Promise<void> {
  await retried(settings, withinMs, (client) =>
    client.query(REPORT_MEMBER, [groupid, host, port, role, state]),
  );
}

/** Makes a report in a session of its own; with several hosts, again while none of them takes writes. */
async function retried<T>(
  settings: Settings,
  withinMs: number,
  work: (client: pg.Client) => Promise<T>,
): Promise<T> {
  const until = performance.now() + withinMs;
  for (let retryMs = FIRST_RETRY_MS; ; retryMs = Math.min(2 * retryMs, LAST_RETRY_MS)) {
    try {
      return await tryOnce(settings, Math.max(1, Math.ceil(until - performance.now())), work);
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

async function tryOnce<T>(
  settings: Settings,
  withinMs: number,
  work: (client: pg.Client) => Promise<T>,
): Promise<T> {
  const mpp = createMPP(settings);
  return withSession(boundTo(settings, withinMs), 'notify', async (client) => {
    await mpp.refuseWorker(client);
    await requireContract(client, settings.schema);
    return work(client).catch((error: unknown) => {
      throw unreported(error, settings, withinMs);
    });
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
export function boundTo(settings: Settings, withinMs: number): Settings {
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
    if (!over && isOpen({ status })) continue;
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

// Locks: the row of the node in mpp_members, until the statement ends.
const REPORT_MEMBER = `
  SELECT @mpp.mpp_report($1::integer, $2::text, $3::integer, $4::text, $5::text)`;

const WAIT = `CALL @mpp.mpp_wait($1::bigint, $2::bigint * interval '1 ms', NULL::text)`;

const STATUS =
  'SELECT status, reason FROM @mpp.mpp_task_status($1::bigint) WHERE status IS NOT NULL';

/** The error of a report or a wait, with the exit code that tells it. */
export function asCommandError(error: unknown): unknown {
  if (!(error instanceof UnreachableError) || needsOperator(error)) return error;
  return new CommandError(EXIT.unreachable, error.message, error);
}

/** How long a report may take, and how long its acknowledgement is waited for; null for not at all. */
export interface Bounds {
  readonly reportMs: number;
  readonly waitMs: number | null;
}

/** @throws CommandError when it was not reported, or nothing is known of what became of it. */
export async function submitAndWait(
  settings: Settings,
  report: Report,
  { reportMs, waitMs }: Bounds,
): Promise<Acknowledged> {
  try {
    const begun = performance.now();
    const id = await submitTask(settings, report, reportMs);
    if (waitMs === null) return { id, status: 'pending', reason: null };
    const left = Math.max(0, waitMs - (performance.now() - begun));
    return { id, ...(await waitForTask(settings, id, left)) };
  } catch (error) {
    throw asCommandError(error);
  }
}

/** An answer other than the one that was waited for. */
export function refusal({ id, status, reason }: Acknowledged, isHook: boolean): CommandError {
  if (isOpen({ status })) {
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
