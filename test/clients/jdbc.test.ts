import { afterAll, beforeAll, describe, it } from 'vitest';
import { startJdbc, whatJdbcLacks } from './support/jdbc.js';
import { titleOf } from './support/programs.js';
import { Stage } from './support/stage.js';

const missing = await whatJdbcLacks();

describe.skipIf(missing)(titleOf('JDBC', missing), () => {
  let stage: Stage;

  beforeAll(async () => {
    stage = await Stage.open();
  });
  afterAll(async () => stage.close());

  it.each([
    ['with the simple protocol', 'simple'],
    ['with the extended protocol', 'extended'],
    ['with prepared statements', 'prepared'],
  ] as const)('loses nothing in planned switchovers %s', async (_name, protocol) => {
    await stage.expectUnharmed((entry, range) => startJdbc(protocol, entry, range));
  });
});
