import { afterAll, beforeAll, beforeEach, describe, expect, inject, it } from 'vitest';
import { Harness, type NodeRow } from '../kit/harness.js';
import { waitFor, type Server } from '../kit/servers/index.js';
import { waitUntilSynced } from '../kit/standin/observe.js';

/** Each once by reports of a client and once by what hooks say of members. */
describe('secondaries', () => {
  let h: Harness;
  let spares = 0;

  beforeAll(async () => {
    h = await Harness.start({ template: inject('template'), groups: 4, secondaries: true });
    await h.startController({ MPP_MEMBER_TTL: '1min' });
  });
  beforeEach(async () => {
    await h.db.query('DELETE FROM mpp_members');
  });
  afterAll(async () => h.stop());

  /** A further standby of a group, which streams and has no row. */
  async function newStandby(groupid: number): Promise<Server> {
    spares += 1;
    const { primary } = h.cluster.group(groupid);
    return h.cluster.testBed.createStandby(primary, `spare${spares}`);
  }

  async function say(groupid: number, server: Server, role: string, state = 'running') {
    const { host, port } = server;
    await h.db.query('SELECT mpp_report($1, $2, $3, $4, $5)', [groupid, host, port, role, state]);
  }

  /** Waits until the group has exactly these rows, with the primary first. */
  async function has(groupid: number, rows: readonly Omit<NodeRow, 'groupid'>[]): Promise<void> {
    const wanted = JSON.stringify(rows.map(({ nodeid, node, role }) => [nodeid, node, role]));
    await waitFor(
      `group ${groupid} to be ${wanted}`,
      async () => {
        const seen = (await h.nodes(groupid)).map(({ nodeid, node, role }) => [nodeid, node, role]);
        return JSON.stringify(seen) === wanted || undefined;
      },
      { timeoutMs: 20_000 },
    );
    await waitUntilSynced(h.db);
  }

  async function rowsOf(groupid: number): Promise<[NodeRow, NodeRow]> {
    const [primary, secondary, ...more] = await h.nodes(groupid);
    if (primary === undefined || secondary === undefined || more.length > 0) {
      throw new Error(`group ${groupid} has not two rows`);
    }
    return [primary, secondary];
  }

  it('failover, the old primary gone, a new standby there: its row is reused', async () => {
    const group = h.cluster.group(1);
    const [primary, secondary] = await rowsOf(1);
    await group.failover();
    const fresh = await newStandby(1);
    const report = { event: 'after_promote', groupid: 1, node: group.primary } as const;
    expect(await h.request({ ...report, secondaries: [fresh.address] })).toMatchObject({
      status: 'done',
      nodeid: primary.nodeid,
    });
    await has(1, [
      { nodeid: primary.nodeid, node: group.primary.address, role: 'primary' },
      { nodeid: secondary.nodeid, node: fresh.address, role: 'secondary' },
    ]);
  });

  it("a failover to a new standby's address, by what hooks say of the members", async () => {
    const group = h.cluster.group(2);
    const [primary, secondary] = await rowsOf(2);
    await group.failover();
    const fresh = await newStandby(2);
    await h.db.query('BEGIN');
    await say(2, group.primary, 'primary');
    await say(2, group.standby, 'primary', 'removed');
    await say(2, fresh, 'replica', 'streaming');
    await h.db.query('COMMIT');
    await has(2, [
      { nodeid: primary.nodeid, node: group.primary.address, role: 'primary' },
      { nodeid: secondary.nodeid, node: fresh.address, role: 'secondary' },
    ]);
  });

  it('a secondary replaced, added and removed, by reports', async () => {
    const group = h.cluster.group(3);
    const [primary, secondary] = await rowsOf(3);
    const [one, other] = [await newStandby(3), await newStandby(3)];
    const about = { event: 'after_promote', groupid: 3, node: group.primary } as const;
    const first = { nodeid: primary.nodeid, node: group.primary.address, role: 'primary' };

    await h.request({ ...about, secondaries: [one.address] });
    const replaced = { nodeid: secondary.nodeid, node: one.address, role: 'secondary' };
    await has(3, [first, replaced]);

    await h.request({ ...about, secondaries: [one.address, other.address] });
    await waitFor('the second to be added', async () => (await h.nodes(3)).length === 3);
    const [, , added] = await h.nodes(3);
    expect(added).toMatchObject({ node: other.address, role: 'secondary' });
    await waitUntilSynced(h.db);

    await h.request({ ...about, secondaries: [] });
    await has(3, [first]);
  });

  it('a secondary replaced, added and removed, by what hooks say of the members', async () => {
    const group = h.cluster.group(3);
    const [row] = await h.nodes(3);
    const first = { nodeid: row?.nodeid ?? 0, node: group.primary.address, role: 'primary' };
    await say(3, group.primary, 'primary');
    await say(3, group.standby, 'replica');
    await waitFor('it to be added', async () => (await h.nodes(3)).length === 2);
    const [, added] = await rowsOf(3);
    expect(added.node).toBe(group.standby.address);
    await waitUntilSynced(h.db);

    const fresh = await newStandby(3);
    await h.db.query('BEGIN');
    await say(3, group.standby, 'replica', 'removed');
    await say(3, fresh, 'replica');
    await h.db.query('COMMIT');
    await has(3, [first, { nodeid: added.nodeid, node: fresh.address, role: 'secondary' }]);

    await say(3, fresh, 'replica', 'removed');
    await has(3, [first]);
  });

  it('switchover with a secondary added at once, then with one removed', async () => {
    const group = h.cluster.group(4);
    const [primary] = await rowsOf(4);
    const fresh = await newStandby(4);

    const switchOver = async (secondaries: (old: Server) => string[]): Promise<void> => {
      const [old, next] = [group.primary, group.standby];
      const about = { groupid: 4, timeout: '30s' } as const;
      const demote = await h.request({ ...about, event: 'before_demote', node: old });
      expect(demote.status).toBe('holding');
      await group.switchover();
      await h.request({ ...about, event: 'before_promote', node: next });
      const after = await h.request({
        ...about,
        event: 'after_promote',
        node: next,
        secondaries: secondaries(old),
      });
      expect(after).toMatchObject({ status: 'done', nodeid: primary.nodeid });
      expect((await h.nodes(4))[0]).toMatchObject({ node: next.address, role: 'primary' });
    };

    await switchOver((old) => [old.address, fresh.address]);
    await waitFor('the second to be added', async () => (await h.nodes(4)).length === 3);
    expect((await h.nodes(4)).map(({ node }) => node).sort()).toEqual(
      [group.primary, group.standby, fresh].map(({ address }) => address).sort(),
    );
    await waitUntilSynced(h.db);
    await group.rejoin();

    await switchOver((old) => [old.address]);
    await waitFor('one to be removed', async () => (await h.nodes(4)).length === 2);
    expect((await h.nodes(4)).map(({ node, role }) => [node, role])).toEqual([
      [group.primary.address, 'primary'],
      [group.standby.address, 'secondary'],
    ]);
    await group.rejoin();
  });

  it('a switchover with secondaries changed, by what hooks say of the members', async () => {
    const group = h.cluster.group(4);
    const [primary] = await rowsOf(4);
    const fresh = await newStandby(4);
    await group.switchover();
    await group.rejoin();
    await h.db.query('BEGIN');
    await say(4, group.primary, 'primary');
    await say(4, group.standby, 'replica');
    await say(4, fresh, 'replica');
    await h.db.query('COMMIT');
    await waitFor('the second to be added', async () => (await h.nodes(4)).length === 3);
    const [first, ...others] = await h.nodes(4);
    expect(first).toMatchObject({ nodeid: primary.nodeid, node: group.primary.address });
    expect(others.map(({ node }) => node).sort()).toEqual(
      [group.standby.address, fresh.address].sort(),
    );
  });

  it('leaves rows of another node cluster alone', async () => {
    const group = h.cluster.group(4);
    await waitUntilSynced(h.db);
    await waitFor('the node to be added', () =>
      h.db.query("SELECT citus_add_node('127.0.0.1', 5, 4, 'secondary', 'reports')"),
    );
    const theirs = (await h.nodes(4)).find(({ node }) => node === '127.0.0.1:5');
    await waitUntilSynced(h.db);
    const report = { event: 'after_promote', groupid: 4, node: group.primary } as const;
    await h.request({ ...report, secondaries: [group.standby.address] });
    await waitFor('the others to be removed', async () => (await h.nodes(4)).length === 3);
    await h.db.query("SELECT mpp_report(4, '127.0.0.1', 5, 'replica', 'removed')");
    await say(4, group.primary, 'primary');
    await say(4, group.standby, 'replica', 'removed');
    await waitFor('the last of ours to be removed', async () => (await h.nodes(4)).length === 2);
    expect(await h.nodes(4)).toContainEqual(theirs);
  });
});
