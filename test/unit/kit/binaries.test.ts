import { mkdir, mkdtemp, readFile, readlink, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { resolveBinaries } from '../../kit/servers/binaries.js';
import { hasAllLinks, stage } from '../../kit/servers/staging.js';

let folder: string;

beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'mpp-binaries-'));
});

afterEach(async () => {
  await rm(folder, { recursive: true });
});

describe('resolveBinaries', () => {
  it('refuses a major that is not supported, and names those that are', async () => {
    await expect(resolveBinaries({ MPP_PG_MAJOR: '14' })).rejects.toThrow(/'14'.*15, 16, 17, 18/);
  });

  it('names the folder when MPP_PG_BIN has no PostgreSQL', async () => {
    await expect(resolveBinaries({ MPP_PG_BIN: folder })).rejects.toThrow(
      `MPP_PG_BIN is '${folder}'`,
    );
  });
});

describe('stage', () => {
  const links = [{ source: 'native/lib/libpq.so.5.17', target: 'native/lib/libpq.so.5' }];

  /** A package as npm leaves it when it does not run install scripts. */
  async function packageWithoutLinks(): Promise<string> {
    const native = join(folder, 'package', 'native');
    await mkdir(join(native, 'lib'), { recursive: true });
    await writeFile(join(native, 'lib', 'libpq.so.5.17'), 'a library');
    await writeFile(join(native, 'pg-symlinks.json'), JSON.stringify(links));
    return native;
  }

  it('copies the package, makes the missing links in the copy, and leaves the package', async () => {
    const native = await packageWithoutLinks();
    const target = join(folder, 'copy');
    await mkdir(target);
    expect(await hasAllLinks(native)).toBe(false);

    const staged = await stage(native, target, {});

    expect(await readlink(join(staged, 'lib', 'libpq.so.5'))).toBe('libpq.so.5.17');
    expect(await readFile(join(staged, 'lib', 'libpq.so.5'), 'utf8')).toBe('a library');
    expect(await hasAllLinks(staged)).toBe(true);
    expect(await hasAllLinks(native)).toBe(false);
  });

  it('needs no links where the package names none', async () => {
    expect(await hasAllLinks(folder)).toBe(true);
  });
});
