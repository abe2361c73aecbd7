import { access, chmod, chown, mkdtemp, rm, statfs } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { CommandError, run, type Owner } from './processes.js';

const GIGABYTE = 2 ** 30;
const MEMORY = '/dev/shm';

/**
 * Makes a new empty folder for servers' data that belongs to `owner`: in memory when a gigabyte is
 * free there, else where temporary files go.
 */
export async function createDataFolder(owner: Owner): Promise<string> {
  const places = (await freeBytes(MEMORY)) >= GIGABYTE ? [MEMORY, tmpdir()] : [tmpdir()];
  return createFolder(places, owner);
}

/** Makes a new empty folder for programs. Never in memory: that is often mounted noexec. */
export async function createProgramFolder(owner: Owner): Promise<string> {
  return createFolder([tmpdir()], owner);
}

/** Removes a folder and all in it, also while a dying server still writes to it. */
export async function removeFolder(folder: string): Promise<void> {
  await rm(folder, { recursive: true, force: true, maxRetries: 10, retryDelay: 50 });
}

async function createFolder(places: readonly string[], owner: Owner): Promise<string> {
  // The user's TMPDIR may be below a folder that only root can enter.
  for (const place of [...places, '/tmp']) {
    const folder = await mkdtemp(join(place, 'mpp-')).catch(() => undefined);
    if (folder === undefined) continue;
    await give(folder, owner);
    await chmod(folder, 0o700);
    if (await canUse(folder, owner)) return folder;
    await removeFolder(folder);
  }
  throw new Error(
    `no folder for servers: tried ${places.join(', ')}, /tmp; set TMPDIR to one that uid ${owner.uid ?? 'of this process'} can write to`,
  );
}

/** Hands a file or folder to `owner`; nothing to do when that is ourselves. */
export async function give(path: string, { uid, gid }: Owner): Promise<void> {
  if (uid !== undefined && gid !== undefined) await chown(path, uid, gid);
}

/** The same for a folder and all in it. */
export async function giveAll(folder: string, { uid, gid }: Owner): Promise<void> {
  if (uid !== undefined && gid !== undefined) await run('chown', ['-R', `${uid}:${gid}`, folder]);
}

export async function exists(path: string): Promise<boolean> {
  return access(path).then(
    () => true,
    () => false,
  );
}

async function canUse(folder: string, owner: Owner): Promise<boolean> {
  if (owner.uid === undefined) return true;
  try {
    await run('test', ['-w', folder], owner);
    return true;
  } catch (error) {
    if (error instanceof CommandError) return false;
    throw error;
  }
}

async function freeBytes(folder: string): Promise<number> {
  try {
    const { bavail, bsize } = await statfs(folder);
    return bavail * bsize;
  } catch {
    return 0;
  }
}
