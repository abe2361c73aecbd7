import { afterEach, beforeEach, describe, expect, inject, it } from 'vitest';
import type { ControllerProcess } from '../kit/controller-process.js';
import { FaultProxy } from '../kit/faults/proxy.js';
import { Harness, type NodeRow, type ReportInput } from '../kit/harness.js';
import { waitFor, waitUntilReplayed, type Server } from '../kit/servers/index.js';
import { waitUntilSynced } from '../kit/standin/observe.js';

/** Of workers that can be reached under two names, so that rows can move while servers stay. */
const MOVED = 'localhost';

describe('the coordinator fails over', () => {
  let h: Harness;

  beforeEach(async () => {
    h = await Harness.start({
      template: inject('template'),
      groups: 2,
      standbys: false,
      coordinatorStandby: true,
    });
  });
  afterEach(async () => h.stop());

  /** A controller as on the host of `server`, with its address as the workers know it. */
  function beside(server: Server, env: Readonly<Record<string, string>> = {}): ControllerProcess {
    const { host, port } = server;
    return h.spawnController(
      { MPP_COORDINATOR_HOST: host, MPP_COORDINATOR_PORT: String(port), ...env },
      server,
    );
  }

  async function says(controller: ControllerProcess, text: RegExp): Promise<void> {
    await controller.logged(String(text), ({ msg }) => text.test(msg));
  }

  const report = (
    event: ReportInput['event'],
    groupid: number,
    host = h.cluster.group(groupid).primary.host,
  ): ReportInput => ({
    event,
    groupid,
    node: { host, port: h.cluster.group(groupid).primary.port },
  });

  /** Waits until the coordinator and every worker have group 0 and group 1 there. */
  async function everywhere(coordinator: string, groupOne: string): Promise<void> {
    const right = (rows: readonly NodeRow[]): boolean => {
      const primaryOf = (groupid: number) =>
        rows.find((row) => row.groupid === groupid && row.role === 'primary')?.node;
      return primaryOf(0) === coordinator && primaryOf(1) === groupOne;
    };
    await waitFor('the right rows on the coordinator', async () => right(await h.nodes()));
    for (const { primary } of h.cluster.workers) {
      await primary.withSession((session) =>
        waitFor(`the right rows on ${primary.name}`, async () =>
          right(await h.nodes(undefined, session)),
        ),
      );
    }
  }

  /** Kills the coordinator and promotes its standby. @returns the old one, which is down. */
  async function failOver(): Promise<Server> {
    const group = h.cluster.group(0);
    const old = group.primary;
    await waitUntilReplayed(old, group.standby);
    await group.failover();
    await h.reconnect();
    return old;
  }

  it('the controller beside the new one starts by itself and puts all rows right', async () => {
    const { primary: old, standby: next } = h.cluster.group(0);
    const worker = h.cluster.group(1).primary;
    const first = beside(old);
    await first.active();
    const second = beside(next);
    await says(second, /^the server is a standby/);
    // What nobody has done yet reaches the standby with everything else.
    const hold = await h.request(report('before_demote', 1));
    expect(hold.status).toBe('holding');
    await first.end('SIGKILL');
    const pending = await h.report(report('after_promote', 1, MOVED));
    await failOver();

    await second.active();
    expect((await h.ended(pending)).status).toBe('done');
    await everywhere(next.address, `${MOVED}:${worker.port}`);
    expect(await h.holds()).toBe(0);
    const { rows } = await h.db.query('SELECT FROM mpp_tasks WHERE finished_at IS NULL');
    expect(rows).toEqual([]);
    expect(second.log.filter(({ msg }) => msg.startsWith('the server is a standby'))).toHaveLength(
      1,
    );
  });

  /** The old coordinator has a report that it takes for news, and that would harm the workers. */
  it.each([
    ['a controller that is started', {}],
    [
      'a controller that also asks the members',
      { MPP_TOPOLOGY: 'probe', MPP_PROBE_INTERVAL: '50ms' },
    ],
  ])('the old one comes back as it was: %s beside it does nothing', async (_, env) => {
    const { primary: old, standby: next } = h.cluster.group(0);
    const worker = h.cluster.group(1).primary;
    const second = beside(next);
    // Without a controller these stay open, in both copies.
    await h.report({ ...report('before_demote', 1), timeout: '1min' });
    await h.report(report('after_promote', 2, MOVED));
    await failOver();
    await second.active();
    await h.request(report('after_promote', 1, MOVED));
    await everywhere(next.address, `${MOVED}:${worker.port}`);
    await waitUntilSynced(h.db);
    const right = JSON.stringify(await h.nodes());

    await old.start();
    expect(await old.isInRecovery()).toBe(false);
    await old.withSession(async (session) => {
      const before = await h.nodes(undefined, session);
      await session.query(
        `INSERT INTO mpp_tasks (event, groupid, nodename, nodeport)
         VALUES ('after_promote', 1, 'wrong.example', 5432)`,
      );
      const first = beside(old, env);
      await says(
        first,
        /another server has become the coordinator: .* on timeline 2, and this one is on 1;/,
      );
      // It looks again time and again, and goes on saying nothing new.
      await waitFor('it to look again', async () => {
        const { rows } = await session.query<{ count: number }>(
          `SELECT sessions::integer AS count FROM pg_stat_database WHERE datname = 'postgres'`,
        );
        return (rows[0]?.count ?? 0) > 20;
      });
      expect(first.exitCode).toBeNull();
      expect(first.log.filter(({ msg }) => msg.includes('another server'))).toHaveLength(1);
      expect(first.log.some(({ msg }) => msg.startsWith('active,'))).toBe(false);
      expect(await h.nodes(undefined, session)).toEqual(before);
      const { rows } = await session.query('SELECT FROM mpp_tasks WHERE claimed_by IS NOT NULL');
      expect(rows).toEqual([]);
    });
    for (const { primary } of h.cluster.workers) {
      await primary.withSession(async (session) => {
        expect(JSON.stringify(await h.nodes(undefined, session))).toBe(right);
      });
    }
  });

  it('the old one was cut off and not down: its controller stops when it sees that', async () => {
    const { primary: old, standby: next } = h.cluster.group(0);
    const worker = h.cluster.group(1).primary;
    const first = beside(old);
    await first.active();
    const second = beside(next);
    await says(second, /^the server is a standby/);
    const hold = await h.request({ ...report('before_demote', 2), timeout: '1min' });
    expect(hold.status).toBe('holding');
    await waitUntilReplayed(old, next);
    await next.promote();
    await says(first, /another server has become the coordinator/);
    await waitFor('its hold to end', async () => (await h.holds()) === 0);
    await second.active();
    await old.withSession(async (session) => {
      await session.query(
        `INSERT INTO mpp_tasks (event, groupid, nodename, nodeport)
         VALUES ('after_promote', 1, 'wrong.example', 5432)`,
      );
      await waitFor('it to be there alone', async () => {
        const { rows } = await session.query(
          "SELECT FROM pg_stat_activity WHERE application_name ~ '^mpp-controller (queue|group)'",
        );
        return rows.length === 0;
      });
      expect((await h.nodes(1, session))[0]?.node).toBe(worker.address);
    });
    await next.withSession((session) =>
      waitFor('group 0 to be the new one', async () => {
        const [row] = await h.nodes(0, session);
        return row?.node === next.address;
      }),
    );
  });

  it('one controller, whose address reaches the new one by now: it starts again there', async () => {
    const { primary: old, standby: next } = h.cluster.group(0);
    const worker = h.cluster.group(1).primary;
    const proxy = await FaultProxy.start(old);
    try {
      const env = {
        MPP_COORDINATOR_HOST: '127.0.0.1',
        MPP_COORDINATOR_PORT: String(proxy.port),
      };
      const controller = h.spawnController(env, { host: '127.0.0.1', port: proxy.port });
      await controller.active();
      await waitFor('its address', async () =>
        (await h.nodes(0))[0]?.node.endsWith(`:${proxy.port}`),
      );
      const held = await h.request({ ...report('before_demote', 1), timeout: '1min' });
      expect(held.status).toBe('holding');
      // All its sessions stay open, on a server that goes on taking writes.
      await waitUntilReplayed(old, next);
      await h.cluster.group(0).promoteStandby();
      proxy.leadTo(next);
      await h.reconnect();
      const after = await h.report(report('after_promote', 1, MOVED));
      expect((await h.ended(after)).status).toBe('done');
      await everywhere(`127.0.0.1:${proxy.port}`, `${MOVED}:${worker.port}`);
      await old.withSession(async (session) => {
        expect((await h.nodes(1, session))[0]?.node).toBe(worker.address);
        const { rows } = await session.query('SELECT FROM mpp_group_sessions');
        expect(rows).toEqual([]);
      });
    } finally {
      await proxy.stop();
    }
  });
});
