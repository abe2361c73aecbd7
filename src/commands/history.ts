import { Command } from 'commander';
import { addSettings, duration, integer, type Io, readSettings } from './flags.js';
import { askAsOperator } from './operator.js';
import { formatTable } from './output.js';

const USES = ['schema', 'databases'] as const;
const MOST_ROWS = 100_000;

interface Flags {
  readonly group?: string;
  readonly since?: string;
  readonly limit: string;
  readonly json?: true;
}

export function historyCommand(io: Io): Command {
  const command = new Command('history')
    .description(
      'show switchovers, failovers, restarts and holds that were rolled back, the newest first; ' +
        'for members of mpp_operator',
    )
    .option('--group <groupid>', 'of this group alone')
    .option('--since <duration>', 'of so long back, such as 2h')
    .option('--limit <count>', 'so many at most', '20')
    .option('--json', 'print a JSON array; durations in milliseconds')
    .addHelpText('after', '\nThe same in psql: SELECT * FROM mpp_switchovers ORDER BY id DESC');
  return addSettings(command, USES).action(async () => {
    const flags = command.opts<Flags>();
    const settings = readSettings(io, command, USES);
    const group =
      flags.group === undefined ? null : integer('--group', flags.group, 0, 2_147_483_647);
    const sinceMs = duration('--since', flags.since, 1, 365);
    const limit = integer('--limit', flags.limit, 1, MOST_ROWS);
    const rows = await askAsOperator<Row>(settings, HISTORY, [group, sinceMs, limit]);
    if (flags.json === true)
      io.print(
        JSON.stringify(
          rows.map(({ entry }) => entry),
          null,
          2,
        ),
      );
    else io.print(rows.length === 0 ? nothing(group) : tableOf(rows.map(({ entry }) => entry)));
  });
}

interface Row {
  readonly entry: Entry;
}

/** A row of mpp_switchovers. Durations are in milliseconds. */
interface Entry {
  readonly id: number;
  readonly groupid: number;
  readonly kind: string;
  readonly from: string | null;
  readonly to: string | null;
  readonly reportedAt: string;
  readonly endedAt: string;
  /** For people, in UTC. */
  readonly ended: string;
  readonly openingMs: number | null;
  readonly heldMs: number | null;
  readonly committingMs: number | null;
  readonly longestWaitMs: number | null;
  readonly sessionsWaiting: number | null;
  readonly sessionsTerminated: number | null;
  readonly statementsCancelled: number | null;
  readonly pause: string | null;
  readonly source: string;
  readonly reportedBy: string;
  readonly controller: string | null;
  readonly tasks: readonly number[];
  readonly reason: string | null;
}

function nothing(group: number | null): string {
  return `nothing has happened${group === null ? '' : ` in group ${group}`}`;
}

function tableOf(entries: readonly Entry[]): string {
  const titles = [
    ...['ENDED', 'GROUP', 'KIND', 'FROM', 'TO', 'OPENED IN', 'HELD', 'COMMITTED IN'],
    ...['LONGEST WAIT', 'WAITED', 'ENDED SESSIONS', 'TASKS', 'REASON'],
  ];
  const rows = entries.map((entry) => [
    ...[entry.ended, entry.groupid, entry.kind, entry.from, entry.to],
    ...[shown(entry.openingMs), shown(entry.heldMs), shown(entry.committingMs)],
    ...[shown(entry.longestWaitMs), entry.sessionsWaiting, entry.sessionsTerminated],
    ...[entry.tasks.join(', '), entry.reason ?? ''],
  ]);
  return formatTable(titles, rows, '');
}

function shown(ms: number | null): string | null {
  if (ms === null) return null;
  return ms < 1_000 ? `${Math.round(ms)} ms` : `${(ms / 1_000).toFixed(2)} s`;
}

/** Locks nothing. Reads the index mpp_task_log_ended backwards; JSON, so that bigint arrives as a number. */
const HISTORY = `
  SELECT json_build_object(
    'id', s.id, 'groupid', s.groupid, 'kind', s.kind, 'from', s.old_primary, 'to', s.new_primary,
    'reportedAt', s.reported_at, 'endedAt', s.ended_at,
    'ended', to_char(s.ended_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS'),
    'openingMs', round(extract(epoch FROM s.opening) * 1000, 1),
    'heldMs', round(extract(epoch FROM s.held) * 1000, 1),
    'committingMs', round(extract(epoch FROM s.committing) * 1000, 1),
    'longestWaitMs', round(extract(epoch FROM s.longest_wait) * 1000, 1),
    'sessionsWaiting', s.sessions_waiting, 'sessionsTerminated', s.sessions_terminated,
    'statementsCancelled', s.statements_cancelled, 'pause', s.pause, 'source', s.source,
    'reportedBy', s.reported_by, 'controller', s.controller, 'tasks', s.tasks, 'reason', s.reason) AS entry
  FROM @mpp.mpp_switchovers AS s
  WHERE ($1::integer IS NULL OR s.groupid = $1)
    AND ($2::float8 IS NULL OR s.ended_at >= statement_timestamp() - $2::float8 * interval '1 ms')
  ORDER BY s.id DESC
  LIMIT $3`;
