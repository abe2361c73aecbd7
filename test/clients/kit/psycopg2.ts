import { join } from 'node:path';
import type { Connection } from '../../../src/postgres/session.js';
import { APPLICATION_NAME, type IdRange, type RunningClient } from './client.js';
import { firstThatRuns } from './process.js';
import { pathFolders } from './programs.js';
import { programFile, startWorkerProgram } from './worker-program.js';

/** What a session does; see test/clients/programs/psycopg2_client.py. */
export type Psycopg2Work = 'insert' | 'read' | 'transaction' | 'cursor' | 'copy_in' | 'copy_out';

/** A Python that has psycopg2; Debian's own comes after others of the PATH. */
export async function findPython(): Promise<string | undefined> {
  const files = [...pathFolders(), '/usr/bin'].map((folder) => join(folder, 'python3'));
  return firstThatRuns(files, ['-c', 'import psycopg2']);
}

export async function startPsycopg2(
  python: string,
  works: readonly Psycopg2Work[],
  { host, port, user, database }: Connection,
  range: IdRange,
): Promise<RunningClient> {
  return startWorkerProgram(
    [python, programFile('psycopg2_client.py')],
    {
      PGHOST: String(host),
      PGPORT: String(port),
      PGUSER: String(user),
      PGDATABASE: String(database),
      PGAPPNAME: APPLICATION_NAME,
      CLIENT_WORKS: works.join(','),
    },
    range,
  );
}
