import { constants } from 'node:fs';
import { copyFile, mkdir, readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { give } from './folder.js';
import { isErrno, run, type Owner } from './processes.js';

/** What a base backup leaves out: WAL is streamed, the rest belongs to the running server. */
const NOT_IN_BACKUP: ReadonlySet<string> = new Set([
  'pg_wal',
  'pg_replslot',
  'pg_dynshmem',
  'pg_notify',
  'pg_serial',
  'pg_snapshots',
  'pg_stat_tmp',
  'pg_subtrans',
]);
const FILES_NOT_IN_BACKUP: ReadonlySet<string> = new Set([
  'postmaster.pid',
  'postmaster.opts',
  'backup_label',
  'tablespace_map',
  'standby.signal',
]);

/** Copies the data folder of a server that is not running. `target` must not exist. */
export async function copyStoppedData(source: string, target: string, owner: Owner): Promise<void> {
  await run('cp', ['-R', '-p', source, target], owner);
}

/** Copies the data folder of a server in backup mode, for a standby. `target` must not exist. */
export async function copyRunningData(source: string, target: string, owner: Owner): Promise<void> {
  await makeFolder(target, owner);
  const entries = await readdir(source, { withFileTypes: true });
  for (const entry of entries) {
    if (FILES_NOT_IN_BACKUP.has(entry.name)) continue;
    const [from, to] = [join(source, entry.name), join(target, entry.name)];
    if (NOT_IN_BACKUP.has(entry.name)) await makeFolder(to, owner);
    else if (entry.isDirectory()) await copyFolder(from, to, owner);
    else await copyOne(from, to, owner);
  }
}

async function copyFolder(source: string, target: string, owner: Owner): Promise<void> {
  await makeFolder(target, owner);
  const entries = await readdir(source, { withFileTypes: true });
  await Promise.all(
    entries.map(async (entry) => {
      const [from, to] = [join(source, entry.name), join(target, entry.name)];
      await (entry.isDirectory() ? copyFolder(from, to, owner) : copyOne(from, to, owner));
    }),
  );
}

async function makeFolder(path: string, owner: Owner): Promise<void> {
  await mkdir(path, { mode: 0o700 });
  await give(path, owner);
}

async function copyOne(source: string, target: string, owner: Owner): Promise<void> {
  try {
    await copyFile(source, target, constants.COPYFILE_FICLONE);
  } catch (error) {
    // A running server drops tables; WAL replay does not miss their files.
    if (isErrno(error, 'ENOENT')) return;
    throw error;
  }
  await give(target, owner);
}
