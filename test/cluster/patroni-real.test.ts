import { afterAll, beforeAll, describe, expect, inject, it } from 'vitest';
import { Harness } from '../kit/harness.js';
import { findPatroni, PatroniCluster, type PatroniNode } from '../kit/patroni/patroni-cluster.js';
import { openSession } from '../../src/postgres/session.js';
import { waitFor } from '../kit/servers/index.js';
import { installStandin } from '../kit/standin/install.js';

const programs = await findPatroni();
const missing = typeof programs === 'string' ? programs : undefined;
if (missing !== undefined) console.warn(`no test on a real Patroni: ${missing}`);

/** The coordinator is a test server, with the stand-in; group 1 is kept by a real Patroni. */
describe.skipIf(missing !== undefined || inject('template').binaries.hasCitus)(
  'a real Patroni',
  { timeout: 120_000 },
  () => {
    let h: Harness;
    let patroni: PatroniCluster;
    const stops: (() => Promise<void>)[] = [];

    beforeAll(async () => {
      if (typeof programs === 'string') return;
      h = await Harness.start({ template: inject('template'), groups: 0, register: false });
      stops.push(() => h.stop());
      patroni = await PatroniCluster.start(programs, {
        a: {},
        b: {},
        c: { noloadbalance: true, nofailover: true },
      });
      stops.push(() => patroni.stop());
      const leader = await patroni.waitForLeader();
      const session = await openSession(
        { host: leader.host, port: leader.port, user: 'postgres', database: 'postgres' },
        'test',
      );
      await session.query('RESET search_path');
      await installStandin(session).finally(() => session.end());
      await h.startController({
        MPP_TOPOLOGY: 'patroni',
        MPP_PATRONI: `1=${patroni.nodes.map(({ url }) => url).join(',')}`,
        MPP_PATRONI_INTERVAL: '200ms',
        MPP_MEMBER_TTL: '5s',
      });
    }, 120_000);
    afterAll(async () => {
      for (const stop of stops.reverse()) await stop();
    }, 120_000);

    async function isRegistered(rows: readonly (readonly [PatroniNode, string])[]): Promise<void> {
      const wanted = JSON.stringify(
        rows.map(([{ host, port }, role]) => [`${host}:${port}`, role]),
      );
      await waitFor(
        `group 1 to be ${wanted}`,
        async () => {
          const now = (await h.nodes(1)).map(({ node, role }) => [node, role]);
          return JSON.stringify(now) === wanted || undefined;
        },
        { timeoutMs: 60_000 },
      );
    }

    it('is registered, follows a switchover, and loses who has left', async () => {
      const [a, b] = patroni.nodes;
      if (a === undefined || b === undefined) throw new Error('two nodes were started');
      // The third has noloadbalance, so it is no secondary.
      await isRegistered([
        [a, 'primary'],
        [b, 'secondary'],
      ]);
      const [row] = await h.nodes(1);

      // A clean stop gives the leader key away; only b may take it.
      await patroni.end(a);
      expect(await patroni.waitForLeader(a)).toBe(b);
      await waitFor('the group to follow', async () => {
        const [now] = await h.nodes(1);
        return now?.node === `${b.host}:${b.port}` && now.nodeid === row?.nodeid;
      });
      // Once Patroni has forgotten a, so has pg_dist_node.
      await isRegistered([[b, 'primary']]);
      const { rows } = await h.db.query('SELECT DISTINCT source FROM mpp_tasks');
      expect(rows).toEqual([{ source: 'sync' }]);
    });
  },
);
