import { afterAll, beforeAll, beforeEach, describe, expect, inject, it } from 'vitest';
import { Harness } from '../kit/harness.js';
import { waitFor } from '../kit/servers/index.js';
import { waitUntilSynced } from '../kit/standin/observe.js';

/** Nodes that citus_add_clone_node has added: they follow a primary and are to become a group of their own. */
describe.each(['auto', 'demoted-row'])('clones, with strategy %s', (strategy) => {
  let h: Harness;

  beforeAll(async () => {
    h = await Harness.start({ template: inject('template'), groups: 2 });
    for (const { primary, standby } of h.cluster.workers) {
      await h.db.query('SELECT citus_add_clone_node($1, $2, $3, $4)', [
        standby.host,
        standby.port,
        primary.host,
        primary.port,
      ]);
    }
    await h.startController({
      MPP_TOPOLOGY: 'probe',
      MPP_PROBE_INTERVAL: '100ms',
      MPP_STRATEGY: strategy,
    });
  });
  beforeEach(async () => {
    await waitUntilSynced(h.db);
  });
  afterAll(async () => h.stop());

  async function rows(groupid: number): Promise<string[]> {
    return (await h.nodes(groupid)).map(({ node, role }) => `${node} ${role}`);
  }

  async function has(groupid: number, wanted: readonly string[]): Promise<void> {
    await waitFor(`group ${groupid} to be ${wanted.join(', ')}`, async () => {
      return (await rows(groupid)).join() === wanted.join();
    });
  }

  it('are left alone by reports of the secondaries', async () => {
    const { primary, standby } = h.cluster.group(1);
    const before = [`${primary.address} primary`, `${standby.address} unavailable`];
    expect(await rows(1)).toEqual(before);
    for (const secondaries of [[], [standby.address]]) {
      const task = await h.request({
        event: 'after_promote',
        groupid: 1,
        node: primary,
        secondaries,
      });
      expect(task.status).toBe('done');
      expect(await rows(1)).toEqual(before);
    }
  });

  it('of the group can be promoted in a switchover; the row of the clone goes', async () => {
    const group = h.cluster.group(1);
    const { primary, standby } = group;
    const report = { groupid: 1, node: primary } as const;
    const demote = await h.request({ event: 'before_demote', ...report });
    expect(demote.status).toBe('holding');
    await primary.stop();
    const promote = await h.request({ ...report, event: 'before_promote', node: standby });
    expect(promote.status).toBe('holding');
    await group.promoteStandby();
    const after = await h.request({ ...report, event: 'after_promote', node: standby });
    expect(after.status).toBe('done');
    await has(1, [`${standby.address} primary`]);
    await h.db.query('UPDATE items SET v = 2');
  });

  it('of the group can be promoted after a crash that only the probe has seen', async () => {
    const group = h.cluster.group(2);
    const { standby } = group;
    await group.failover();
    await has(2, [`${standby.address} primary`]);
    await h.db.query('UPDATE items SET v = 3');
  });
});
