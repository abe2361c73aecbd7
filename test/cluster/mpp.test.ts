import { afterAll, beforeAll, expect, inject, it } from 'vitest';
import { createMPP } from '../../src/mpp/index.js';
import { ContractServer, SCHEMAS, type ContractDatabase } from '../kit/contract.js';

const [{ schema, database }] = SCHEMAS;
let server: ContractServer;
let contract: ContractDatabase;

beforeAll(async () => {
  server = await ContractServer.start(inject('template'));
  contract = await server.database(database, schema);
});
afterAll(async () => server.stop());

it('the MPP database knows its own replication slots from others', async () => {
  const mpp = createMPP({ schema, strategy: 'auto' });
  const name = 'citus_shard_move_slot_2_10_16384';
  const slot = { name, type: 'logical', database, plugin: 'pgoutput' } as const;
  expect(await mpp.ignoreReplicationSlot(contract.db, slot)).toBe(true);
  expect(await mpp.ignoreReplicationSlot(contract.db, { ...slot, name: 'theirs' })).toBe(false);
  const physical = { name, type: 'physical', database: null, plugin: null } as const;
  expect(await mpp.ignoreReplicationSlot(contract.db, physical)).toBe(false);
});
