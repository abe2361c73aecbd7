import { createServer, type AddressInfo, type Server as Listener } from 'node:net';
import { once } from 'node:events';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, inject, it } from 'vitest';
import type { ControllerProcess } from '../kit/controller-process.js';
import { Harness, type TaskRow } from '../kit/harness.js';
import { waitFor } from '../kit/servers/index.js';
import { waitUntilSynced } from '../kit/standin/observe.js';

interface Address {
  readonly host: string;
  readonly port: number;
}

describe('after_promote is believed once the node itself says so', () => {
  let h: Harness;
  let controller: ControllerProcess;
  const listeners: Listener[] = [];

  beforeAll(async () => {
    h = await Harness.start({ template: inject('template'), groups: 3 });
  });
  beforeEach(async () => {
    await waitUntilSynced(h.db);
  });
  afterEach(async () => {
    await controller.end();
    for (const listener of listeners.splice(0)) listener.close();
    await h.db.query('DELETE FROM mpp_tasks');
  });
  afterAll(async () => h.stop());

  async function start(env: Readonly<Record<string, string>> = {}): Promise<void> {
    controller = await h.startController(env);
  }

  async function reportPrimary(groupid: number, node: Address): Promise<string> {
    return h.report({ event: 'after_promote', groupid, node });
  }

  async function isPending(id: string, reason: RegExp): Promise<TaskRow> {
    return waitFor(`task ${id} to be pending because of ${String(reason)}`, async () => {
      const task = await h.task(id);
      return task.status === 'pending' && reason.test(task.reason ?? '') && task;
    });
  }

  async function primaryOf(groupid: number): Promise<string | undefined> {
    return (await h.nodes(groupid)).find(({ role }) => role === 'primary')?.node;
  }

  /** A port that takes connections and never answers. */
  async function silentPort(): Promise<Address> {
    const listener = createServer(() => undefined);
    listeners.push(listener);
    listener.listen(0, '127.0.0.1');
    await once(listener, 'listening');
    return { host: '127.0.0.1', port: (listener.address() as AddressInfo).port };
  }

  it('a host or port without a server is waited for; the right report replaces it', async () => {
    await start();
    const { primary } = h.cluster.group(1);
    const before = await primaryOf(1);
    const nowhere = await silentPort();
    listeners[0]?.close();
    await once(listeners.pop() as Listener, 'close');
    const wrong = await reportPrimary(1, nowhere);
    await isPending(wrong, /does not answer: .*ECONNREFUSED/);
    const unknown = await reportPrimary(1, { host: 'no-such-host.invalid', port: 5432 });
    await isPending(unknown, /no-such-host\.invalid:5432 does not answer/);
    expect((await h.task(wrong)).status).toBe('superseded');
    expect(await primaryOf(1)).toBe(before);
    const right = await reportPrimary(1, primary);
    expect((await h.ended(right)).status).toBe('done');
    expect((await h.task(unknown)).status).toBe('superseded');
  });

  it('a port that never answers is waited for, and delays no other group', async () => {
    await start();
    const before = await primaryOf(1);
    const wrong = await reportPrimary(1, await silentPort());
    const other = h.cluster.group(2);
    await other.failover();
    const right = await reportPrimary(2, other.primary);
    expect((await h.ended(right)).status).toBe('done');
    await isPending(wrong, /does not answer/);
    expect(await primaryOf(1)).toBe(before);
    await other.rejoin();
  });

  it('a standby is waited for, and its row moves by itself once it is promoted', async () => {
    await start();
    const group = h.cluster.group(1);
    const { standby } = group;
    const before = await primaryOf(1);
    const task = await reportPrimary(1, standby);
    await isPending(task, /still in recovery/);
    expect(await primaryOf(1)).toBe(before);
    await group.failover();
    expect(await h.ended(task)).toMatchObject({ status: 'done', reason: null });
    expect(await primaryOf(1)).toBe(standby.address);
    await group.rejoin();
  });

  it('a node of another group is refused with both values, a standby as well', async () => {
    await start();
    const before = await primaryOf(1);
    const { primary, standby } = h.cluster.group(2);
    const systems = await Promise.all(
      [h.cluster.group(1).primary, primary].map(async (server) =>
        server.withSession(async (session) => {
          const { rows } = await session.query<{ id: string }>(
            'SELECT system_identifier::text AS id FROM pg_control_system()',
          );
          return rows[0]?.id ?? '';
        }),
      ),
    );
    for (const node of [standby, { host: 'localhost', port: primary.port }]) {
      const task = await h.ended(await reportPrimary(1, node));
      expect(task.status).toBe('failed');
      for (const system of systems) expect(task.reason).toContain(system);
    }
    expect(await primaryOf(1)).toBe(before);
  });

  it('a node that takes no connections, or lacks the database, is waited for', async () => {
    for (const [url, reason] of [
      ['postgresql://nobody_there@/postgres', /nobody_there/],
      ['postgresql://postgres@/no_such_database', /no_such_database/],
    ] as const) {
      await start({ MPP_NODE_URL: url });
      const { standby } = h.cluster.group(1);
      const before = await primaryOf(1);
      await isPending(await reportPrimary(1, standby), reason);
      expect(await primaryOf(1)).toBe(before);
      await controller.end();
      await h.db.query('DELETE FROM mpp_tasks');
    }
  });

  it('an old primary is waited for while it is down, and refused when it comes back as one', async () => {
    await start();
    const group = h.cluster.group(3);
    const old = group.primary;
    await group.failover();
    const moved = await reportPrimary(3, group.primary);
    expect((await h.ended(moved)).status).toBe('done');
    const stale = await reportPrimary(3, old);
    await isPending(stale, /does not answer/);
    await old.start();
    expect(await h.ended(stale)).toMatchObject({
      status: 'failed',
      reason: expect.stringMatching(/timeline 1, group 3 is on timeline 2/) as string,
    });
    expect(await primaryOf(3)).toBe(group.primary.address);
    await group.rejoin();
  });

  it('another system is accepted once an operator has said so', async () => {
    await start();
    const group = h.cluster.group(3);
    const known = async (): Promise<string | undefined> => {
      const { rows } = await h.db.query<{ id: string }>(
        'SELECT system_identifier AS id FROM mpp_systems WHERE groupid = 3',
      );
      return rows[0]?.id;
    };
    const real = await waitFor('the system of group 3 to be known', known);
    // As if the group had been another cluster before pg_upgrade.
    await h.db.query("UPDATE mpp_systems SET system_identifier = '42' WHERE groupid = 3");
    await group.failover();
    const refused = await h.ended(await reportPrimary(3, group.primary));
    expect(refused.reason).toMatch(/group 3 is 42; .*SELECT mpp_accept_system\(3\)/);
    const { rows } = await h.db.query('SELECT mpp_accept_system(3) AS forgotten');
    expect(rows).toEqual([{ forgotten: '42' }]);
    const accepted = await h.ended(await reportPrimary(3, group.primary));
    expect(accepted.status).toBe('done');
    await waitFor('the new one to be known', async () => (await known()) === real);
    await group.rejoin();
  });

  it('with MPP_VERIFY=off every report is believed, which is said at start and in mpp_controllers', async () => {
    await start({ MPP_VERIFY: 'off' });
    expect(controller.log.find(({ msg }) => msg.startsWith('MPP_VERIFY is off'))).toBeDefined();
    await waitFor('mpp_controllers to say so', async () => {
      const { rowCount } = await h.db.query('SELECT FROM mpp_controllers WHERE NOT verify');
      return rowCount === 1;
    });
    const { primary } = h.cluster.group(1);
    const invented = await h.ended(await reportPrimary(1, { host: 'invented', port: 1 }));
    expect(invented.status).toBe('done');
    expect(await primaryOf(1)).toBe('invented:1');
    expect((await h.ended(await reportPrimary(1, primary))).status).toBe('done');
  });
});
