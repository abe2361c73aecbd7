import { readdir } from 'node:fs/promises';
import { delimiter, join } from 'node:path';
import { firstThatRuns } from './process.js';

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

/**
 * Says why tests are skipped. @returns the title of their suite.
 */
export function titleOf(suite: string, missing: string | undefined): string {
  if (missing === undefined) return suite;
  console.warn(`skipped: ${suite}: ${missing}`);
  return `${suite} (skipped: ${missing})`;
}
