import { Command } from 'commander';
import { eachDatabase, SETTINGS, unknownVariables } from '../config/settings.js';
import { findings } from '../doctor/checks.js';
import { LEVELS, worstOf, type Finding, type Level } from '../doctor/finding.js';
import { look } from '../doctor/look.js';
import { CheckError } from './exit.js';
import { addSettings, duration, readSettings, type Io } from './flags.js';

const USES = [
  'schema',
  'databases',
  'strategy',
  'maxSessions',
  'localHostname',
  'patroni',
  'patroniCa',
] as const;

const CODES = `Exit codes: 0 nothing is wrong, 1 at least one warning, 2 at least one error.
A wrong flag or setting ends with 2 as well, with a line on standard error and no findings.
It changes nothing. A fix is SQL below the server to run it on, or a command of a shell.`;

interface Flags {
  readonly json?: boolean;
  readonly older: string;
  readonly localHostname?: string;
}

export function doctorCommand(io: Io): Command {
  const command = new Command('doctor')
    .description('look for what would keep a switchover from working, and say how to fix it')
    .option(
      '--json',
      'for machines: {"findings": […]} (with several databases one of each by its name)',
    )
    .option(
      '--older <duration>',
      'transactions and tasks that have been open for longer are said',
      '1min',
    )
    .addHelpText('after', `\n${CODES}`);
  return addSettings(command, USES).action(async () => {
    const settings = readSettings(io, command, USES);
    const flags = command.opts<Flags>();
    const isJson = flags.json === true;
    const options = {
      unknownVariables: unknownVariables(io.env),
      olderMs: duration('--older', flags.older, 0),
      isHostnameNamed: Boolean(flags.localHostname ?? io.env[SETTINGS.localHostname.env]),
    };
    const all: (readonly [string, Finding[]])[] = [];
    for (const one of eachDatabase(settings)) {
      const observed = await look({ ...options, settings: one });
      all.push([one.connection.database ?? '', findings(observed)]);
    }
    io.print(isJson ? json(all, settings.databases !== undefined) : text(all));
    const worst = worstOf(all.flatMap(([, found]) => found));
    if (EXIT_CODES[worst] > 0) throw new CheckError(EXIT_CODES[worst]);
  });
}

const EXIT_CODES: Readonly<Record<Level, number>> = { ok: 0, note: 0, warning: 1, error: 2 };

type ByDatabase = readonly (readonly [string, readonly Finding[]])[];

function json(all: ByDatabase, several: boolean): string {
  const shown = several
    ? Object.fromEntries(all.map(([database, found]) => [database, { findings: found }]))
    : { findings: all[0]?.[1] ?? [] };
  return JSON.stringify(shown, null, 2);
}

function text(all: ByDatabase): string {
  if (all.length === 1) return findingsText(all[0]?.[1] ?? []);
  return all
    .map(([database, found]) => `DATABASE ${database}\n\n${findingsText(found)}`)
    .join('\n\n');
}

/** The findings for people: by level, the worst first, a line each with its fix below; the last line counts them. */
export function findingsText(found: readonly Finding[]): string {
  const levels = [...LEVELS].reverse();
  const groups = levels.map((level) => ({
    level,
    own: found.filter((one) => one.level === level),
  }));
  const paragraphs = groups
    .filter(({ own }) => own.length > 0)
    .map(({ level, own }) => [level.toUpperCase(), ...own.flatMap(lines)].join('\n'));
  const counts = groups.map(({ level, own }) => `${own.length} ${level}`);
  return [...paragraphs, counts.join(', ')].join('\n\n');
}

function lines({ id, level, sentence, expected, actual, fix, node }: Finding): string[] {
  if (level === 'ok') return [`  ${id}: ${sentence}`];
  const where = node === null ? '' : ` [${node}]`;
  return [
    `  ${id}${where}: ${sentence} Expected: ${expected}. Actual: ${actual}.`,
    ...fix.map((line) => `      ${line}`),
  ];
}
