import { setTimeout as sleep } from 'node:timers/promises';
import type pg from 'pg';
import type { Settings } from '../config/settings.js';
import { errorText } from '../postgres/session.js';
import { formatTable } from './output.js';
import { type Io, withSession } from './flags.js';

/** A burst of changes is shown at once, so long after the first of them. */
const GATHER_MS = 200;
const NEWEST = 8;
/** Clears a terminal, and begins at its top. */
const CLEAR = '\u001b[2J\u001b[H';

/**
 * Shows the status again and again until Ctrl-C: on each change of a task, and every `everyMs`. A database that is
 * away is said in one line, and asked again.
 *
 * @param read the status for people
 */
export async function watchStatus(
  io: Io,
  settings: Settings,
  everyMs: number,
  read: () => Promise<string>,
): Promise<void> {
  const stop = new AbortController();
  const onSignal = (): void => stop.abort();
  process.once('SIGINT', onSignal).once('SIGTERM', onSignal);
  try {
    while (!stop.signal.aborted) {
      try {
        await withSession(settings, 'status', (client) =>
          showChanges(client, { io, everyMs, read, signal: stop.signal }),
        );
      } catch (error) {
        show(io, `no answer: ${errorText(error)}; asked again in ${everyMs / 1_000} s`);
        await sleep(everyMs, undefined, { signal: stop.signal }).catch(() => undefined);
      }
    }
  } finally {
    process.off('SIGINT', onSignal).off('SIGTERM', onSignal);
  }
}

interface WatchOptions {
  readonly io: Io;
  readonly everyMs: number;
  readonly read: () => Promise<string>;
  readonly signal: AbortSignal;
}

/** @param client a session of its own, which listens */
async function showChanges(client: pg.Client, options: WatchOptions): Promise<void> {
  const { io, everyMs, read, signal } = options;
  let wake: () => void = () => undefined;
  client.on('notification', () => wake());
  client.on('error', () => wake());
  await client.query('LISTEN mpp_tasks; LISTEN mpp_task_status');
  while (!signal.aborted) {
    const woken = new AbortController();
    wake = () => woken.abort();
    const [text, newest] = await Promise.all([read(), readNewest(client)]);
    show(io, `${text}\n\nNewest changes\n${newest}`);
    const either = AbortSignal.any([signal, woken.signal]);
    await sleep(everyMs, undefined, { signal: either }).catch(() => undefined);
    if (woken.signal.aborted) await sleep(GATHER_MS);
  }
}

/** On a terminal in place of the text before, else after it. */
function show(io: Io, text: string): void {
  const time = new Date().toISOString().slice(0, 19).replace('T', ' ');
  io.print(`${io.isTerminal === true ? CLEAR : ''}${time} UTC\n\n${text}\n`);
}

async function readNewest(client: pg.Client): Promise<string> {
  const { rows } = await client.query<Change>(NEWEST_CHANGES, [NEWEST]);
  if (rows.length === 0) return '  none';
  return formatTable(
    ['TIME (UTC)', 'GROUP', 'TASK', 'EVENT', 'STATUS', 'REASON'],
    rows.map((row) => [row.time, row.groupid, row.task, row.event, row.status, row.reason ?? '']),
  );
}

interface Change {
  readonly time: string;
  readonly groupid: number;
  readonly task: string;
  readonly event: string;
  readonly status: string;
  readonly reason: string | null;
}

/** Locks nothing; reads the newest rows by the key. */
const NEWEST_CHANGES = `
  SELECT to_char(l.logged_at AT TIME ZONE 'UTC', 'HH24:MI:SS.MS') AS time, l.groupid, l.task_id AS task,
         l.event, l.status, l.reason
  FROM @mpp.mpp_task_log AS l
  ORDER BY l.id DESC
  LIMIT $1`;
