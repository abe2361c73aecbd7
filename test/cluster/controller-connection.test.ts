import { afterAll, beforeAll, describe, expect, inject, it } from 'vitest';
import { Harness } from '../kit/harness.js';
import { waitFor, waitUntilReplayed } from '../kit/servers/index.js';
import { ClientFiles, setHba, turnTlsOn } from '../kit/tls/index.js';

const template = inject('template');

describe('a controller with several hosts', () => {
  it('works on the primary, and follows it through failovers of the coordinator', async () => {
    const h = await Harness.start({
      template,
      groups: 1,
      standbys: false,
      coordinatorStandby: true,
    });
    try {
      const group = h.cluster.group(0);
      const [first, second] = [group.standby, group.primary];
      const hosts = { host: `${first.address},${second.host}`, port: second.port };
      const controller = h.spawnController({}, hosts);
      await controller.active();
      await waitUntilReplayed(group.primary, group.standby);
      for (let round = 1; round <= 2; round += 1) {
        await group.switchover();
        await group.rejoin();
        await h.reconnect();
        await waitFor('the controller to be active on the new primary', async () => {
          const { rows } = await h.db.query<{ sessions: number }>(
            `SELECT count(*)::integer AS sessions FROM pg_stat_activity
             WHERE application_name IN ('mpp-controller control', 'mpp-controller listen')`,
          );
          return rows[0]?.sessions === 2;
        });
        const task = await h.request({
          event: 'after_promote',
          groupid: 1,
          node: h.cluster.group(1).primary,
        });
        expect(task.status).toBe('done');
      }
      expect(await controller.end()).toBe(0);
    } finally {
      await h.stop();
    }
  });
});

describe('a controller whose first host is an old coordinator that takes writes', () => {
  it('works on the one that was promoted', async () => {
    const h = await Harness.start({
      template,
      groups: 1,
      standbys: false,
      coordinatorStandby: true,
    });
    try {
      const { primary: old, standby: promoted } = h.cluster.group(0);
      await waitUntilReplayed(old, promoted);
      const controller = h.spawnController(
        {},
        { host: `${old.address},${promoted.host}`, port: promoted.port },
      );
      await controller.active();
      await promoted.promote();
      await promoted.withSession((session) =>
        waitFor('the controller to be on the promoted server', async () => {
          const { rowCount } = await session.query(
            "SELECT FROM pg_stat_activity WHERE application_name = 'mpp-controller listen'",
          );
          return rowCount === 1;
        }),
      );
      expect(await controller.end()).toBe(0);
    } finally {
      await h.stop();
    }
  });
});

describe('a controller whose coordinator takes no writes', () => {
  let h: Harness;

  beforeAll(async () => {
    h = await Harness.start({ template, groups: 1, standbys: false });
  });
  afterAll(() => h.stop());

  async function set(statement: string): Promise<void> {
    await h.db.query(statement);
    await h.db.query('SELECT pg_reload_conf()');
  }

  it('says so and waits until it does', async () => {
    await set('ALTER SYSTEM SET default_transaction_read_only = on');
    await waitFor('new sessions to be read-only', () =>
      h.cluster.coordinator.withSession(async (session) => {
        const { rows } = await session.query<{ on: boolean }>(
          `SELECT current_setting('transaction_read_only') = 'on' AS on`,
        );
        return rows[0]?.on;
      }),
    );
    const controller = h.spawnController();
    await controller.logged('what is wrong', ({ msg }) => /takes no writes/.test(msg));
    expect(controller.exitCode).toBe(null);
    await set('ALTER SYSTEM RESET default_transaction_read_only');
    await controller.active();
    expect(await controller.end()).toBe(0);
  });
});

describe('a controller of servers that take TLS alone', () => {
  let h: Harness;
  let files: ClientFiles;

  beforeAll(async () => {
    files = await ClientFiles.make();
    h = await Harness.start({ template, groups: 1, standbys: false });
    for (const { primary } of h.cluster.groups) {
      await primary.withSession(async (session) => {
        await session.query('SET citus.enable_ddl_propagation = off');
        await session.query('CREATE ROLE careful SUPERUSER LOGIN');
      });
      await turnTlsOn(primary);
      await setHba(primary, [
        'host replication postgres 127.0.0.1/32 trust',
        'hostssl all careful 127.0.0.1/32 trust',
      ]);
    }
  });
  afterAll(async () => {
    await h.stop();
    await files.remove();
  });

  it.each([
    ['sslmode=prefer', () => 'sslmode=prefer'],
    ['sslmode=verify-full', () => `sslmode=verify-full&sslrootcert=${files.path('root.crt')}`],
  ])('holds a group by encrypted sessions alone with %s', async (_, parameters) => {
    const { host, port } = h.cluster.coordinator;
    const controller = await h.startController({
      DATABASE_URL: `postgresql://careful@${host}:${port}/postgres?${parameters()}`,
      MPP_TOPOLOGY: 'probe',
      MPP_PAUSE: 'all',
    });
    const group = h.cluster.group(1);
    const demote = await h.request({ event: 'before_demote', groupid: 1, node: group.primary });
    expect(demote.status).toBe('holding');
    for (const { primary } of h.cluster.groups) {
      const found = await primary.withSession(async (session) => {
        const { rows } = await session.query<{ purpose: string; ssl: boolean }>(SESSIONS);
        return rows;
      });
      expect(found.length).toBeGreaterThan(0);
      expect(found.filter(({ ssl }) => !ssl)).toEqual([]);
    }
    const promote = await h.request({ event: 'after_promote', groupid: 1, node: group.primary });
    expect(promote.status).toBe('done');
    expect(await controller.end()).toBe(0);
  });
});

const SESSIONS = `
  SELECT application_name AS purpose, ssl
  FROM pg_stat_activity JOIN pg_stat_ssl USING (pid)
  WHERE application_name LIKE 'mpp-controller %' AND application_name <> 'mpp-controller test'`;
