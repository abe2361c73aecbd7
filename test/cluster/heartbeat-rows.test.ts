import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, inject, it } from 'vitest';
import type { ControllerProcess } from '../kit/controller-process.js';
import { Barrier } from '../kit/faults/barrier.js';
import { Harness } from '../kit/harness.js';
import { waitFor, type Group, type Server } from '../kit/servers/index.js';
import { waitUntilSynced } from '../kit/standin/observe.js';

/**
 * Changes that no client reports: the heartbeat brings them about. The loss of every report is in
 * heartbeat.test.ts; secondaries and other node clusters are in secondaries.test.ts.
 */
describe('without a report', () => {
  let h: Harness;
  let controller: ControllerProcess;

  beforeAll(async () => {
    h = await Harness.start({ template: inject('template'), groups: 3 });
  });
  beforeEach(async () => {
    controller = await h.startController();
  });
  afterEach(async () => {
    await controller.end('SIGKILL');
    await h.db.query('DELETE FROM mpp_members');
  });
  afterAll(async () => h.stop());

  /** What the hook of a node says once, after its promotion. */
  async function promoted({ groupid, primary }: Group): Promise<void> {
    const { host, port } = primary;
    await h.db.query("SELECT mpp_report($1, $2, $3, 'primary')", [groupid, host, port]);
  }

  /** Waits until the group has this row and no other, on the coordinator and on these nodes. */
  async function follows(
    { groupid, primary }: Group,
    nodeid: number | undefined,
    nodes: readonly Server[],
  ): Promise<void> {
    const wanted = JSON.stringify([{ nodeid, groupid, node: primary.address, role: 'primary' }]);
    for (const server of [h.cluster.coordinator, ...nodes]) {
      await server.withSession((session) =>
        waitFor(
          `group ${groupid} to be right on ${server.name}`,
          async () => JSON.stringify(await h.nodes(groupid, session)) === wanted,
          { timeoutMs: 20_000 },
        ),
      );
    }
  }

  async function madeBy(groupid: number): Promise<string[]> {
    const { rows } = await h.db.query<{ made: string }>(
      `SELECT DISTINCT event || ' of ' || source AS made FROM mpp_tasks WHERE groupid = $1`,
      [groupid],
    );
    return rows.map(({ made }) => made);
  }

  it('failover to a node that was never registered', async () => {
    const group = h.cluster.group(1);
    const [row] = await h.nodes(1);
    await group.failover();
    await promoted(group);
    await follows(group, row?.nodeid, [h.cluster.group(2).primary]);
    expect(await madeBy(1)).toEqual(['after_promote of sync']);
    await group.rejoin();
  });

  it.each([
    ['the controller is killed, and another takes over', 'controller'],
    ["the coordinator's PostgreSQL is killed, and started", 'postgres'],
  ])('while the task of the heartbeat runs %s', async (_, victim) => {
    const group = h.cluster.group(1);
    await waitUntilSynced(h.db);
    const [row] = await h.nodes(1);
    await group.switchover();
    const barrier = await Barrier.beforeUpdate(h);
    await promoted(group);
    await barrier.reached();
    if (victim === 'controller') {
      const standby = h.spawnController();
      await standby.logged('that it stands by', ({ msg }) => msg.includes('stands by'));
      await controller.end('SIGKILL');
      controller = standby;
    } else {
      await h.cluster.coordinator.kill();
      await h.cluster.coordinator.start();
      await h.reconnect();
    }
    await barrier.lift();
    await follows(group, row?.nodeid, [group.primary, h.cluster.group(2).primary]);
    await waitFor('all tasks to end', async () => {
      return (await h.db.query('SELECT FROM mpp_tasks WHERE finished_at IS NULL')).rowCount === 0;
    });
    expect(await madeBy(1)).toEqual(['after_promote of sync']);
    await group.rejoin();
  });

  it('a worker of another group is down meanwhile', async () => {
    const [group, other] = [h.cluster.group(2), h.cluster.group(3)];
    await waitUntilSynced(h.db);
    const [row] = await h.nodes(2);
    const untouched = await h.nodes(3);
    await other.primary.kill();
    await group.failover();
    await promoted(group);
    await follows(group, row?.nodeid, [group.primary, h.cluster.group(1).primary]);
    expect(await h.nodes(3)).toEqual(untouched);
    await other.primary.start();
    await follows(group, row?.nodeid, [other.primary]);
  });
});
