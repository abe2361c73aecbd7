import type pg from 'pg';
import type { Settings } from '../config.js';
import { formatDuration } from '../duration.js';
import { UnreachableError } from '../errors.js';
import { createMPP } from '../mpp/index.js';
import { describeConnection, errorText, sessionConfig } from '../postgres/session.js';
import { isSessionLost, sqlState } from '../postgres/sqlstate.js';
import { CommandError, EXIT } from './exit.js';
import { withSession } from './with-session.js';

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
 *   UnreachableError, which says so when nobody can tell whether it was; whatever PostgreSQL says
 *   about the input
 */
export async function submitTask(
  settings: Settings,
  report: Report,
  withinMs: number,
): Promise<string> {
  const mpp = createMPP(settings);
  return withSession(boundTo(settings, withinMs), 'notify', async (client) => {
    await mpp.refuseWorker(client);
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

/** What has become of a report whose statement failed, for whoever must decide to report again. */
function unreported(error: unknown, settings: Settings, withinMs: number): unknown {
  if (GIVEN_UP.has(sqlState(error) ?? '')) {
    return new CommandError(
      EXIT.timedOut,
      `the database did not take the report within ${formatDuration(withinMs)} ` +
        `(${errorText(error)}), nothing was reported; see who has locked mpp_tasks, and report again`,
      error,
    );
  }
  if (!isSessionLost(error)) return error;
  return new UnreachableError(
    `lost the session with ${describeConnection(settings.connection)} (${errorText(error)}), nobody ` +
      'can tell whether it was reported; see mpp-controller status, or report again, which does no harm',
    error,
  );
}

/** The settings with every step of a session bounded, on the server and here. */
function boundTo(settings: Settings, withinMs: number): Settings {
  const { connectionTimeoutMillis } = sessionConfig(settings.connection, 'notify');
  return {
    ...settings,
    connection: {
      ...settings.connection,
      connectionTimeoutMillis: Math.min(connectionTimeoutMillis || withinMs, withinMs),
      statement_timeout: withinMs,
      query_timeout: withinMs + GRACE_MS,
    },
  };
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
    connection: { ...settings.connection, query_timeout: LOOK_MS + GRACE_MS },
  };
  for (let retryMs = 50; ; retryMs = Math.min(2 * retryMs, 1_000)) {
    try {
      return await withSession(bounded, 'notify', async (client) => {
        retryMs = 50;
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
      await new Promise((resolve) => setTimeout(resolve, Math.min(retryMs, remaining)));
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

/** The server ends the statement for statement_timeout (or pg_cancel_backend), or a role's lock_timeout. */
const GIVEN_UP = new Set(['57014', '55P03']);

const SUBMIT = `
  SELECT @mpp.mpp_submit(
    event => $1, groupid => $2, nodename => $3, nodeport => $4, secondaries => $5,
    timeout => $6::bigint * interval '1 ms', cooldown => $7::bigint * interval '1 ms', pause => $8
  ) AS id`;

const WAIT = `CALL @mpp.mpp_wait($1::bigint, $2::bigint * interval '1 ms', NULL)`;

const STATUS =
  'SELECT status, reason FROM @mpp.mpp_task_status($1::bigint) WHERE status IS NOT NULL';
