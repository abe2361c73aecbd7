import type { Client } from 'pg';
import { afterAll, beforeAll, describe, expect, inject, it } from 'vitest';
import { Leadership, type Attempt } from '../../src/controller/leadership.js';
import { DatabaseStateError } from '../../src/errors.js';
import { applyMigrations } from '../../src/postgres/migrate.js';
import { nameSchema } from '../../src/postgres/schema-name.js';
import { ContractServer, type ContractDatabase } from '../kit/contract.js';
import { waitFor } from '../kit/servers/index.js';

describe('controllers of two schemas of one database', () => {
  const schemas = ['mpp_one', 'mpp_two'] as const;
  let server: ContractServer;
  let one: ContractDatabase;

  beforeAll(async () => {
    server = await ContractServer.start(inject('template'));
    one = await server.database('two_schemas', schemas[0]);
    const session = await server.server.connect('test', 'two_schemas');
    await applyMigrations(session, { schema: schemas[1], lockTimeoutMs: 10_000 }).finally(() =>
      session.end(),
    );
  });

  afterAll(async () => server.stop());

  async function candidate(schema: string): Promise<{ session: Client; leadership: Leadership }> {
    const session = await server.server.connect('test', 'two_schemas');
    nameSchema(session, schema);
    return { session, leadership: new Leadership(session, schema) };
  }

  it('never lead both: of two that start at the same moment one does', async () => {
    for (let round = 0; round < 8; round += 1) {
      const candidates = await Promise.all(schemas.map(candidate));
      const tries = candidates.map(({ leadership }) =>
        leadership.tryLead().catch((error: unknown) => error),
      );
      const results = await Promise.all(tries);
      const leads = results.filter((result) => (result as Attempt).leads);
      expect(leads).toHaveLength(1);
      const refused = results.find((result) => !(result as Attempt).leads);
      if (refused instanceof Error) {
        expect(refused).toBeInstanceOf(DatabaseStateError);
        expect(refused).toMatchObject({ code: 'OTHER_SCHEMA' });
        expect(refused.message).toMatch(/pid \d+ .* in schema mpp_(one|two) of this database/);
      }
      const leader = candidates[results.findIndex((result) => (result as Attempt).leads)];
      await Promise.all(
        candidates.filter((other) => other !== leader).map(({ session }) => session.end()),
      );
      await leader?.session.end();
      await waitFor('no leader to be left', async () => {
        const { rowCount } = await one.db.query(
          "SELECT FROM pg_locks WHERE locktype = 'advisory' AND classid::bigint BETWEEN 1297154048 AND 1297219583",
        );
        return rowCount === 0;
      });
    }
  });

  it('are not kept out by a role without rights that holds a lock of that kind', async () => {
    await one.db.query('CREATE ROLE imitator LOGIN');
    const imitator = await one.session({ user: 'imitator', searchPath: 'pg_catalog' });
    await imitator.query(
      'SELECT pg_advisory_lock(1297154048 + n, 1) FROM generate_series(0, 99) AS n',
    );
    const { session, leadership } = await candidate('mpp_one');
    expect(await leadership.tryLead()).toEqual({ leads: true });
    await Promise.all([session.end(), imitator.end()]);
  });
});
