import { afterAll, beforeAll, describe, it } from 'vitest';
import { findPostgresProgram, PSQL_IS_MISSING, titleOf } from './kit/programs.js';
import { startPsqlCopy } from './kit/psql.js';
import { Stage } from './kit/stage.js';

const psql = await findPostgresProgram('psql');
const missing = psql === undefined ? PSQL_IS_MISSING : undefined;

describe.skipIf(missing)(titleOf('psql', missing), () => {
  let stage: Stage;

  beforeAll(async () => {
    stage = await Stage.open();
  });
  afterAll(async () => stage.close());

  // A session of Citus keeps connections to the nodes. COPY, unlike other statements, does not notice
  // that one of them has ended: in a session that used the address before it was stopped, the first
  // COPY after its return fails, with or without this controller.

  it('loses nothing in a planned switchover: COPY, fed in two parts', async () => {
    await stage.expectUnharmedEach((entry, range) => startPsqlCopy(String(psql), '', entry, range));
  });

  it('loses nothing when the first primary returns, either, where Citus keeps no connections', async () => {
    const options = '-c citus.max_cached_conns_per_worker=0';
    await stage.expectUnharmed((entry, range) =>
      startPsqlCopy(String(psql), options, entry, range),
    );
  });
});
