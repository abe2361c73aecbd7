import { afterAll, beforeAll, expect, inject, it } from 'vitest';
import { TRIGGERS } from '../../src/doctor/triggers.js';
import { ContractServer } from '../kit/contract.js';

let server: ContractServer;

beforeAll(async () => {
  server = await ContractServer.start(inject('template'));
});
afterAll(async () => server.stop());

it('the triggers that the doctor expects are those that the migrations make', async () => {
  const { db } = await server.database('triggers');
  await db.query('SET search_path = pg_catalog');
  const { rows } = await db.query<{ table: string; name: string; definition: string }>(`
    SELECT c.relname AS table, t.tgname AS name, pg_get_triggerdef(t.oid) AS definition
    FROM pg_trigger AS t
    JOIN pg_class AS c ON c.oid = t.tgrelid
    WHERE NOT t.tgisinternal AND c.relnamespace = 'public'::regnamespace
    ORDER BY 1, 2`);
  const made = rows.map((row) => ({
    ...row,
    definition: row.definition.replaceAll('public.', '@mpp.'),
  }));
  expect(TRIGGERS).toEqual(made);
});
