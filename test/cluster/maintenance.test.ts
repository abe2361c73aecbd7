import { afterAll, beforeAll, describe, expect, inject, it } from 'vitest';
import { createMPP } from '../../src/mpp/index.js';
import type { Task } from '../../src/tasks/task.js';
import { ContractServer } from '../kit/contract.js';

const template = inject('template');

const FULL = ['full'];

/** What readNodes looks at. */
const TASK = {
  groupid: 0,
  address: { host: '127.0.0.1', port: 5432 },
  secondaries: null,
} as Task;

describe.runIf(template.binaries.hasCitus)(
  'a database without room for its maintenance daemon',
  () => {
    let contract: ContractServer;

    beforeAll(async () => {
      // The launcher of logical replication, and the daemons of two databases.
      contract = await ContractServer.start(template, { max_worker_processes: 3 });
      for (const database of FULL) await contract.createDatabase(database);
      await contract.createDatabase('starved');
    });

    afterAll(() => contract.stop());

    it('is not changed until the daemon runs', async () => {
      const { server } = contract;
      await server.withSession(
        (session) =>
          session.query('SELECT citus_set_coordinator_host($1, $2)', ['127.0.0.1', server.port]),
        'starved',
      );
      await server.restart();
      for (const database of ['postgres', ...FULL]) {
        await server.withSession((session) => session.query('SELECT citus_version()'), database);
      }
      const connection = { ...server.connection, database: 'starved' };
      const mpp = createMPP({ schema: 'public', strategy: 'auto', connection });
      await server.withSession(async (session) => {
        const handler = await mpp.inspect(session);
        await session.query('BEGIN');
        await expect(handler.readNodes(session, TASK)).rejects.toMatchObject({
          code: 'NO_MAINTENANCE_DAEMON',
          retryable: true,
        });
      }, 'starved');
      // Of the daemons that are asked for after a restart the first ones get a worker.
      await server.restart();
      await server.withSession(async (session) => {
        const handler = await mpp.inspect(session);
        expect(await handler.readNodes(session, TASK)).toHaveLength(1);
      }, 'starved');
    });
  },
);
