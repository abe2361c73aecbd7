import { Command } from 'commander';
import { elapsed, PAST_SWITCHOVERS, type PastSwitchover } from '../controller/past-switchovers.js';
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
    const values = [group, sinceMs, limit];
    const rows = await askAsOperator<{ entry: PastSwitchover }>(settings, PAST_SWITCHOVERS, values);
    const entries = rows.map(({ entry }) => entry);
    if (flags.json === true) io.print(JSON.stringify(entries, null, 2));
    else io.print(entries.length === 0 ? nothing(group) : tableOf(entries));
  });
}

function nothing(group: number | null): string {
  return `nothing has happened${group === null ? '' : ` in group ${group}`}`;
}

function tableOf(entries: readonly PastSwitchover[]): string {
  const titles = [
    ...['ENDED', 'GROUP', 'KIND', 'FROM', 'TO', 'OPENED IN', 'HELD', 'COMMITTED IN'],
    ...['LONGEST WAIT', 'WAITED', 'ENDED SESSIONS', 'TASKS', 'REASON'],
  ];
  const rows = entries.map((entry) => [
    ...[entry.ended, entry.groupid, entry.kind, entry.from, entry.to],
    ...[elapsed(entry.openingMs), elapsed(entry.heldMs), elapsed(entry.committingMs)],
    ...[elapsed(entry.longestWaitMs), entry.sessionsWaiting, entry.sessionsTerminated],
    ...[entry.tasks.join(', '), entry.reason ?? ''],
  ]);
  return formatTable(titles, rows, '');
}
