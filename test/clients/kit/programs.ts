import { readdir } from 'node:fs/promises';
import { delimiter, join } from 'node:path';
import { firstThatRuns } from './process.js';

export const PGBENCH_IS_MISSING = 'pgbench is not installed (Debian: postgresql-contrib)';
export const PSQL_IS_MISSING = 'psql is not installed (Debian: postgresql-client)';
export const PYTHON_IS_MISSING = 'no python3 has psycopg2 (Debian: python3-psycopg2)';
export const PGBOUNCER_IS_MISSING = 'PgBouncer is not installed (Debian: pgbouncer)';

const DEBIAN_POSTGRES = '/usr/lib/postgresql';

/** A program of PostgreSQL: of MPP_PG_BIN, of the PATH, or of Debian's newest version. */
export async function findPostgresProgram(name: string): Promise<string | undefined> {
  const { MPP_PG_BIN } = process.env;
  const versions = await readdir(DEBIAN_POSTGRES).catch((): string[] => []);
  const debian = versions
    .sort((a, b) => Number(b) - Number(a))
    .map((version) => join(DEBIAN_POSTGRES, version, 'bin'));
  const own = MPP_PG_BIN === undefined || MPP_PG_BIN === '' ? [] : [MPP_PG_BIN];
  const folders = [...own, ...debian, ...pathFolders()];
  return firstThatRuns(
    folders.map((folder) => join(folder, name)),
    ['--version'],
  );
}

export function pathFolders(): string[] {
  return (process.env['PATH'] ?? '').split(delimiter).filter((folder) => folder !== '');
}

/** Says why the tests of a suite are skipped. @returns the title of the suite. */
export function titleOf(suite: string, missing: string | undefined): string {
  if (missing === undefined) return suite;
  console.warn(`skipped: ${suite}: ${missing}`);
  return `${suite} (skipped: ${missing})`;
}
