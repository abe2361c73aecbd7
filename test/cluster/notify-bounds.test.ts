import type { Client } from 'pg';
import { afterAll, beforeAll, beforeEach, describe, expect, inject, it } from 'vitest';
import { runCli, type CommandResult } from '../kit/cli.js';
import { ContractServer, type ContractDatabase } from '../kit/contract.js';
import { FaultProxy } from '../kit/faults/proxy.js';
import { waitFor } from '../kit/servers/index.js';

describe('notify ends, whatever becomes of the report', () => {
  let server: ContractServer;
  let contract: ContractDatabase;
  let locker: Client;

  beforeAll(async () => {
    server = await ContractServer.start(inject('template'));
    contract = await server.database('bounds');
    locker = await contract.session();
  });
  beforeEach(async () => {
    await contract.clear();
    await locker.query('BEGIN; LOCK TABLE mpp_tasks');
    return async () => locker.query('ROLLBACK');
  });
  afterAll(async () => server.stop());

  async function notify(port: number): Promise<CommandResult> {
    const args = 'notify after_promote --group 1 --host w1 --wait 1s'.split(' ');
    return runCli(args, { DATABASE_URL: `postgresql://postgres@127.0.0.1:${port}/bounds` });
  }

  async function reports(): Promise<number> {
    await locker.query('ROLLBACK');
    return (await contract.db.query('SELECT FROM mpp_tasks')).rowCount ?? 0;
  }

  it('with 4 when another session has locked mpp_tasks for longer than --wait; nothing is reported', async () => {
    const { exitCode, stdout, stderr } = await notify(server.server.port);
    expect({ exitCode, stdout }).toEqual({ exitCode: 4, stdout: '' });
    expect(stderr).toMatch(/^mpp-controller: [^\n]*within 1s[^\n]*nothing was reported[^\n]*\n$/);
    expect(await reports()).toBe(0);
  });

  it('with 5 when the server falls silent, and says that it is not known', async () => {
    const proxy = await FaultProxy.start({ host: '127.0.0.1', port: server.server.port });
    try {
      const ending = notify(proxy.port);
      await waitFor('the report to wait for its lock', async () => {
        const { rowCount } = await contract.db.query(
          `SELECT FROM pg_stat_activity
           WHERE application_name = 'mpp-controller notify' AND wait_event_type = 'Lock'`,
        );
        return rowCount === 1;
      });
      proxy.swallowAll();
      const { exitCode, stdout, stderr } = await ending;
      expect({ exitCode, stdout }).toEqual({ exitCode: 5, stdout: '' });
      expect(stderr).toMatch(/^mpp-controller: [^\n]*it is not known whether it was reported/);
    } finally {
      await proxy.stop();
    }
  });
});
