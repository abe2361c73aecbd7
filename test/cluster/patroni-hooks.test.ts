import { chmod, cp, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, inject, it } from 'vitest';
import { packageRoot } from '../../src/package-root.js';
import { openSession } from '../../src/postgres/session.js';
import { Harness } from '../kit/harness.js';
import { hookKinds, serviceText } from '../kit/hooks.js';
import { findPatroni, PatroniCluster, type PatroniNode } from '../kit/patroni/patroni-cluster.js';
import { waitFor } from '../kit/servers/index.js';
import { run } from '../kit/servers/processes.js';
import { installStandin } from '../kit/standin/install.js';

const programs = await findPatroni();
const kinds = await hookKinds();
const missing =
  typeof programs === 'string' ? programs : (kinds[1]?.missing ?? (await tooOld(programs.patroni)));
if (missing !== undefined) console.warn(`no test of the hooks in a real Patroni: ${missing}`);

/** Before 3.0.3 Patroni had no before_stop. */
async function tooOld(patroni: string): Promise<string | undefined> {
  const answer = await run(patroni, ['--version']);
  const [major = 0, minor = 0, patch = 0] = (answer.match(/\d+/g) ?? []).map(Number);
  const isNew = major > 3 || (major === 3 && (minor > 0 || patch >= 3));
  return isNew ? undefined : `before_stop needs Patroni 3.0.3, this is ${answer.trim()}`;
}

const USER = 'mpp_hook_1';
const PLACE = '/usr/local/lib/mpp-controller/hooks';

/** The settings that docs/hooks/patroni.md has operators paste, for one node. */
function settingsOfPage(page: string, hooks: string, { host, port }: PatroniNode) {
  const lines = [...page.matchAll(/^ +(before_stop|pre_promote|on_\w+): (.+)$/gm)].map(
    ([, name = '', value = '']) => [
      name,
      value
        .replaceAll(PLACE, hooks)
        .replaceAll('--host worker-1a --port 5432', `--host ${host} --port ${port}`),
    ],
  );
  const all = Object.fromEntries(lines) as Record<string, string>;
  const { before_stop, pre_promote, ...callbacks } = all;
  return { before_stop, pre_promote, callbacks };
}

/** Nothing but the hooks reports: the controller has neither probe nor REST API. */
describe.skipIf(missing !== undefined || inject('template').binaries.hasCitus)(
  'the hooks of the page in a real Patroni',
  { timeout: 180_000 },
  () => {
    let h: Harness;
    let patroni: PatroniCluster;
    const stops: (() => Promise<void>)[] = [];

    beforeAll(async () => {
      if (typeof programs === 'string') return;
      h = await Harness.start({ template: inject('template'), groups: 0, register: false });
      stops.push(() => h.stop());
      await h.createLogin(USER);
      await h.db.query(`GRANT mpp_client TO ${USER}`);
      await h.db.query('SELECT mpp_grant_group($1, 1)', [USER]);

      const folder = await mkdtemp(join(tmpdir(), 'mpp-patroni-hooks-'));
      stops.push(() => rm(folder, { recursive: true }));
      await chmod(folder, 0o755);
      const hooks = join(folder, 'hooks');
      await cp(join(packageRoot(), 'hooks'), hooks, { recursive: true });
      const service = join(folder, 'pg_service.conf');
      const { host, port } = h.cluster.coordinator;
      await writeFile(service, serviceText({ host, port, user: USER }));

      const page = await readFile(join(packageRoot(), 'docs/hooks/patroni.md'), 'utf8');
      patroni = await PatroniCluster.start(
        programs,
        { a: {}, b: {} },
        {
          postgresql: (node) => settingsOfPage(page, hooks, node),
          env: { PGSERVICEFILE: service },
        },
      );
      stops.push(() => patroni.stop());
      const leader = await patroni.waitForLeader();
      const session = await openSession(
        { host: leader.host, port: leader.port, user: 'postgres', database: 'postgres' },
        'test',
      );
      await session.query(`CREATE ROLE ${USER} LOGIN`);
      await session.query('RESET search_path');
      await installStandin(session).finally(() => session.end());
      await h.startController();
    }, 180_000);
    afterAll(async () => {
      for (const stop of stops.reverse()) await stop();
    }, 120_000);

    function addressOf({ host, port }: PatroniNode): string {
      return `${host}:${port}`;
    }

    /** @returns its nodeid. */
    async function isPrimary(node: PatroniNode): Promise<number> {
      return waitFor(
        `${addressOf(node)} to be the primary in pg_dist_node`,
        async () => {
          const rows = await h.nodes(1);
          const primary = rows.find(({ role }) => role === 'primary');
          return primary?.node === addressOf(node) ? primary.nodeid : undefined;
        },
        { timeoutMs: 90_000 },
      );
    }

    async function newestId(): Promise<string> {
      const { rows } = await h.db.query<{ id: string }>('SELECT max(id) AS id FROM mpp_tasks');
      return rows[0]?.id ?? '0';
    }

    /** Waits until these tasks of clients have ended as done, each at least once. */
    async function areDone(since: string, wanted: readonly (readonly [string, PatroniNode])[]) {
      let seen: unknown;
      await waitFor(
        'the tasks of the hooks to be done',
        async () => {
          const { rows } = await h.db.query<{ event: string; node: string; status: string }>(
            `SELECT event, format('%s:%s', nodename, nodeport) AS node, status FROM mpp_tasks
             WHERE id > $1 AND source = 'client' ORDER BY id`,
            [since],
          );
          seen = rows;
          return wanted.every(([event, node]) =>
            rows.some(
              (row) => row.event === event && row.node === addressOf(node) && row.status === 'done',
            ),
          );
        },
        { timeoutMs: 60_000 },
      ).catch((error: unknown) => {
        throw new Error(JSON.stringify(seen), { cause: error });
      });
      expect(await h.holds()).toBe(0);
    }

    it('register the group, and follow a restart, a switchover and a crash', async () => {
      const [a, b] = patroni.nodes;
      if (a === undefined || b === undefined) throw new Error('two nodes were started');
      const nodeid = await isPrimary(a);

      let since = await newestId();
      await patroni.request(a, 'restart', {});
      await areDone(since, [
        ['before_demote', a],
        ['after_promote', a],
      ]);
      expect(await isPrimary(a)).toBe(nodeid);

      since = await newestId();
      await patroni.request(a, 'switchover', { leader: 'a', candidate: 'b' });
      expect(await isPrimary(b)).toBe(nodeid);
      await areDone(since, [
        ['before_demote', a],
        ['before_promote', b],
        ['after_promote', b],
      ]);

      await waitFor(
        'the old primary to follow',
        async () => {
          const { members } = await patroni.answer();
          return members.some(({ name, state }) => name === 'a' && state === 'streaming');
        },
        { timeoutMs: 60_000 },
      );
      since = await newestId();
      await patroni.kill(b);
      expect(await isPrimary(a)).toBe(nodeid);
      await areDone(since, [
        ['before_promote', a],
        ['after_promote', a],
      ]);
    });
  },
);
