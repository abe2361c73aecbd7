import { Command } from 'commander';
import { formatDuration, parseDuration } from '../config/formats.js';
import { eachDatabase, type Settings } from '../config/settings.js';
import { ConfigError } from '../errors.js';
import { readStatus, type Status } from '../controller/status.js';
import { createMPP } from '../mpp/index.js';
import { requireContract } from '../postgres/migration-session.js';
import { CheckError, endingOf } from './exit.js';
import { addSettings, duration, type Io, readSettings, withSession } from './flags.js';
import {
  type CheckLimits,
  checkLine,
  DEFAULT_LIMITS,
  findTrouble,
  type Level,
  LEVELS,
  readFailures,
} from '../controller/trouble.js';
import { statusText } from './status-text.js';
import { watchStatus } from './status-watch.js';

const USES = ['schema', 'databases'] as const;

/** A table that another session has locked must not keep a monitor waiting. */
const BOUNDS = { statement_timeout: 10_000, lock_timeout: 3_000, query_timeout: 12_000 };

interface Flags {
  readonly json?: boolean;
  readonly check?: boolean;
  readonly watch?: true | string;
  readonly pending: string;
  readonly failed: string;
}

export function statusCommand(io: Io): Command {
  const command = new Command('status')
    .description('show who is active, what is held, what waits, and the nodes')
    .option(
      '--json',
      'for machines: one JSON object (with several databases one of each by its name), durations in seconds',
    )
    .option(
      '--watch [duration]',
      `show it again whenever a task changes, and so often at least (${WATCH}), until Ctrl-C`,
    )
    .option('--check', 'for monitoring: one line for each database, and an exit code')
    .option(
      '--pending <duration>',
      'with --check: how long a task may be pending',
      formatDuration(DEFAULT_LIMITS.pendingMs),
    )
    .option(
      '--failed <duration>',
      'with --check: how long a failed task is a warning',
      formatDuration(DEFAULT_LIMITS.failedMs),
    )
    .addHelpText('after', `\n${CHECK_CODES}`);
  return addSettings(command, USES).action(async () => {
    const flags = command.opts<Flags>();
    if (flags.check === true) return check(io, command, flags);
    const settings = readSettings(io, command, USES);
    if (flags.watch === undefined) return show(io, settings, flags);
    const everyMs = duration('--watch', flags.watch === true ? WATCH : flags.watch, 1_000);
    return watchStatus(io, settings, everyMs, () => textOf(settings, limitsOf(flags)));
  });
}

const WATCH = '5s';

async function show(io: Io, settings: Settings, flags: Flags): Promise<void> {
  if (flags.json !== true) {
    io.print(await textOf(settings, limitsOf(flags)));
    return;
  }
  const all: [string, Status][] = [];
  for (const one of eachDatabase(settings)) {
    all.push([one.connection.database ?? '', (await read(one)).status]);
  }
  const shown = settings.databases === undefined ? all[0]?.[1] : Object.fromEntries(all);
  io.print(JSON.stringify(shown, null, 2));
}

/** For people; the last line of each database is the verdict. */
async function textOf(settings: Settings, limits: CheckLimits): Promise<string> {
  const parts: string[] = [];
  for (const one of eachDatabase(settings)) {
    const { status, failures } = await read(one, limits);
    const verdict = checkLine(findTrouble(status, failures, limits), status);
    const title =
      settings.databases === undefined ? '' : `DATABASE ${one.connection.database ?? ''}\n\n`;
    parts.push(`${title}${statusText(status)}\n\n${verdict.replace(/^MPP /, '')}`);
  }
  return parts.join('\n\n');
}

/** @throws CheckError with the worst level of all databases, once each has its line. */
async function check(io: Io, command: Command, flags: Flags): Promise<void> {
  const codes: number[] = [];
  const say = (level: Level, line: string): void => {
    io.print(line);
    codes.push(LEVELS.indexOf(level));
  };
  try {
    const limits = limitsOf(flags);
    const settings = readSettings(io, command, USES);
    for (const one of eachDatabase(settings)) {
      const where = settings.databases === undefined ? '' : ` [${one.connection.database ?? ''}]`;
      try {
        const { status, failures } = await read(one, limits);
        const findings = findTrouble(status, failures, limits);
        say(findings[0]?.level ?? 'OK', `${checkLine(findings, status)}${where}`);
      } catch (error) {
        say('UNKNOWN', `MPP UNKNOWN - ${endingOf(error).line ?? ''}${where}`);
      }
    }
  } catch (error) {
    say('UNKNOWN', `MPP UNKNOWN - ${endingOf(error).line ?? ''}`);
  }
  const worst = Math.max(...codes);
  if (worst > 0) throw new CheckError(worst);
}

async function read(settings: Settings, limits?: CheckLimits) {
  const mpp = createMPP(settings);
  const connection = { ...settings.connection, ...BOUNDS };
  return withSession({ ...settings, connection }, 'status', async (client) => {
    await mpp.refuseWorker(client);
    await requireContract(client, settings.schema);
    return {
      status: await readStatus(client),
      failures: limits === undefined ? [] : await readFailures(client, limits.failedMs),
    };
  });
}

/** @throws ConfigError */
function limitsOf({ pending, failed }: Flags): CheckLimits {
  const read = (flag: string, text: string): number => {
    try {
      return parseDuration(text);
    } catch (error) {
      if (!(error instanceof ConfigError)) throw error;
      throw new ConfigError(`${flag}: ${error.message}`);
    }
  };
  return { pendingMs: read('--pending', pending), failedMs: read('--failed', failed) };
}

const CHECK_CODES = `Exit codes of --check, as Nagios and its like read them:
  0  OK
  1  WARNING: a task is pending for more than half of --pending, one failed within --failed and none has
     succeeded for its group since, or a hold has lost its session
  2  CRITICAL: no controller is active, a task is pending for longer than --pending, or a hold is past its
     deadline
  3  UNKNOWN: the database cannot be asked`;
