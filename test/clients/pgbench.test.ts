import { afterAll, beforeAll, describe, it } from 'vitest';
import { startPgbench } from './support/pgbench.js';
import { findPostgresProgram, titleOf } from './support/programs.js';
import { Stage } from './support/stage.js';

const pgbench = await findPostgresProgram('pgbench');
const missing =
  pgbench === undefined ? 'pgbench is not installed (Debian: postgresql-contrib)' : undefined;

describe.skipIf(pgbench === undefined)(
  titleOf('pgbench through planned switchovers', missing),
  () => {
    let stage: Stage;

    beforeAll(async () => {
      stage = await Stage.open();
    });
    afterAll(async () => stage.close());

    it.each(['simple'] as const)('fails nowhere with the %s protocol', async (protocol) => {
      await stage.expectUnharmed((entry, range) =>
        startPgbench(String(pgbench), { protocol }, entry, range),
      );
    });
  },
);
