import { afterAll, beforeAll, describe, it } from 'vitest';
import { PYTHON_IS_MISSING, titleOf } from './kit/programs.js';
import { findPython, startPsycopg2 } from './kit/psycopg2.js';
import { Stage } from './kit/stage.js';

const python = await findPython();
const missing = python === undefined ? PYTHON_IS_MISSING : undefined;

describe.skipIf(missing)(titleOf('psycopg2', missing), () => {
  let stage: Stage;

  beforeAll(async () => {
    stage = await Stage.open();
  });
  afterAll(async () => stage.close());

  it('loses nothing in planned switchovers: statements, transactions and cursors', async () => {
    const works = ['insert', 'read', 'transaction', 'cursor'] as const;
    await stage.expectUnharmed((entry, range) =>
      startPsycopg2(String(python), works, entry, range),
    );
  });

  // New sessions for each switchover: see psql.test.ts.
  it('loses nothing in a planned switchover: COPY in both directions', async () => {
    const works = ['copy_in', 'copy_out'] as const;
    await stage.expectUnharmedEach((entry, range) =>
      startPsycopg2(String(python), works, entry, range),
    );
  });
});
