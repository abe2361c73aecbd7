import type { Client } from 'pg';
import { formatTable } from '../src/commands/output.js';
import { applyMigrations } from '../src/postgres/migrate.js';
import { setUp } from '../src/postgres/session.js';
import { pruneTasks } from '../src/tasks/finish.js';
import {
  fillHistory,
  rowsRead,
  STATEMENTS,
  type HistorySize,
  type HistoryStatement,
} from '../test/kit/history.js';
import { TestBed, type Server } from '../test/kit/servers/index.js';
import { installStandin } from '../test/kit/standin/install.js';
import { bench, countOf, progress, say, sayJson } from './bench.js';
import { percentile, summary, summaryText } from './figures.js';

const ENDED = countOf('ENDED', 3_000_000);
/** Log entries of each ended task. */
const LOGGED = countOf('LOGGED', 1);
const OPEN = countOf('OPEN', 20_000);
const GROUPS = countOf('TASK_GROUPS', 2_000);
const ROUNDS = countOf('ROUNDS', 20);
const WARM_UP_ROUNDS = 3;

/** How much longer a report may take than with an empty table, in milliseconds. */
const REPORT_MOST_MS = 10;
/** What anything else may take. */
const MOST_MS = 100;

const FULL: HistorySize = { ended: ENDED, logged: LOGGED, open: OPEN, groups: GROUPS };
const EMPTY: HistorySize = { ended: 0, logged: 0, open: 0, groups: GROUPS };

const DAY_MS = 86_400_000;
/** The history is of 29 days, so this finds a full batch. */
const PRUNE_BATCH: HistoryStatement = {
  name: 'prune of a full batch',
  kind: 'controller',
  run: (db) => pruneTasks(db, 28 * DAY_MS),
};

interface Measured {
  readonly statement: HistoryStatement;
  readonly empty: readonly number[];
  readonly full: readonly number[];
  /** Rows and index entries read with all tasks there. */
  readonly read: number;
}

/** What each statement costs beside a long history, against an empty table in the same run. */
async function main(): Promise<void> {
  const testBed = await TestBed.open();
  try {
    const server = await testBed.createServer('history', {
      autovacuum: false,
      shared_buffers: '512MB',
      max_wal_size: '8GB',
    });
    await server.start();
    const empty = await prepare(server, 'without', EMPTY);
    progress(`filling in ${ENDED} ended and ${OPEN} open tasks`);
    const full = await prepare(server, 'with_history', FULL);
    const measured: Measured[] = [];
    for (const statement of [...STATEMENTS, ...(await extra(full)), PRUNE_BATCH]) {
      measured.push(await measure(statement, empty, full));
      progress(`${statement.name}: ${summaryText(measured.at(-1)?.full ?? [])}`);
    }
    await Promise.all([empty.end(), full.end()]);
    report(testBed, measured);
  } finally {
    await testBed.close();
  }
}

/** @returns a session set up as a controller's is, in a database of that size. */
async function prepare(server: Server, name: string, size: HistorySize): Promise<Client> {
  await server.withSession((session) => session.query(`CREATE DATABASE ${name}`));
  const owner = await server.connect('bench', name);
  if (server.binaries.hasCitus) await owner.query('CREATE EXTENSION citus');
  else await installStandin(owner);
  await applyMigrations(owner, { schema: 'public', lockTimeoutMs: 10_000 });
  await owner.query('SET search_path = public');
  await fillHistory(owner, size);
  await owner.query('VACUUM (ANALYZE)');
  await owner.query('CHECKPOINT');
  await owner.end();
  const session = await server.connect('bench', name);
  await setUp(session, {}, { schema: 'public' });
  return session;
}

/** Views of later versions. */
async function extra(db: Client): Promise<HistoryStatement[]> {
  const { rows } = await db.query<{ name: string }>(
    `SELECT c.relname AS name FROM pg_class AS c
     WHERE c.relkind = 'v' AND c.relname ~ '^mpp_' AND c.relname <> ALL ($1::text[])
     ORDER BY c.relname`,
    [STATEMENTS.map(({ name }) => name)],
  );
  return rows.map(({ name }) => ({
    name,
    kind: 'view',
    run: (session) => session.query(`SELECT * FROM @mpp.${name}`),
  }));
}

/** In turn, so that what else the machine does is in both. */
async function measure(
  statement: HistoryStatement,
  empty: Client,
  full: Client,
): Promise<Measured> {
  const times = { empty: [] as number[], full: [] as number[] };
  for (let round = 0; round < WARM_UP_ROUNDS + ROUNDS; round += 1) {
    const [inEmpty, inFull] = [await timeOf(empty, statement), await timeOf(full, statement)];
    if (round < WARM_UP_ROUNDS) continue;
    times.empty.push(inEmpty);
    times.full.push(inFull);
  }
  return { statement, ...times, read: await rowsRead(full, statement) };
}

async function timeOf(db: Client, { run }: HistoryStatement): Promise<number> {
  await db.query('BEGIN');
  const start = performance.now();
  try {
    await run(db);
    return performance.now() - start;
  } finally {
    await db.query('ROLLBACK');
  }
}

/** Others may use the machine, too: a goal is for the median. */
function isReached({ statement, empty, full }: Measured): boolean {
  const usual = percentile(full, 50);
  if (statement.kind !== 'report') return usual < MOST_MS;
  return usual - percentile(empty, 50) < REPORT_MOST_MS;
}

function goalText({ kind }: HistoryStatement): string {
  return kind === 'report' ? `< ${REPORT_MOST_MS} ms more` : `< ${MOST_MS} ms`;
}

function report({ binaries }: TestBed, measured: readonly Measured[]): void {
  const citus = binaries.hasCitus ? 'Citus' : 'the stand-in for Citus';
  say(
    `PostgreSQL ${binaries.version} with ${citus}: ${ENDED} ended and ${OPEN} open tasks of ${GROUPS} groups, ` +
      `${LOGGED} log entries a task; ${ROUNDS} rounds\n`,
  );
  say(
    formatTable(
      ['STATEMENT', 'EMPTY p50 / max', 'FULL p50 / max', 'GOAL', 'REACHED', 'ROWS READ'],
      measured.map((one) => [
        one.statement.name,
        summaryText(one.empty),
        summaryText(one.full),
        goalText(one.statement),
        isReached(one) ? 'yes' : 'no',
        one.read,
      ]),
    ),
  );
  say('');
  sayJson('history', {
    ended: ENDED,
    open: OPEN,
    groups: GROUPS,
    statements: measured.map((one) => ({
      name: one.statement.name,
      empty: summary(one.empty),
      full: summary(one.full),
      rowsRead: one.read,
      reached: isReached(one),
    })),
  });
  const missed = measured.filter((one) => !isReached(one)).map(({ statement }) => statement.name);
  if (missed.length > 0) throw new Error(`missed by ${missed.join(', ')}`);
}

await bench('history', main);
