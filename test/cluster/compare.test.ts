import type { Client, QueryConfig } from 'pg';
import { afterAll, beforeAll, beforeEach, describe, expect, inject, it } from 'vitest';
import { ContractServer, type ContractDatabase } from '../kit/contract.js';
import { A, P, PAIR, PRIMARIES, SECONDARIES, SOURCES } from '../kit/compare-cases.js';
import { MembersCase } from '../kit/members.js';
import { installStandin } from '../kit/standin/install.js';

describe('the comparison of members with pg_dist_node', () => {
  let server: ContractServer;
  let contract: ContractDatabase;
  let db: Client;
  let members: MembersCase;

  beforeAll(async () => {
    server = await ContractServer.start(inject('template'));
    contract = await server.database('compared');
    db = contract.db;
    if (!server.server.binaries.hasCitus) await installStandin(db);
    await db.query('SET search_path = public');
    members = new MembersCase(db);
  });
  beforeEach(async () => members.clear());
  afterAll(async () => server.stop());

  describe.each([
    ['the primary', PRIMARIES],
    ['several sources', SOURCES],
    ['secondaries', SECONDARIES],
  ])('%s', (_, cases) => {
    it.each(cases)('$name', async ({ catalog, members: rows, wishes = [], problem }) => {
      await members.catalog(catalog ?? PAIR);
      await members.members(rows);
      const { tasks, problems } = await members.compare();
      const asked = tasks.map(({ groupid, node, secondaries }) =>
        `${groupid}: ${node} [${secondaries?.join(' ') ?? 'as they are'}]`.replaceAll(':5432', ''),
      );
      expect(asked).toEqual(wishes);
      if (problem === undefined) expect(problems).toEqual([]);
      else
        expect(problems).toEqual([
          { groupid: 1, problem: expect.stringMatching(problem) as string },
        ]);
      expect(await members.wishes(), 'asked once only').toEqual([]);
    });
  });

  it('does not count what a source wrote that is switched off', async () => {
    await members.catalog(PAIR);
    await members.members([
      { node: 'a', role: P, source: 'probe' },
      { node: 'b', role: P, source: 'table', since: 1 },
    ]);
    expect((await members.compare()).problems).toHaveLength(1);
    const { tasks, problems } = await members.compare(['table']);
    expect(tasks.map(({ node }) => node)).toEqual(['b:5432']);
    expect(problems).toEqual([]);
  });

  it('does nothing on a coordinator that was replaced, for any group', async () => {
    await members.catalog([...PAIR, { node: 'x', groupid: 0 }]);
    await members.members([
      { node: 'b', role: P },
      { node: 'y', role: P, groupid: 0, timeline: 2, source: 'probe' },
    ]);
    const problem = expect.stringMatching(/y:5432 is the coordinator now, on timeline 2/) as string;
    expect(await members.compare()).toEqual({ tasks: [], problems: [{ groupid: 0, problem }] });
    await db.query("DELETE FROM mpp_members WHERE nodename = 'y'");
    await members.members([{ node: 'y', role: P, groupid: 0, timeline: 1 }]);
    expect((await members.wishes()).sort()).toEqual(['0: y [as they are]', '1: b [as they are]']);
  });

  it('goes on with the other groups when a hook alone reports another coordinator', async () => {
    await members.catalog([...PAIR, { node: 'x', groupid: 0 }]);
    await members.members([
      { node: 'b', role: P, source: 'probe' },
      { node: 'y', role: P, groupid: 0, timeline: 999, source: 'table' },
    ]);
    expect((await members.wishes()).sort()).toEqual(['0: y [as they are]', '1: b [as they are]']);
  });

  it('does not believe the tags of a source that is switched off', async () => {
    await members.catalog([{ node: 'a' }]);
    await members.members([
      A,
      { node: 'b', noloadbalance: true, source: 'patroni' },
      { node: 'b', source: 'probe' },
    ]);
    expect((await members.compare()).tasks).toEqual([]);
    const { tasks } = await members.compare(['table', 'probe']);
    expect(tasks.map(({ secondaries }) => secondaries)).toEqual([['b:5432']]);
  });

  describe('what goes before', () => {
    beforeEach(async () => {
      await members.catalog([...PAIR, { node: 'x', groupid: 2 }]);
      await members.members([
        { node: 'b', role: P, since: 5 },
        { node: 'y', role: P, groupid: 2, since: 5 },
      ]);
    });
    const BOTH = ['1: b [as they are]', '2: y [as they are]'];

    /** Sets columns past the triggers. */
    async function force(id: string, assignments: string): Promise<void> {
      await db.query("SET session_replication_role = 'replica'");
      await db.query(`UPDATE mpp_tasks SET ${assignments} WHERE id = $1`, [id]);
      await db.query("SET session_replication_role = 'origin'");
    }

    /** A source has seen a node again that is as it was. */
    async function seenNow(node: string): Promise<void> {
      await db.query("SET session_replication_role = 'replica'");
      await db.query('UPDATE mpp_members SET reported_at = clock_timestamp() WHERE nodename = $1', [
        node,
      ]);
      await db.query("SET session_replication_role = 'origin'");
    }

    it('nothing: every group that differs gets a task of source sync', async () => {
      expect((await members.wishes()).sort()).toEqual(BOTH);
      const { rows } = await db.query(
        'SELECT groupid, event, nodename, nodeport, source, status FROM mpp_tasks ORDER BY groupid',
      );
      const task = { event: 'after_promote', nodeport: 5432, source: 'sync', status: 'pending' };
      expect(rows).toEqual([
        { ...task, groupid: 1, nodename: 'b' },
        { ...task, groupid: 2, nodename: 'y' },
      ]);
    });

    it.each(['before_demote', 'before_promote', 'after_promote', 'suspect'])(
      "a client's %s that has not ended",
      async (event) => {
        const id = await contract.report({ event, groupid: 1, nodename: 'a' });
        expect(await members.wishes()).toEqual(BOTH.slice(1));
        await force(id, "status = 'cancelled', finished_at = now()");
        expect(await members.wishes()).toEqual(BOTH.slice(0, 1));
      },
    );

    it.each(['pending', 'claimed', 'holding'])(
      'a suspect of the probe that is %s, until a node is seen to be the primary after it',
      async (status) => {
        const id = await contract.report({
          event: 'suspect',
          groupid: 1,
          nodename: 'a',
          source: 'probe',
        });
        await force(id, `status = '${status}'`);
        expect(await members.wishes()).toEqual(BOTH.slice(1));
        await seenNow('b');
        expect(await members.wishes()).toEqual(BOTH.slice(0, 1));
      },
    );

    it('a suspect of the probe ends where the same node is seen to be the primary after it', async () => {
      await db.query('DELETE FROM mpp_members WHERE groupid = 1');
      await members.members([{ node: 'a', role: P }]);
      const id = await contract.report({
        event: 'suspect',
        groupid: 1,
        nodename: 'a',
        source: 'probe',
      });
      await force(id, "status = 'holding'");
      expect(await members.wishes()).toEqual(BOTH.slice(1));
      await seenNow('a');
      expect(await members.wishes()).toEqual(['1: a [as they are]']);
    });

    it('a suspect of the probe beside the hold of a client', async () => {
      for (const source of ['client', 'probe']) {
        const event = source === 'client' ? 'before_demote' : 'suspect';
        const id = await contract.report({ event, groupid: 1, nodename: 'a', source });
        await force(id, "status = 'holding'");
      }
      await seenNow('b');
      expect(await members.wishes()).toEqual(BOTH.slice(1));
    });

    it('a fact that a client has reported since', async () => {
      const id = await contract.report({ event: 'after_promote', groupid: 1, nodename: 'a' });
      await force(id, "status = 'done', finished_at = now()");
      expect(await members.wishes()).toEqual(BOTH.slice(1));
      await force(id, "created_at = now() - interval '1 minute'");
      expect(await members.wishes()).toEqual(BOTH.slice(0, 1));
    });

    it('a report only once it is committed: its transaction may stay open for long', async () => {
      const other = await contract.session();
      await other.query('BEGIN');
      await contract.report({ event: 'before_demote', groupid: 1, nodename: 'a' }, other);
      expect((await members.wishes()).sort()).toEqual(BOTH);
      await db.query('DELETE FROM mpp_tasks');
      await other.query('COMMIT');
      expect(await members.wishes()).toEqual(BOTH.slice(1));
    });

    it.each([
      ['reports another change', "status = 'pending'"],
      ['has confirmed another primary', "status = 'done', finished_at = now()"],
    ])('a client that %s after the group was compared', async (_, assignments) => {
      let reads = 0;
      const meanwhile = Object.create(db, {
        query: {
          value: async (query: QueryConfig) => {
            const result = await db.query(query);
            reads += 1;
            if (reads > 1) return result;
            const id = await contract.report({ event: 'after_promote', groupid: 1, nodename: 'a' });
            await force(id, assignments);
            return result;
          },
        },
      }) as Client;
      const { tasks } = await new MembersCase(meanwhile).compare();
      expect(tasks.map(({ groupid }) => groupid)).toEqual([2]);
      expect(reads).toBe(2);
    });

    it('a task of the comparison that is out of date: it is replaced, also when nothing else differs', async () => {
      await members.wishes();
      await db.query("DELETE FROM mpp_members WHERE nodename = 'b'");
      await members.members([{ node: 'c', role: P }]);
      expect(await members.wishes()).toEqual(['1: c [as they are]']);
      await db.query("DELETE FROM mpp_members WHERE nodename = 'c'");
      await members.members([{ node: 'a', role: P }]);
      expect(await members.wishes()).toEqual(['1: a [as they are]']);
      const { rows } = await db.query(
        'SELECT nodename, status FROM mpp_tasks WHERE groupid = 1 ORDER BY id',
      );
      expect(rows).toEqual([
        { nodename: 'b', status: 'superseded' },
        { nodename: 'c', status: 'superseded' },
        { nodename: 'a', status: 'pending' },
      ]);
    });

    it.each(['failed', 'cancelled'])(
      'one of the comparison that %s: five minutes without another',
      async (status) => {
        await members.wishes();
        const { rows } = await db.query<{ id: string }>(
          'SELECT id FROM mpp_tasks WHERE groupid = 1',
        );
        const id = rows[0]?.id ?? '';
        await force(id, `status = '${status}', finished_at = now()`);
        expect(await members.wishes()).toEqual([]);
        await force(id, "finished_at = now() - interval '6 minutes'");
        expect(await members.wishes()).toEqual(BOTH.slice(0, 1));
      },
    );
  });

  it('makes the tasks of a thousand groups in a few rounds, beside others that cannot be helped', async () => {
    await db.query(`
      INSERT INTO mpp_members (groupid, nodename, nodeport, source, role, state)
      SELECT g, 'w' || g, 5432, 'probe', 'primary', 'running' FROM generate_series(1, 1000) AS g
      UNION ALL
      SELECT g, 'x' || g, 5432, 'probe', 'primary', 'running' FROM generate_series(901, 1000) AS g`);
    let rounds = 0;
    let made = 0;
    for (let idle = 0; idle < 5 && rounds < 50; rounds += 1) {
      const { tasks } = await members.compare();
      made += tasks.length;
      idle = tasks.length === 0 ? idle + 1 : 0;
    }
    expect(made).toBe(900);
    expect(rounds).toBeLessThan(50);
  });

  it('writes nothing when nothing differs: no row, no transaction id, no notification', async () => {
    await members.catalog(PAIR);
    await members.members([A, { node: 'b' }]);
    const listener = await contract.session();
    const heard: string[] = [];
    listener.on('notification', ({ channel }) => heard.push(channel));
    await listener.query('LISTEN mpp_tasks');
    await db.query('BEGIN');
    expect(await members.compare()).toEqual({ tasks: [], problems: [] });
    const { rows } = await db.query('SELECT pg_current_xact_id_if_assigned() AS xid');
    await db.query('COMMIT');
    expect(rows).toEqual([{ xid: null }]);
    await listener.query('SELECT 1');
    expect(heard).toEqual([]);
  });
});
