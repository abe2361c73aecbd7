import { setTimeout as sleep } from 'node:timers/promises';
import type { Connection } from '../../../src/postgres/session.js';
import { waitFor } from '../../kit/servers/wait.js';
import {
  APPLICATION_NAME,
  FIRST_INSERTED,
  INSERTED_OF_SESSION,
  MAX_THINK_MS,
  SESSIONS,
  type IdRange,
  type RunningClient,
} from './client.js';
import { ClientProcess } from './process.js';

const ROWS_OF_COPY = 20;

/**
 * Starts one psql for each session; each feeds one COPY after the other, with a pause in each.
 *
 * @param options settings of its sessions, as in PGOPTIONS.
 */
export async function startPsqlCopy(
  file: string,
  options: string,
  { host, port, user, database }: Connection,
  { base }: IdRange,
): Promise<RunningClient> {
  const stopping = new AbortController();
  const children = await Promise.all(
    Array.from({ length: SESSIONS }, () =>
      ClientProcess.start(file, {
        args: ['--no-psqlrc', '--set', 'ON_ERROR_STOP=1', '--file', '-'],
        env: {
          PGHOST: String(host),
          PGPORT: String(port),
          PGUSER: String(user),
          PGDATABASE: String(database),
          PGAPPNAME: APPLICATION_NAME,
          PGOPTIONS: options,
        },
      }),
    ),
  );
  const working = children.map((child, session) =>
    copyUntil(stopping.signal, child, base + FIRST_INSERTED + session * INSERTED_OF_SESSION),
  );
  const finished = Promise.all(working);
  finished.catch(() => undefined);
  return {
    stop: async () => {
      stopping.abort();
      await finished;
      for (const child of children) child.closeInput();
      await Promise.all(children.map((child) => child.ended()));
      return {
        inserted: children.reduce((sum, child) => sum + copiedRows(child), 0),
        items: 0,
        notes: 0,
        failures: children.flatMap(failuresOf),
      };
    },
  };
}

async function copyUntil(
  stopping: AbortSignal,
  child: ClientProcess,
  lastId: number,
): Promise<void> {
  let id = lastId;
  const row = () => `${(id += 1)}\t0\n`;
  for (let copies = 1; !stopping.aborted && !child.hasEnded; copies += 1) {
    child.write(`COPY items (id, v) FROM STDIN;\n${row()}`);
    await sleep(Math.random() * MAX_THINK_MS);
    const rest = Array.from({ length: ROWS_OF_COPY - 1 }, row).join('');
    child.write(`${rest}\\.\n`);
    await waitFor('psql to be told that its rows are committed', () =>
      Promise.resolve(child.hasEnded || copiedRows(child) === copies * ROWS_OF_COPY),
    );
    await sleep(Math.random() * MAX_THINK_MS);
  }
}

function copiedRows({ stdout }: ClientProcess): number {
  return [...stdout.matchAll(/^COPY (\d+)$/gm)].reduce((sum, [, count]) => sum + Number(count), 0);
}

function failuresOf({ stderr, exitCode }: ClientProcess): string[] {
  if (exitCode === 0 && stderr === '') return [];
  return [`psql ended with exit code ${exitCode ?? 'none'}: ${stderr}`];
}
