import { afterAll, afterEach, beforeAll, describe, expect, inject, it } from 'vitest';
import type { ControllerProcess } from '../kit/controller-process.js';
import { waitUntilNothingHeld } from '../kit/faults/hold-sessions.js';
import { primaryAddress } from '../kit/faults/subject.js';
import { Harness, type TaskRow } from '../kit/harness.js';
import type { Server } from '../kit/servers/index.js';
import { waitUntilSynced } from '../kit/standin/observe.js';
import { startTraffic } from '../kit/traffic/traffic.js';

/** Two groups with more shards each than a small lock table has room for. */
describe('many shards', () => {
  let h: Harness;
  let controller: ControllerProcess;
  let entry: Server;

  beforeAll(async () => {
    h = await Harness.start({
      template: inject('template'),
      standbys: false,
      settings: { max_connections: 60, max_prepared_transactions: 20 },
    });
    entry = h.cluster.group(2).primary;
    await createWideTable();
    controller = await h.startController();
  });
  afterEach(async () => {
    for (const groupid of [1, 2]) await h.db.query('SELECT mpp_release($1)', [groupid]);
    await waitUntilNothingHeld(h);
  });
  afterAll(async () => h.stop());

  async function createWideTable(): Promise<void> {
    if (!h.cluster.hasCitus) {
      await h.db.query("SELECT standin.create_distributed_table('wide', 10000)");
      return;
    }
    await h.db.query('SET citus.shard_count = 2000');
    await h.db.query('CREATE TABLE wide (id bigint PRIMARY KEY, v integer)');
    await h.db.query("SELECT create_distributed_table('wide', 'id', colocate_with => 'none')");
  }

  async function restart(server: Server, max_locks_per_transaction: number): Promise<void> {
    await controller.end();
    server.configure({ max_locks_per_transaction });
    await server.restart();
    await h.reconnect();
    await waitUntilSynced(h.db);
    controller = await h.startController();
  }

  async function demote(pause: 'writes' | 'all' = 'all', groupid = 1): Promise<TaskRow> {
    const node = await primaryAddress(h, groupid);
    return h.request({ event: 'before_demote', groupid, node, pause, cooldown: '10s' });
  }

  function settingIn(reason: string | null): number {
    const match = /set max_locks_per_transaction there to (\d+) or more/.exec(reason ?? '');
    expect(match, String(reason)).not.toBeNull();
    return Number(match?.[1]);
  }

  it('are all locked, where there is room', async () => {
    await restart(h.cluster.coordinator, 512);
    await restart(entry, 512);
    expect(await demote()).toMatchObject({ status: 'holding', reason: null });
    const node = await primaryAddress(h, 1);
    const after = await h.request({ event: 'after_promote', groupid: 1, node });
    expect(after.status).toBe('done');
  });

  it('that are too many for the coordinator: before_demote fails, names what to set, breaks nothing', async () => {
    await restart(h.cluster.coordinator, 10);
    const traffic = startTraffic({
      connection: [h.cluster.coordinator.connection, entry.connection],
      clients: { writers: 2, readers: 2, transactions: 2 },
      thinkMs: 5,
    });
    await traffic.waitForProgress(40);
    const task = await demote('writes');
    expect(task.status).toBe('failed');
    const setting = settingIn(task.reason);
    await waitUntilNothingHeld(h);
    await traffic.waitForProgress(40);
    expect((await traffic.stop()).failures).toEqual([]);

    await restart(h.cluster.coordinator, setting);
    expect(await demote('writes')).toMatchObject({ status: 'holding', reason: null });
    await h.db.query('SELECT mpp_release(1)');
    await waitUntilNothingHeld(h);

    // There is room for one group, and both want theirs at the same time.
    const both = await Promise.all([demote('writes', 1), demote('writes', 2)]);
    expect(both.map(({ status }) => status).sort()).toEqual(['failed', 'holding']);
    const refused = both.find(({ status }) => status === 'failed');
    expect(settingIn(refused?.reason ?? null)).toBeGreaterThan(setting);
  });

  it('that are too many for another node: it is left out, and named with what to set there', async () => {
    await restart(h.cluster.coordinator, 512);
    await restart(entry, 10);
    const task = await demote('writes');
    expect(task.status).toBe('holding');
    expect(task.reason).toContain(`what enters through ${entry.address} does not wait: `);
    const setting = settingIn(task.reason);
    const node = await primaryAddress(h, 1);
    expect((await h.request({ event: 'after_promote', groupid: 1, node })).status).toBe('done');

    await restart(entry, setting);
    expect(await demote('writes')).toMatchObject({ status: 'holding', reason: null });
  });
});
