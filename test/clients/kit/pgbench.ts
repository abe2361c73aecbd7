import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Connection } from '../../../src/postgres/session.js';
import {
  APPLICATION_NAME,
  FIRST_INSERTED,
  INSERTED_OF_SESSION,
  ITEMS_OF_SESSION,
  MAX_THINK_MS,
  NOTES_OF_PROGRAM,
  SESSIONS,
  type IdRange,
  type RunningClient,
} from './client.js';
import { ClientProcess } from './process.js';

export interface PgbenchOptions {
  readonly protocol: 'simple' | 'extended' | 'prepared';
  /** Whether each transaction has a connection of its own. */
  readonly reconnects?: boolean;
}

const THINK = `\\set think random(0, ${MAX_THINK_MS} * 1000)\n\\sleep :think us\n`;

/** One script a file. pgbench reports them in the order in which it is given them. */
const SCRIPTS = {
  insert: `\\set n :n + 1
\\set id :base + ${FIRST_INSERTED} + :client_id * ${INSERTED_OF_SESSION} + :n
INSERT INTO items VALUES (:id, 0);
${THINK}`,
  read: `\\set id :base + random(1, ${SESSIONS * ITEMS_OF_SESSION})
SELECT v FROM items WHERE id = :id;
${THINK}`,
  readAll: `SELECT count(*) FROM items WHERE id > :base AND id <= :base + ${SESSIONS * ITEMS_OF_SESSION};
${THINK}`,
  // Rows of items are the session's own: by themselves these transactions never deadlock.
  transaction: `\\set one :base + :client_id * ${ITEMS_OF_SESSION} + random(1, ${ITEMS_OF_SESSION})
\\set two :base + :client_id * ${ITEMS_OF_SESSION} + random(1, ${ITEMS_OF_SESSION})
\\set note :base + random(1, ${NOTES_OF_PROGRAM})
BEGIN;
UPDATE items SET v = v + 1 WHERE id = :one;
UPDATE notes SET v = v + 1 WHERE id = :note;
SELECT v FROM lookup WHERE id = 1;
UPDATE items SET v = v + 1 WHERE id = :two;
COMMIT;
${THINK}`,
} as const;

type ScriptName = keyof typeof SCRIPTS;
const SCRIPT_NAMES = Object.keys(SCRIPTS) as ScriptName[];

/** Longer than any test. SIGALRM ends a run as if its time had passed. */
const DURATION_SECONDS = 600;

/**
 * Starts pgbench with its own scripts for the tables of the tests: one process whose only session
 * reads, one whose sessions write.
 */
export async function startPgbench(
  file: string,
  options: PgbenchOptions,
  connection: Connection,
  { base }: IdRange,
): Promise<RunningClient> {
  const folder = await mkdtemp(join(tmpdir(), 'mpp-pgbench-'));
  const path = (name: ScriptName): string => join(folder, `${name}.sql`);
  for (const name of SCRIPT_NAMES) await writeFile(path(name), SCRIPTS[name]);
  const start = (sessions: number, names: readonly ScriptName[]): Promise<ClientProcess> =>
    startProcess(file, options, connection, [
      ...['-c', String(sessions), '-D', `base=${base}`, '-D', 'n=0'],
      ...names.flatMap((name) => ['-f', path(name)]),
    ]);
  const children = [
    await start(1, ['read', 'readAll']),
    await start(SESSIONS - 1, ['insert', 'transaction']),
  ] as const;
  return {
    stop: async () => {
      const failures = children.flatMap((child) =>
        child.hasEnded ? ['pgbench ended before it was asked to'] : [],
      );
      for (const child of children) child.signal('SIGALRM');
      await Promise.all(children.map((child) => child.ended()));
      await rm(folder, { recursive: true, force: true });
      const [inserted = 0, transactions = 0] = countsOf(children[1]);
      failures.push(...children.flatMap(failuresOf));
      return { inserted, items: 2 * transactions, notes: transactions, failures };
    },
  };
}

async function startProcess(
  file: string,
  { protocol, reconnects = false }: PgbenchOptions,
  { host, port, user, database }: Connection,
  args: readonly string[],
): Promise<ClientProcess> {
  return ClientProcess.start(file, {
    args: [
      '--no-vacuum',
      ...['-M', protocol, '-T', String(DURATION_SECONDS)],
      ...(reconnects ? ['-C'] : []),
      ...args,
      ...['-h', String(host), '-p', String(port), '-U', String(user), String(database)],
    ],
    env: { PGAPPNAME: APPLICATION_NAME },
  });
}

/** Transactions that were committed, of each script. */
function countsOf({ stdout }: ClientProcess): number[] {
  return [...stdout.matchAll(/^SQL script \d+:[^]*?^ - (\d+) transactions/gm)].map(([, count]) =>
    Number(count),
  );
}

function failuresOf({ stdout, stderr, exitCode }: ClientProcess): string[] {
  const failures = stderr.split('\n').filter((line) => /error|fatal|aborted/i.test(line));
  // Deadlocks and serialization failures, which pgbench counts from version 15 on.
  const [, failed = '0'] = /^number of failed transactions: (\d+)/m.exec(stdout) ?? [];
  if (failed !== '0') failures.push(`${failed} failed transactions:\n${stdout}`);
  if (exitCode !== 0) failures.push(`pgbench ended with exit code ${exitCode ?? 'none'}`);
  return failures;
}
