import { afterAll, beforeAll, describe, it } from 'vitest';
import { findPostgresProgram, PSQL_IS_MISSING, titleOf } from './support/programs.js';
import { startPsqlCopy } from './support/psql.js';
import { Stage } from './support/stage.js';

const psql = await findPostgresProgram('psql');
const missing = psql === undefined ? PSQL_IS_MISSING : undefined;

describe.skipIf(missing)(titleOf('psql', missing), () => {
  let stage: Stage;

  beforeAll(async () => {
    stage = await Stage.open();
  });
  afterAll(async () => stage.close());

  it('loses nothing in planned switchovers: COPY, fed in two parts', async () => {
    await stage.expectUnharmed((entry, range) => startPsqlCopy(String(psql), entry, range));
  });
});
