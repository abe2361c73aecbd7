import { startVitest } from 'vitest/node';
import { resolveBinaries } from './servers/binaries.js';

/**
 * `npm run test:citus`: the contract and cluster tests on the real Citus of MPP_PG_BIN. Arguments select test
 * files, as those of vitest do. Where there is no Citus it says so, and that is no failure: Citus
 * cannot be had everywhere. A folder that has no PostgreSQL at all is a mistake, and is one.
 */
async function main(files: readonly string[]): Promise<void> {
  const reason = await reasonToSkip(process.env);
  if (reason !== null) {
    process.stdout.write(`skipped: ${reason}\n`);
    return;
  }
  // Sets the exit code itself.
  const vitest = await startVitest('test', [...files], {
    run: true,
    project: ['contract', 'cluster'],
  });
  await vitest.close();
}

async function reasonToSkip(env: NodeJS.ProcessEnv): Promise<string | null> {
  const folder = env['MPP_PG_BIN'];
  if (folder === undefined || folder === '') {
    return 'MPP_PG_BIN is not set; set it to the bin folder of a PostgreSQL that has Citus';
  }
  if (env['MPP_STANDIN'] === '1') {
    return 'MPP_STANDIN=1 asks for the stand-in; unset it to run on the Citus of MPP_PG_BIN';
  }
  const { hasCitus, version } = await resolveBinaries(env);
  return hasCitus ? null : `the PostgreSQL ${version} in ${folder} has no Citus; install it there`;
}

try {
  await main(process.argv.slice(2));
} catch (error) {
  process.stderr.write(`${error instanceof Error ? error.message : String(error)}\n`);
  process.exitCode = 1;
}
