import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, inject, it } from 'vitest';
import type { ControllerProcess } from '../kit/controller-process.js';
import { Harness, type NodeRow } from '../kit/harness.js';
import { waitFor } from '../kit/servers/index.js';
import { waitUntilSynced } from '../kit/standin/observe.js';

const PROBE = { MPP_TOPOLOGY: 'probe', MPP_PROBE_INTERVAL: '100ms' };

describe('members and secondaries are believed once the nodes themselves say so', () => {
  let h: Harness;
  let controller: ControllerProcess;

  beforeAll(async () => {
    h = await Harness.start({ template: inject('template'), groups: 2 });
  });
  beforeEach(async () => {
    await waitUntilSynced(h.db);
  });
  afterEach(async () => {
    await controller.end();
    await h.db.query('DELETE FROM mpp_members');
    await h.db.query('DELETE FROM mpp_tasks');
  });
  afterAll(async () => h.stop());

  async function start(env: Readonly<Record<string, string>> = {}): Promise<void> {
    controller = await h.startController({ MPP_MEMBER_TTL: '1min', ...env });
  }

  async function say(groupid: number, host: string, port: number, role: string): Promise<void> {
    await h.db.query('SELECT mpp_report($1, $2, $3, $4)', [groupid, host, port, role]);
  }

  async function has(groupid: number, nodes: readonly string[]): Promise<NodeRow[]> {
    return waitFor(`group ${groupid} to be ${nodes.join(' ')}`, async () => {
      const rows = await h.nodes(groupid);
      return rows.map(({ node }) => node).join() === nodes.join() && rows;
    });
  }

  /** The newest task that the comparison made, once it is as wanted. */
  async function syncTask(groupid: number, status: string, reason: RegExp): Promise<void> {
    await waitFor(`a task of the comparison to be ${status}`, async () => {
      const { rowCount } = await h.db.query(
        `SELECT FROM mpp_tasks
         WHERE groupid = $1 AND source = 'sync' AND status = $2 AND reason ~ $3`,
        [groupid, status, reason.source],
      );
      return rowCount !== 0;
    });
  }

  it('a member that answers as a node of another group moves no row', async () => {
    await start();
    const before = (await h.nodes(1)).map(({ node }) => node);
    await say(1, 'localhost', h.cluster.group(2).primary.port, 'primary');
    await syncTask(1, 'failed', /system identifier/);
    await has(1, before);
  });

  it('a secondary gets its row once it answers as a standby of the group', async () => {
    await start();
    const { primary, standby } = h.cluster.group(1);
    const other = h.cluster.group(2);
    const invented = Array.from({ length: 60 }, (_, index) => `127.0.0.1:${index + 1}`);
    const wrong = [other.standby.address, `localhost:${other.primary.port}`];
    const task = await h.report({
      event: 'after_promote',
      groupid: 1,
      node: primary,
      secondaries: [...invented, ...wrong, standby.address],
    });
    await has(1, [primary.address, standby.address]);
    const waiting = await waitFor('the others to be left out', async () => {
      const row = await h.task(task);
      return row.status === 'pending' && row;
    });
    expect(waiting.reason).toMatch(/^left out for now: secondary \S+ .*; and \d+ more$/);
    const right = await h.request({
      event: 'after_promote',
      groupid: 1,
      node: primary,
      secondaries: [],
    });
    expect(right.status).toBe('done');
    await has(1, [primary.address]);
  });

  it('the primary moves although a secondary is missing, and that follows when it is there', async () => {
    await start();
    const group = h.cluster.group(1);
    const [old, next] = [group.primary, group.standby];
    await group.failover();
    const moved = await h.request({
      event: 'after_promote',
      groupid: 1,
      node: next,
      secondaries: [old.address],
    });
    expect(moved.status).toBe('done');
    await syncTask(1, 'pending', /secondary \S+ does not answer/);
    await has(1, [next.address]);
    await group.rejoin();
    await has(1, [next.address, old.address]);
    const removed = await h.request({
      event: 'after_promote',
      groupid: 1,
      node: next,
      secondaries: [],
    });
    expect(removed.status).toBe('done');
  });

  it('hundreds of invented members do not keep the comparison from its work', async () => {
    await start();
    const { primary } = h.cluster.group(1);
    await say(1, primary.host, primary.port, 'primary');
    await h.db.query(
      "SELECT mpp_report(1, '127.0.0.1', port, 'replica') FROM generate_series(1, 300) AS port",
    );
    await syncTask(1, 'pending', /left out for now/);
    await has(1, [primary.address]);
    const other = h.cluster.group(2);
    await other.failover();
    await say(2, other.primary.host, other.primary.port, 'primary');
    await has(2, [other.primary.address]);
    await other.rejoin();
  });

  it('a server under two names is one node, and the name in the catalog counts', async () => {
    const { primary } = h.cluster.group(1);
    await start(PROBE);
    await waitFor('the probe to see the primary', async () => {
      const { rowCount } = await h.db.query(
        "SELECT FROM mpp_members WHERE nodeport = $1 AND state = 'running'",
        [primary.port],
      );
      return rowCount === 1;
    });
    const [row] = await h.nodes(1);
    await h.db.query('SELECT citus_update_node($1, $2, $3)', [
      row?.nodeid,
      'localhost',
      primary.port,
    ]);
    await waitFor('the old name to be an alias', async () => {
      const { rowCount } = await h.db.query(
        `SELECT FROM mpp_members
         WHERE nodename = '127.0.0.1' AND nodeport = $1 AND state = 'alias'
           AND reason LIKE '%localhost%'`,
        [primary.port],
      );
      return rowCount === 1;
    });
    // A hook that knows the old name only says nothing new.
    await say(1, '127.0.0.1', primary.port, 'primary');
    const { standby } = h.cluster.group(1);
    await say(1, standby.host, standby.port, 'secondary');
    await has(1, [`localhost:${primary.port}`, standby.address]);
    await h.db.query('SELECT citus_update_node($1, $2, $3)', [
      row?.nodeid,
      '127.0.0.1',
      primary.port,
    ]);
  });

  it('without a probe a further name of the registered primary moves no row either', async () => {
    await start();
    const { primary } = h.cluster.group(2);
    await say(2, 'localhost', primary.port, 'primary');
    await syncTask(2, 'discarded', /is the same server as 127\.0\.0\.1/);
    await has(2, [primary.address]);
  });
});
