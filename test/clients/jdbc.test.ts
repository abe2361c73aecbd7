import { afterAll, beforeAll, describe, it } from 'vitest';
import { startJdbc, whatJdbcLacks } from './kit/jdbc.js';
import { titleOf } from './kit/programs.js';
import { Stage } from './kit/stage.js';

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
