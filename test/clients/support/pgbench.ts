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
  type ClientReport,
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

/** One script a file, in the order in which pgbench reports them. */
const SCRIPTS = {
  insert: `\\set n :n + 1
\\set id :base + ${FIRST_INSERTED} + :client_id * ${INSERTED_OF_SESSION} + :n
INSERT INTO items VALUES (:id, 0);
${THINK}`,
  read: `\\set id :base + random(1, ${SESSIONS * ITEMS_OF_SESSION})
SELECT v FROM items WHERE id = :id;
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

/** Longer than any test. SIGALRM ends a run as if its time had passed. */
const DURATION_SECONDS = 600;

/** Starts pgbench with its own scripts for the tables of the tests. */
export async function startPgbench(
  file: string,
  { protocol, reconnects = false }: PgbenchOptions,
  { host, port, user, database }: Connection,
  { base }: IdRange,
): Promise<RunningClient> {
  const folder = await mkdtemp(join(tmpdir(), 'mpp-pgbench-'));
  const scripts = [];
  for (const [name, text] of Object.entries(SCRIPTS)) {
    const path = join(folder, `${name}.sql`);
    await writeFile(path, text);
    scripts.push('-f', path);
  }
  const child = await ClientProcess.start(file, {
    args: [
      '--no-vacuum',
      ...['-M', protocol],
      ...['-c', String(SESSIONS)],
      ...['-T', String(DURATION_SECONDS)],
      ...(reconnects ? ['-C'] : []),
      ...['-D', `base=${base}`, '-D', 'n=0'],
      ...scripts,
      ...['-h', String(host), '-p', String(port), '-U', String(user), String(database)],
    ],
    env: { PGAPPNAME: APPLICATION_NAME },
  });
  return {
    stop: async () => {
      const endedEarly = child.hasEnded;
      child.signal('SIGALRM');
      await child.ended();
      await rm(folder, { recursive: true, force: true });
      return reportOf(child, endedEarly);
    },
  };
}

function reportOf(child: ClientProcess, endedEarly: boolean): ClientReport {
  const { stdout, stderr, exitCode } = child;
  const [inserted = 0, , transactions = 0] = [
    ...stdout.matchAll(/^SQL script \d+:[^]*?^ - (\d+) transactions/gm),
  ].map(([, count]) => Number(count));
  const failures = stderr.split('\n').filter((line) => /error|fatal|aborted/i.test(line));
  // Deadlocks and serialization failures, which pgbench counts from version 15 on.
  const [, failed = '0'] = /^number of failed transactions: (\d+)/m.exec(stdout) ?? [];
  if (failed !== '0') failures.push(`${failed} failed transactions:\n${stdout}`);
  if (exitCode !== 0 || endedEarly) {
    failures.push(`pgbench ended with exit code ${exitCode ?? 'none'}`);
  }
  return { inserted, items: 2 * transactions, notes: transactions, failures };
}
