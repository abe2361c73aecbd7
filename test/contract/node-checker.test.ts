import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, inject, it } from 'vitest';
import { prepareAsking } from '../../src/mpp/citus/citus.js';
import { NodeChecker } from '../../src/topology/node-checker.js';
import { type ContractDatabase, ContractServer } from '../kit/contract.js';

describe('what a node says of itself', () => {
  let server: ContractServer;
  let contract: ContractDatabase;
  let checker: NodeChecker;
  const warnings: Error[] = [];
  const onWarning = (warning: Error): void => void warnings.push(warning);

  beforeAll(async () => {
    server = await ContractServer.start(inject('template'));
    contract = await server.database('node_checker', 'public');
    process.on('warning', onWarning);
  });
  beforeEach(() => {
    const { user = '', database = '' } = contract.db;
    checker = new NodeChecker({ credentials: { user, database }, prepareAsking });
  });
  afterEach(() => checker.stop());
  afterAll(async () => {
    process.off('warning', onWarning);
    await server.stop();
  });

  it('two questions to one node at once are asked one after the other', async () => {
    const { host, port } = contract.db;
    const ask = () => checker.ask({ host, port });
    await ask();
    const checks = await Promise.all([ask(), ask(), ask()]);
    for (const check of checks) expect(check).toMatchObject({ answer: { inRecovery: false } });
    // Node.js reports a warning in a turn of its own.
    await new Promise((resolve) => setImmediate(resolve));
    expect(warnings).toEqual([]);
  });

  it('questions that wait for one whose session is lost are answered on another session', async () => {
    const { host, port } = contract.db;
    const ask = () => checker.ask({ host, port });
    await ask();
    await contract.db.query(
      `SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity
       WHERE datname = current_database() AND application_name = 'mpp-controller check'`,
    );
    const checks = await Promise.all([ask(), ask()]);
    for (const check of checks) expect(check).toMatchObject({ answer: { inRecovery: false } });
  });
});
