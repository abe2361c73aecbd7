import { afterAll, beforeAll, describe, expect, inject, it } from 'vitest';
import { createMPP } from '../../src/mpp/index.js';
import type { Task } from '../../src/tasks/task.js';
import { ContractServer } from '../support/contract.js';

const template = inject('template');

/** What readNodes looks at. */
const TASK = {
  groupid: 1,
  address: { host: '127.0.0.1', port: 5432 },
  secondaries: null,
} as Task;

describe.runIf(template.binaries.hasCitus)(
  'a database without room for its maintenance daemon',
  () => {
    let contract: ContractServer;

    beforeAll(async () => {
      // One for the launcher of logical replication, one for a daemon.
      contract = await ContractServer.start(template, { max_worker_processes: 2 });
      await contract.createDatabase('full');
      await contract.createDatabase('starved');
    });

    afterAll(() => contract.stop());

    it('is not changed until the daemon runs, which it does once there is room', async () => {
      const { server } = contract;
      await server.withSession(
        (session) =>
          session.query(
            "INSERT INTO pg_dist_node (groupid, nodename, nodeport) VALUES (1, 'w', 1)",
          ),
        'starved',
      );
      await server.restart();
      for (const database of ['postgres', 'full']) {
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
        await server.withSession((other) => other.query('DROP DATABASE "full" WITH (FORCE)'));
        expect(await handler.readNodes(session, TASK)).toHaveLength(1);
      }, 'starved');
    });
  },
);
