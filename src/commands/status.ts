import type pg from 'pg';
import { Command } from 'commander';
import { formatDuration, parseDuration } from '../config/formats.js';
import { eachDatabase, type Settings } from '../config/settings.js';
import { ConfigError } from '../errors.js';
import { type NodeStatus, readStatus, type Status } from '../controller/status.js';
import { createMPP } from '../mpp/index.js';
import { requireContract } from '../postgres/migration-session.js';
import { CheckError, endingOf } from './exit.js';
import { addSettings, type Io, readSettings, withSession } from './flags.js';
import { formatTable } from './output.js';

const USES = ['schema', 'databases'] as const;

/** A table that another session has locked must not keep a monitor waiting. */
const BOUNDS = { statement_timeout: 10_000, lock_timeout: 3_000, query_timeout: 12_000 };

interface Flags {
  readonly json?: boolean;
  readonly check?: boolean;
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
    .option('--check', 'for monitoring: one line for each database, and an exit code')
    .option('--pending <duration>', 'with --check: how long a task may be pending', '1min')
    .option('--failed <duration>', 'with --check: how long a failed task is a warning', '1h')
    .addHelpText('after', `\n${CHECK_CODES}`);
  return addSettings(command, USES).action(async () => {
    const flags = command.opts<Flags>();
    if (flags.check === true) return check(io, command, flags);
    const settings = readSettings(io, command, USES);
    const all: [string, Status][] = [];
    for (const one of eachDatabase(settings)) {
      all.push([one.connection.database ?? '', (await read(one)).status]);
    }
    const several = settings.databases !== undefined;
    if (flags.json === true) {
      const shown = several ? Object.fromEntries(all) : all[0]?.[1];
      io.print(JSON.stringify(shown, null, 2));
      return;
    }
    const text = all.map(([database, status]) =>
      several ? `DATABASE ${database}\n\n${statusText(status)}` : statusText(status),
    );
    io.print(text.join('\n\n'));
  });
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

/** How a monitoring system counts it; the exit code of `status --check` is the index of the word. */
const LEVELS = ['OK', 'WARNING', 'CRITICAL', 'UNKNOWN'] as const;
export type Level = (typeof LEVELS)[number];

/** What `status --check` tolerates, in milliseconds. */
interface CheckLimits {
  /** A task that waits for longer is critical, for half as long a warning. */
  readonly pendingMs: number;
  /** A task that failed within this time is a warning. */
  readonly failedMs: number;
}

/** Tasks that failed, and the groups of which nothing has succeeded since. */
export interface Failures {
  readonly task: number;
  readonly groupid: number;
}

interface Finding {
  readonly level: Level;
  readonly text: string;
}

/** How late a hold may be ended: the controller looks when the deadline passes. */
const LATE_S = 5;

/** What is wrong, the worst first; empty when all is well. Pure. */
export function findTrouble(
  status: Status,
  failures: readonly Failures[],
  limits: CheckLimits,
): Finding[] {
  const findings: Finding[] = [];
  const add = (level: Level, text: string): void => void findings.push({ level, text });
  if (!status.controllers.some(({ state }) => state === 'active')) {
    add('CRITICAL', 'no controller is active: run mpp-controller run');
  }
  for (const { groupid, remaining, pid } of status.holds) {
    if (remaining < -LATE_S) {
      add('CRITICAL', `the hold of group ${groupid} is ${seconds(-remaining)} past its deadline`);
    } else if (pid === null) add('WARNING', `the hold of group ${groupid} has lost its session`);
  }
  const oldest = (status.oldestPending ?? 0) * 1_000;
  if (oldest > limits.pendingMs / 2) {
    const limit = formatDuration(limits.pendingMs);
    add(
      oldest > limits.pendingMs ? 'CRITICAL' : 'WARNING',
      `a task has been pending for ${seconds(oldest / 1_000)} (limit ${limit})`,
    );
  }
  for (const { task, groupid } of failures) {
    add('WARNING', `task ${task} of group ${groupid} failed, and none has succeeded since`);
  }
  return findings.sort((a, b) => LEVELS.indexOf(b.level) - LEVELS.indexOf(a.level));
}

/** One line, as monitoring systems want it. */
export function checkLine(findings: readonly Finding[], status: Status): string {
  const [worst] = findings;
  if (worst !== undefined) {
    return `MPP ${worst.level} - ${findings.map(({ text }) => text).join('; ')}`;
  }
  const active = status.controllers.find(({ state }) => state === 'active');
  const held = status.holds.length;
  return `MPP OK - active on ${active?.host ?? 'unknown'}, ${status.backlog} pending, ${held} held`;
}

/** @param db a session that names the schema as `@mpp.` */
async function readFailures(db: pg.ClientBase, withinMs: number): Promise<readonly Failures[]> {
  const { rows } = await db.query<Failures>(FAILURES, [withinMs]);
  return rows;
}

/** One a group: the newest. Reads what has ended within that time, by the index on finished_at. */
const FAILURES = `
  SELECT DISTINCT ON (t.groupid) t.id::float8 AS task, t.groupid
  FROM @mpp.mpp_tasks AS t
  WHERE t.finished_at > statement_timestamp() - $1::float8 * interval '1 ms'
    AND t.status = 'failed'
    AND NOT EXISTS (
      SELECT
      FROM @mpp.mpp_tasks AS d
      WHERE d.finished_at > statement_timestamp() - $1::float8 * interval '1 ms'
        AND d.groupid = t.groupid AND d.status = 'done' AND d.id > t.id)
  ORDER BY t.groupid, t.id DESC`;

function seconds(value: number): string {
  return `${Math.round(value)} s`;
}

/** The status for people: one paragraph for each question, "none" where there is nothing to show. */
export function statusText(status: Status): string {
  const paragraphs = [controllers(status), holds(status), queue(status)];
  if (status.nodes !== null) paragraphs.push(nodes(status.nodes));
  return paragraphs.join('\n\n');
}

function controllers(status: Status): string {
  const active = status.controllers.some(({ state }) => state === 'active');
  const warning = active
    ? []
    : ['  None is active: reports wait until one runs (mpp-controller run).'];
  const table = section(
    'Controllers',
    ['STATE', 'HOST', 'PID', 'VERSION', 'STRATEGY', 'MAX HOLDS', 'LAST SEEN', 'ID'],
    status.controllers.map((row) => [
      row.state,
      row.host,
      row.pid,
      row.version,
      row.strategy,
      row.maxHolds ?? 'unlimited',
      `${age(row.heartbeatAge)} ago`,
      row.controller,
    ]),
  );
  return [table, ...warning].join('\n');
}

function holds(status: Status): string {
  return section(
    'Groups held',
    ['GROUP', 'SINCE', 'ENDS', 'WAITING', 'TASKS', 'PID', 'NOTE'],
    status.holds.map((row) => [
      row.groupid,
      `${age(row.age)} ago`,
      row.remaining > 0 ? `in ${age(row.remaining)}` : 'now',
      row.sessionsWaiting,
      row.tasks.join(', '),
      row.pid,
      row.reason ?? '',
    ]),
  );
}

function queue(status: Status): string {
  const oldest =
    status.oldestPending === null ? '' : `, the oldest for ${age(status.oldestPending)}`;
  return section(
    `Tasks (${status.backlog} pending${oldest})`,
    ['NEXT', 'TASK', 'GROUP', 'EVENT', 'NODE', 'STATUS', 'AGE', 'WHY'],
    status.queue.map((row) => [
      row.position,
      row.id,
      row.groupid,
      row.event,
      address(row),
      row.status,
      age(row.age),
      row.why,
    ]),
  );
}

function nodes(rows: readonly NodeStatus[]): string {
  return section(
    'Nodes (pg_dist_node)',
    ['GROUP', 'ROLE', 'NODE', 'NODEID', 'ACTIVE', 'METADATA', 'CLUSTER'],
    rows.map((row) => [
      row.groupid,
      row.role,
      address(row),
      row.nodeid,
      row.active ? 'yes' : 'no',
      row.metadataSynced ? 'in sync' : 'not in sync',
      row.cluster,
    ]),
  );
}

function section(
  title: string,
  titles: readonly string[],
  rows: readonly (readonly (string | number | null)[])[],
): string {
  return `${title}\n${rows.length === 0 ? '  none' : formatTable(titles, rows)}`;
}

function address({ nodename, nodeport }: { nodename: string; nodeport: number }): string {
  return nodename.includes(':') ? `[${nodename}]:${nodeport}` : `${nodename}:${nodeport}`;
}

/** Seconds as a person reads them: tenths below ten, then the two largest units. */
function age(seconds: number): string {
  if (seconds < 10) return `${Math.max(0, seconds).toFixed(1)}s`;
  const whole = Math.floor(seconds);
  const parts: [number, string][] = [
    [Math.floor(whole / 86_400), 'd'],
    [Math.floor(whole / 3_600) % 24, 'h'],
    [Math.floor(whole / 60) % 60, 'min'],
    [whole % 60, 's'],
  ];
  const first = parts.findIndex(([count]) => count > 0);
  return parts
    .slice(first, first + 2)
    .filter(([count]) => count > 0)
    .map(([count, unit]) => `${count}${unit}`)
    .join(' ');
}
