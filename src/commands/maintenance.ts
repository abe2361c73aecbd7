import { Argument, Command } from 'commander';
import { formatDuration } from '../config/formats.js';
import { eachDatabase, type Settings } from '../config/settings.js';
import { CommandError, EXIT } from './exit.js';
import { addSettings, duration, integer, type Io, readSettings } from './flags.js';
import { askAsOperator } from './operator.js';
import { formatTable } from './output.js';

const USES = ['schema', 'databases'] as const;
const DEFAULT = '1h';
const MOST_DAYS = 30;

interface Flags {
  readonly group?: string;
  readonly for?: string;
  readonly reason?: string;
  readonly json?: true;
}

export function maintenanceCommand(io: Io): Command {
  const command = declare();
  return addSettings(command, USES).action(async (what: 'on' | 'off' | 'show') => {
    const flags = command.opts<Flags>();
    const settings = readSettings(io, command, USES);
    const group =
      flags.group === undefined ? null : integer('--group', flags.group, 0, 2_147_483_647);
    refuseUnused(what, flags);
    const ms = duration('--for', flags.for ?? DEFAULT, 1, MOST_DAYS);
    const whose = group === null ? 'all groups' : `group ${group}`;
    for (const one of eachDatabase(settings)) {
      const where = settings.databases === undefined ? '' : ` [${one.connection.database ?? ''}]`;
      if (what === 'show') {
        const rows = await read(one);
        io.print(flags.json === true ? JSON.stringify(rows, null, 2) : tableOf(rows) + where);
      } else if (what === 'on') {
        const [row] = await askAsOperator<{ until: string }>(one, START, [
          group,
          ms,
          flags.reason ?? null,
        ]);
        io.print(
          `${whose}: maintenance for ${formatDuration(ms)}, until ${row?.until ?? ''}${where}`,
        );
      } else {
        const [row] = await askAsOperator<{ ended: boolean }>(one, END, [group]);
        io.print(`${whose}: ${row?.ended === true ? 'maintenance is ended' : NONE}${where}`);
      }
    }
  });
}

function declare(): Command {
  return new Command('maintenance')
    .description(
      'start, end or show maintenance: the comparison of members and the probe make no tasks, ' +
        'while reports count as always; for members of mpp_operator',
    )
    .addArgument(
      new Argument('[what]', 'what to do').choices(['on', 'off', 'show']).default('show'),
    )
    .option('--group <groupid>', 'for this group (default: for all)')
    .option('--for <duration>', `with on: when it ends by itself (default ${DEFAULT})`)
    .option('--reason <text>', 'with on: what others are to read')
    .option('--json', 'with show: print a JSON array');
}

const NONE = 'there was no maintenance';

/** @throws CommandError */
function refuseUnused(what: string, flags: Flags): void {
  const unused = [
    ...(what === 'on' ? [] : (['for', 'reason'] as const)),
    ...(what === 'show' ? [] : (['json'] as const)),
  ].filter((flag) => flags[flag] !== undefined);
  if (unused.length === 0) return;
  const named = unused.map((flag) => `--${flag}`).join(', ');
  throw new CommandError(EXIT.usage, `${named} cannot be used with ${what}; leave it out`);
}

interface Maintenance {
  /** Null stands for all groups. */
  readonly groupid: number | null;
  readonly until: string;
  readonly since: string;
  readonly startedBy: string;
  readonly reason: string | null;
}

function tableOf(rows: readonly Maintenance[]): string {
  if (rows.length === 0) return 'no group is in maintenance';
  const titles = ['GROUP', 'UNTIL', 'SINCE', 'STARTED BY', 'REASON'];
  const cells = rows.map((row) => [
    ...[row.groupid ?? 'all', row.until, row.since, row.startedBy, row.reason ?? ''],
  ]);
  return formatTable(titles, cells, '');
}

async function read(settings: Settings): Promise<Maintenance[]> {
  return askAsOperator<Maintenance>(settings, READ, []);
}

const START = `
  SELECT to_char(@mpp.mpp_start_maintenance($1::integer, $2::float8 * interval '1 ms', $3::text),
                 'YYYY-MM-DD HH24:MI:SS OF') AS until`;

const END = 'SELECT @mpp.mpp_end_maintenance($1::integer) AS ended';

/** Locks nothing; at most a row for each group. */
const READ = `
  SELECT m.groupid, to_char(m.until, 'YYYY-MM-DD HH24:MI:SS OF') AS until,
         to_char(m.since, 'YYYY-MM-DD HH24:MI:SS OF') AS since, m.started_by AS "startedBy", m.reason
  FROM @mpp.mpp_maintenance AS m
  WHERE m.until > statement_timestamp()
  ORDER BY m.groupid NULLS FIRST`;
