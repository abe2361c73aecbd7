import { afterAll, beforeAll, describe, it } from 'vitest';
import { SESSIONS } from './kit/client.js';
import { startPgbench, type PgbenchOptions } from './kit/pgbench.js';
import { findPgbouncer, PgBouncer, type PoolMode } from './kit/pgbouncer.js';
import {
  findPostgresProgram,
  PGBENCH_IS_MISSING,
  PGBOUNCER_IS_MISSING,
  titleOf,
} from './kit/programs.js';
import { Stage } from './kit/stage.js';

const [pgbouncer, pgbench] = [await findPgbouncer(), await findPostgresProgram('pgbench')];
const missing =
  pgbouncer === undefined
    ? PGBOUNCER_IS_MISSING
    : pgbench === undefined
      ? PGBENCH_IS_MISSING
      : undefined;

/** Fewer than the clients' sessions, which take turns. */
const SHARED_POOL = SESSIONS / 2;

describe.skipIf(missing)(titleOf('PgBouncer', missing), () => {
  let stage: Stage;

  beforeAll(async () => {
    stage = await Stage.open();
  });
  afterAll(async () => stage.close());

  it.each<[string, PoolMode, number, PgbenchOptions]>([
    ['session pooling', 'session', SESSIONS, { protocol: 'prepared' }],
    [
      'session pooling, sessions taken in turns',
      'session',
      SHARED_POOL,
      { protocol: 'simple', reconnects: true },
    ],
    ['transaction pooling', 'transaction', SHARED_POOL, { protocol: 'simple' }],
    [
      'transaction pooling, extended protocol',
      'transaction',
      SHARED_POOL,
      { protocol: 'extended' },
    ],
  ])('loses nothing in planned switchovers: %s', async (_name, poolMode, poolSize, options) => {
    const pooler = await PgBouncer.start(String(pgbouncer), stage.entries, { poolMode, poolSize });
    try {
      await stage.expectUnharmed((entry, range) =>
        startPgbench(String(pgbench), options, pooler.connectionTo(entry), range),
      );
    } finally {
      await pooler.stop();
    }
  });
});
