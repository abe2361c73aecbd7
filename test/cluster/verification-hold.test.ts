import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, inject, it } from 'vitest';
import { Harness, type TaskRow } from '../kit/harness.js';
import { waitFor } from '../kit/servers/index.js';
import { waitUntilSynced } from '../kit/standin/observe.js';
import { keysOfGroup } from '../kit/standin/schema.js';

/** Each strategy changes the catalog at another moment of a hold. */
describe.each(['auto', 'pause-node', 'demoted-row'])('a hold, with strategy %s', (strategy) => {
  let h: Harness;

  beforeAll(async () => {
    h = await Harness.start({ template: inject('template'), groups: 2, secondaries: true });
    await h.startController({ MPP_STRATEGY: strategy });
  });
  beforeEach(async () => {
    await waitUntilSynced(h.db);
  });
  afterEach(async () => {
    await h.db.query('SELECT mpp_release(1)');
    await h.db.query('DELETE FROM mpp_members');
  });
  afterAll(async () => h.stop());

  async function isPending(id: string, reason: RegExp, attempts = 1): Promise<TaskRow> {
    return waitFor(`task ${id} to be pending because of ${String(reason)}`, async () => {
      const task = await h.task(id);
      return (
        task.status === 'pending' &&
        task.attempt >= attempts &&
        reason.test(task.reason ?? '') &&
        task
      );
    });
  }

  async function primaryRow(groupid: number): Promise<string | undefined> {
    return (await h.nodes(groupid)).find(({ role }) => role === 'primary')?.node;
  }

  /** A write to the group; it waits while the group is held, and fails when it is not waited for. */
  async function write(groupid: number): Promise<unknown> {
    const [key] = await keysOfGroup(h.db, groupid, 1);
    const session = await h.cluster.coordinator.connect('writer');
    try {
      await session.query("SET statement_timeout = '30s'");
      return await session.query(`UPDATE items SET v = 1 WHERE id = ${String(key)}`);
    } finally {
      await session.end();
    }
  }

  it('stays open while the reported node is in recovery, and ends with its promotion', async () => {
    const group = h.cluster.group(1);
    const { primary, standby } = group;
    const demote = await h.request({ event: 'before_demote', groupid: 1, node: primary });
    expect(demote.status).toBe('holding');
    await primary.stop();
    const promote = await h.request({ event: 'before_promote', groupid: 1, node: standby });
    expect(promote.status).toBe('holding');
    const writing = write(1);
    const after = await h.report({ event: 'after_promote', groupid: 1, node: standby });
    await isPending(after, /still in recovery/, 3);
    expect(await h.holds()).toBe(1);
    expect(await primaryRow(1)).toBe(primary.address);
    await group.promoteStandby();
    expect((await h.ended(after)).status).toBe('done');
    await expect(writing).resolves.toBeDefined();
    expect((await h.ended(demote.id)).status).toBe('done');
    expect((await h.ended(promote.id)).status).toBe('done');
    expect(await primaryRow(1)).toBe(standby.address);
    await group.rejoin();
  });

  it('goes on after a report for a node of another group, which is refused', async () => {
    const group = h.cluster.group(1);
    const { primary } = group;
    const stranger = { host: 'localhost', port: h.cluster.group(2).primary.port };
    await h.request({ event: 'before_demote', groupid: 1, node: primary });
    const wrong = await h.report({ event: 'after_promote', groupid: 1, node: stranger });
    expect(await h.ended(wrong)).toMatchObject({
      status: 'failed',
      reason: expect.stringMatching(/system identifier/) as string,
    });
    expect(await h.holds()).toBe(1);
    const right = await h.request({ event: 'after_promote', groupid: 1, node: primary });
    expect(right.status).toBe('done');
    expect(await primaryRow(1)).toBe(primary.address);
    await write(1);
  });

  it('of a restart ends once the primary is up again', async () => {
    const { primary } = h.cluster.group(1);
    await h.request({ event: 'before_demote', groupid: 1, node: primary });
    await primary.stop();
    const writing = write(1);
    const after = await h.report({ event: 'after_promote', groupid: 1, node: primary });
    await isPending(after, /does not answer/, 2);
    expect(await h.holds()).toBe(1);
    await primary.start();
    expect((await h.ended(after)).status).toBe('done');
    await expect(writing).resolves.toBeDefined();
  });

  it('ends at its deadline when the reported node never comes; the report stays', async () => {
    const { primary } = h.cluster.group(1);
    const nowhere = { host: 'localhost', port: 1 };
    const demote = await h.request({
      event: 'before_demote',
      groupid: 1,
      node: primary,
      timeout: '1s',
    });
    const after = await h.report({ event: 'after_promote', groupid: 1, node: nowhere });
    expect((await h.ended(demote.id)).status).toBe('rolled_back');
    await isPending(after, /does not answer/);
    await write(1);
    const right = await h.request({ event: 'after_promote', groupid: 1, node: primary });
    expect(right.status).toBe('done');
    expect((await h.task(after)).status).toBe('superseded');
  });

  it('is opened by before_promote although a source has said too early who the primary is', async () => {
    const group = h.cluster.group(1);
    const { primary, standby } = group;
    // Patroni says leader when the member has the leader key, which is before its promotion.
    await h.db.query("SELECT mpp_report(1, $1, $2, 'leader')", [standby.host, standby.port]);
    const early = await waitFor('the task of the comparison', async () => {
      const { rows } = await h.db.query<{ id: string }>(
        "SELECT id FROM mpp_tasks WHERE groupid = 1 AND source = 'sync' AND finished_at IS NULL",
      );
      return rows[0]?.id;
    });
    await isPending(early, /still in recovery/);
    expect(await primaryRow(1)).toBe(primary.address);
    const promote = await h.request({ event: 'before_promote', groupid: 1, node: standby });
    expect(promote.status).toBe('holding');
    const writing = write(1);
    await group.failover();
    const after = await h.request({ event: 'after_promote', groupid: 1, node: standby });
    expect(after.status).toBe('done');
    await expect(writing).resolves.toBeDefined();
    expect((await h.ended(early)).status).toBe('superseded');
    expect(await primaryRow(1)).toBe(standby.address);
    await group.rejoin();
  });
});
