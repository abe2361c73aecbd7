import { afterAll, beforeAll, describe, it } from 'vitest';
import { startPgbench, type PgbenchOptions } from './kit/pgbench.js';
import { findPostgresProgram, PGBENCH_IS_MISSING, titleOf } from './kit/programs.js';
import { Stage } from './kit/stage.js';

const pgbench = await findPostgresProgram('pgbench');
const missing = pgbench === undefined ? PGBENCH_IS_MISSING : undefined;

describe.skipIf(missing)(titleOf('pgbench', missing), () => {
  let stage: Stage;

  beforeAll(async () => {
    stage = await Stage.open();
  });
  afterAll(async () => stage.close());

  it.each<[string, PgbenchOptions]>([
    ['with the simple protocol', { protocol: 'simple' }],
    ['with the extended protocol', { protocol: 'extended' }],
    ['with prepared statements', { protocol: 'prepared' }],
    ['with a connection for each transaction', { protocol: 'simple', reconnects: true }],
  ])('loses nothing in planned switchovers %s', async (_name, options) => {
    await stage.expectUnharmed((entry, range) =>
      startPgbench(String(pgbench), options, entry, range),
    );
  });
});
