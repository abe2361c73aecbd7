import { cp, readFile, symlink } from 'node:fs/promises';
import { basename, dirname, join, relative } from 'node:path';
import { z } from 'zod';
import { exists, giveAll } from './folder.js';
import { isErrno, type Owner } from './processes.js';

/** What an embedded PostgreSQL package says about the links that npm cannot pack. */
const LINKS = z.array(z.object({ source: z.string(), target: z.string() }));
type Links = z.infer<typeof LINKS>;

/** True when every link that the package needs is in its folder `native`. */
export async function hasAllLinks(native: string): Promise<boolean> {
  const links = await readLinks(native);
  const found = await Promise.all(links.map(({ target }) => exists(join(dirname(native), target))));
  return !found.includes(false);
}

/**
 * Copies bin, lib and share of an embedded PostgreSQL into `folder`, makes the missing links there,
 * and gives all of it to `owner`. The package itself is never written to.
 *
 * @returns the folder of the copy.
 */
export async function stage(native: string, folder: string, owner: Owner): Promise<string> {
  const target = join(folder, basename(native));
  await cp(native, target, { recursive: true, verbatimSymlinks: true });
  for (const link of await readLinks(native)) {
    const path = join(folder, link.target);
    await symlink(relative(dirname(link.target), link.source), path).catch((error: unknown) => {
      if (!isErrno(error, 'EEXIST')) throw error;
    });
  }
  await giveAll(target, owner);
  return target;
}

async function readLinks(native: string): Promise<Links> {
  try {
    return LINKS.parse(JSON.parse(await readFile(join(native, 'pg-symlinks.json'), 'utf8')));
  } catch (error) {
    if (isErrno(error, 'ENOENT')) return [];
    throw error;
  }
}
