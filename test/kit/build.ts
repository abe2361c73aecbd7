import { readdir, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { packageRoot } from '../../src/package-root.js';
import { exists } from './servers/folder.js';
import { run } from './servers/processes.js';

interface Build {
  readonly config: string;
  /** A file that it writes. */
  readonly result: string;
  readonly sources: readonly string[];
}

/** What `npm run build` makes. */
export const PROGRAM: Build = {
  config: 'tsconfig.build.json',
  result: 'dist/cli.js',
  sources: ['src'],
};

/** What `npm run build:support` makes. */
export const SUPPORT: Build = {
  config: 'tsconfig.support.json',
  result: 'build/demo/cli.js',
  sources: ['src', 'test/kit', 'test/faults', 'bench', 'demo'],
};

/** Builds it where it is missing or older than its sources, so that no test runs yesterday's program. */
export async function buildIfChanged({ config, result, sources }: Build): Promise<void> {
  const root = packageRoot();
  const built = join(root, result);
  const builtAt = (await exists(built)) ? (await stat(built)).mtimeMs : 0;
  const changedAt = await Promise.all(sources.map((folder) => newest(join(root, folder))));
  if (Math.max(...changedAt) < builtAt) return;
  // Types are the business of `npm run typecheck`; without them it takes a quarter of the time.
  const tsc = join(root, 'node_modules', 'typescript', 'bin', 'tsc');
  await run(process.execPath, [tsc, '-p', join(root, config), '--noCheck']);
}

/** When a source file below the folder was last written. */
async function newest(folder: string): Promise<number> {
  const names = await readdir(folder, { recursive: true });
  const times = names
    .filter((name) => name.endsWith('.ts'))
    .map(async (name) => (await stat(join(folder, name))).mtimeMs);
  return Math.max(0, ...(await Promise.all(times)));
}
