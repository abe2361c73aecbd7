import type { Client } from 'pg';
import { afterAll, beforeAll, describe, expect, inject, it } from 'vitest';
import { setUp } from '../../src/postgres/session.js';
import { ContractServer } from '../kit/contract.js';
import { fillHistory, rowsRead, STATEMENTS, type HistoryStatement } from '../kit/history.js';
import { installStandin } from '../kit/standin/install.js';

const ENDED = 50_000;
const OPEN = 2_000;
const GROUPS = 200;
/** Rows that a statement may read beside the open tasks. */
const TOLERANCE = 100;

const BY_NAME = STATEMENTS.map((statement) => [statement.name, statement] as const);

describe('what is run by itself, in a report or in a view', () => {
  let server: ContractServer;
  let without: Client;
  let withHistory: Client;

  beforeAll(async () => {
    // Vacuum would take the traces of one statement from the next, at any moment.
    server = await ContractServer.start(inject('template'), { autovacuum: false });
    without = await filled('short', 0);
    withHistory = await filled('long', ENDED);
  });
  afterAll(async () => server.stop());

  /** A session as a controller has them, in a database with so many ended tasks. */
  async function filled(name: string, ended: number): Promise<Client> {
    const database = await server.database(name);
    if (!server.server.binaries.hasCitus) await installStandin(database.db);
    await fillHistory(database.db, { ended, logged: 2, open: OPEN, groups: GROUPS });
    const session = await database.session();
    await setUp(session, {}, { schema: 'public' });
    // What a parallel worker reads is not counted.
    await session.query('SET max_parallel_workers_per_gather = 0');
    return session;
  }

  async function most(db: Client, statement: HistoryStatement): Promise<number> {
    const read: number[] = [];
    // A statement that is run often gets a generic plan.
    for (const mode of ['force_custom_plan', 'force_generic_plan']) {
      await db.query("SELECT set_config('plan_cache_mode', $1, false)", [mode]);
      // What was changed and taken back before is gone, from the indexes as well.
      await db.query('VACUUM (INDEX_CLEANUP on) public.mpp_tasks');
      read.push(await rowsRead(db, statement));
    }
    return Math.max(...read);
  }

  it.each(BY_NAME)('reads no more of a long history than of none: %s', async (_, statement) => {
    const short = await most(without, statement);
    const long = await most(withHistory, statement);
    // Beside a long history another plan may look at all open tasks.
    expect(long - short).toBeLessThanOrEqual(OPEN + TOLERANCE);
  });

  it.each(BY_NAME.filter(([, { kind }]) => kind === 'report'))(
    'reads the tasks of its own group at most: %s',
    async (_, statement) => {
      expect(await most(withHistory, statement)).toBeLessThanOrEqual(TOLERANCE);
    },
  );
});
