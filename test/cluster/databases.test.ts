import { afterAll, afterEach, beforeAll, describe, expect, inject, it } from 'vitest';
import { runCli } from '../kit/cli.js';
import type { ControllerProcess } from '../kit/controller-process.js';
import { primaryAddress } from '../kit/faults/subject.js';
import { Harness, type TaskRow } from '../kit/harness.js';
import { waitFor } from '../kit/servers/index.js';
import { keysOfGroup } from '../kit/standin/schema.js';
import { startTraffic } from '../kit/traffic/traffic.js';

/** Other names of a node stand for other nodes here, so what a node says of itself does not count. */
const DATABASES = { MPP_DATABASES: 'postgres,shop', MPP_VERIFY: 'off' };

/** The copy of a report, in the database of `h`. */
async function copyOf(h: Harness, id: string): Promise<TaskRow | undefined> {
  const { rows } = await h.db.query<TaskRow>(
    `SELECT id, event, groupid, status, reason, nodeid, attempt
     FROM mpp_tasks WHERE origin_id = $1 AND origin_database <> current_database()`,
    [id],
  );
  return rows[0];
}

async function copied(h: Harness, id: string): Promise<TaskRow> {
  return waitFor(`report ${id} to be told`, async () => copyOf(h, id));
}

async function untold(h: Harness): Promise<number> {
  return (await h.db.query('SELECT FROM mpp_outbox')).rowCount ?? 0;
}

async function waitUntilTold(h: Harness): Promise<void> {
  await waitFor('all to be told', async () => (await untold(h)) === 0);
}

describe('two Citus databases on the same nodes', () => {
  let first: Harness;
  let second: Harness;
  let controller: ControllerProcess;

  async function startController(env: Readonly<Record<string, string>> = {}): Promise<void> {
    controller = first.spawnController({ ...DATABASES, ...env });
    for (const database of ['postgres', 'shop']) {
      await controller.logged(
        `that it is active in ${database}`,
        (line) => line.msg.startsWith('active,') && line['database'] === database,
      );
    }
  }

  beforeAll(async () => {
    first = await Harness.start({ template: inject('template'), groups: 3 });
    second = await first.addDatabase('shop');
    await startController();
  });
  afterAll(async () => first.stop());
  afterEach(async () => {
    for (const h of [first, second])
      await h.db.query('SELECT mpp_release(g) FROM generate_series(1, 3) AS g');
  });

  /** The same server by its other name. */
  async function otherName(groupid: number): Promise<{ host: string; port: number }> {
    const { host, port } = await primaryAddress(first, groupid);
    return { host: host === 'localhost' ? '127.0.0.1' : 'localhost', port };
  }

  it('switches over in both after reports into one, and no write fails in either', async () => {
    const group = first.cluster.group(1);
    const [old, next] = [group.primary, group.standby];
    const { connection } = first.cluster.coordinator;
    const traffic = [connection, { ...connection, database: 'shop' }].map((one) =>
      startTraffic({ connection: one, clients: { writers: 3, readers: 0 }, thinkMs: 5 }),
    );
    await Promise.all(traffic.map((one) => one.waitForProgress(20)));

    const demote = await first.request({
      ...{ event: 'before_demote', groupid: 1, node: old },
      cooldown: '20s',
    });
    expect(demote).toMatchObject({ status: 'holding', reason: null });
    // Acknowledged when both wait.
    expect(await first.holds()).toBe(1);
    expect(await second.holds()).toBe(1);
    await group.switchover();
    const after = await first.request({ event: 'after_promote', groupid: 1, node: next });
    expect(after.status).toBe('done');
    expect((await second.ended((await copied(second, after.id)).id)).status).toBe('done');

    for (const h of [first, second])
      expect(await primaryAddress(h, 1)).toEqual({ host: next.host, port: next.port });
    await Promise.all(traffic.map((one) => one.waitForProgress(20)));
    for (const one of traffic) expect((await one.stop()).failures).toEqual([]);
    await waitUntilTold(first);
    await group.rejoin();
  });

  it('takes reports into any of them', async () => {
    const node = await otherName(2);
    const after = await second.request({ event: 'after_promote', groupid: 2, node });
    expect(after.status).toBe('done');
    expect((await first.ended((await copied(first, after.id)).id)).status).toBe('done');
    expect(await primaryAddress(first, 2)).toEqual(node);
    // A copy is not told on.
    await waitUntilTold(first);
    expect(await copyOf(second, (await copied(first, after.id)).id)).toBeUndefined();
  });

  it('acknowledges before_demote only when the traffic of the other database waits', async () => {
    const [key = 0] = await keysOfGroup(second.db, 1, 1, 50_000);
    await second.db.query('BEGIN');
    await second.db.query('INSERT INTO notes VALUES ($1, 0)', [key]);
    const node = await primaryAddress(first, 1);
    const id = await first.report({ event: 'before_demote', groupid: 1, node, cooldown: '20s' });
    // Its own traffic waits; that of the other one cannot yet.
    await waitFor('the traffic here to wait', async () => {
      const { rowCount } = await first.db.query(
        'SELECT FROM mpp_tasks WHERE id = $1 AND held_at IS NOT NULL',
        [id],
      );
      return rowCount === 1;
    });
    expect((await first.task(id)).status).toBe('claimed');
    await second.db.query('ROLLBACK');
    expect(await first.acknowledged(id)).toMatchObject({ status: 'holding', reason: null });
    expect(await second.holds()).toBe(1);
  });

  it('does not wait for itself when hooks report to both databases', async () => {
    const node = await primaryAddress(first, 1);
    const demote = { event: 'before_demote', groupid: 1, node } as const;
    const ids = await Promise.all([first.report(demote), second.report(demote)]);
    const [one, other] = await Promise.all([
      first.acknowledged(ids[0]),
      second.acknowledged(ids[1]),
    ]);
    // The newest report wins, so that one of them may have been superseded by the other's copy.
    expect([one.status, other.status]).toContain('holding');
    expect(await first.holds()).toBe(1);
    expect(await second.holds()).toBe(1);
  });

  it('goes on at once without the other database when the next event has been reported', async () => {
    const [key = 0] = await keysOfGroup(second.db, 1, 1, 60_000);
    await second.db.query('BEGIN');
    await second.db.query('INSERT INTO notes VALUES ($1, 0)', [key]);
    const node = await primaryAddress(first, 1);
    const id = await first.report({ event: 'before_demote', groupid: 1, node, cooldown: '20s' });
    await copied(second, id);
    const after = await first.request({
      event: 'after_promote',
      groupid: 1,
      node: await otherName(1),
    });
    expect(after.status).toBe('done');
    await second.db.query('ROLLBACK');
    expect((await second.ended((await copied(second, after.id)).id)).status).toBe('done');
    expect(await primaryAddress(second, 1)).toEqual(await primaryAddress(first, 1));
  });

  it('ends the copy when its original is released, or cancelled', async () => {
    const node = await primaryAddress(first, 1);
    const demote = await first.request({ event: 'before_demote', groupid: 1, node });
    expect(await second.holds()).toBe(1);
    await first.db.query('SELECT mpp_release(1)');
    const copy = await second.ended((await copied(second, demote.id)).id);
    expect(copy).toMatchObject({
      status: 'rolled_back',
      reason: `task ${demote.id} of database postgres was rolled_back`,
    });
    await waitFor('the traffic to go on', async () => (await second.holds()) === 0);
  });

  it('says which database does not wait, and makes up for it: it takes no connections', async () => {
    await first.db.query("UPDATE pg_database SET datallowconn = false WHERE datname = 'shop'");
    await first.db.query(
      `SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
       WHERE datname = 'shop' AND application_name ~ '^mpp-controller (?!test)'`,
    );
    const node = await primaryAddress(first, 1);
    const demote = await first.request({ event: 'before_demote', groupid: 1, node });
    expect(demote.status).toBe('holding');
    expect(demote.reason).toMatch(/^in database shop: /);
    const next = await otherName(1);
    const after = await first.request({ event: 'after_promote', groupid: 1, node: next });
    expect(after.status).toBe('done');
    expect(await untold(first)).toBeGreaterThan(0);

    await first.db.query("UPDATE pg_database SET datallowconn = true WHERE datname = 'shop'");
    expect((await second.ended((await copied(second, after.id)).id)).status).toBe('done');
    expect(await primaryAddress(second, 1)).toEqual(next);
    await waitUntilTold(first);
  });

  it('forwards after a crash what it had not forwarded', async () => {
    // Keeps a copy from being made.
    await second.db.query('BEGIN; LOCK TABLE mpp_tasks IN SHARE MODE');
    const next = await otherName(3);
    const after = await first.request({ event: 'after_promote', groupid: 3, node: next });
    expect(after.status).toBe('done');
    expect(await untold(first)).toBe(1);
    await controller.end('SIGKILL');
    await second.db.query('ROLLBACK');
    await startController();
    expect((await second.ended((await copied(second, after.id)).id)).status).toBe('done');
    expect(await primaryAddress(second, 3)).toEqual(next);
  });

  it('PostgreSQL is killed while the traffic of both waits', async () => {
    const [node, next] = [await primaryAddress(first, 1), await otherName(1)];
    const demote = await first.request({ event: 'before_demote', groupid: 1, node });
    expect(demote.status).toBe('holding');
    await first.cluster.coordinator.kill();
    await first.cluster.coordinator.start();
    for (const h of [first, second]) await h.reconnect();
    const after = await first.request({ event: 'after_promote', groupid: 1, node: next });
    expect(after.status).toBe('done');
    expect((await second.ended((await copied(second, after.id)).id)).status).toBe('done');
    await first.ended(demote.id);
    for (const h of [first, second]) {
      expect(await primaryAddress(h, 1)).toEqual(next);
      await waitFor('nothing to be held', async () => (await h.holds()) === 0);
    }
  });

  it('copies what hooks say of the members', async () => {
    const next = await otherName(3);
    await second.db.query("SELECT mpp_report(3, $1, $2, 'primary')", [next.host, next.port]);
    for (const h of [first, second]) {
      await waitFor('the group to be right', async () => {
        const { host } = await primaryAddress(h, 3);
        return host === next.host;
      });
    }
  });

  it('is served by the commands: migrate and status for each, notify for all', async () => {
    const { host, port } = first.cluster.coordinator;
    const env = { ...DATABASES, DATABASE_URL: `postgres://postgres@${host}:${port}/shop` };
    const migrated = await runCli(['migrate'], env);
    expect(migrated.stdout.trim().split('\n')).toEqual([
      'schema public of database postgres is up to date: nothing to do',
      'schema public of database shop is up to date: nothing to do',
    ]);
    const status = await runCli(['status', '--json'], env);
    expect(Object.keys(JSON.parse(status.stdout) as object)).toEqual(['postgres', 'shop']);
    expect((await runCli(['status'], env)).stdout).toMatch(
      /^DATABASE postgres\n[^]*\n\nDATABASE shop\n/,
    );

    const node = await primaryAddress(first, 2);
    const address = ['--group', '2', '--host', node.host, '--port', String(node.port)];
    const notified = await runCli(['notify', 'before_demote', ...address, '--wait'], env);
    expect(notified).toMatchObject({
      exitCode: 0,
      stdout: expect.stringContaining('holding') as string,
    });
    for (const h of [first, second]) expect(await h.holds()).toBe(1);
    await second.db.query('SELECT mpp_release(2)');
  });

  it('needs no superuser', async () => {
    await first.db.query('CREATE ROLE steward LOGIN');
    await first.db.query('GRANT mpp_controller TO steward');
    const { address } = first.cluster.coordinator;
    const url = (user: string): string => `postgresql://${user}@${address}/postgres`;
    const bootstrap = await runCli(['bootstrap'], { ...DATABASES, DATABASE_URL: url('postgres') });
    expect(bootstrap).toMatchObject({ exitCode: 0, stderr: '' });
    expect(await controller.end()).toBe(0);
    await startController({ DATABASE_URL: url('steward'), MPP_STRATEGY: 'pause-node' });
    const node = await primaryAddress(first, 1);
    const demote = await first.request({ event: 'before_demote', groupid: 1, node });
    expect(demote.status).toBe('holding');
    for (const h of [first, second]) expect(await h.holds()).toBe(1);
    const next = await otherName(1);
    const after = await first.request({ event: 'after_promote', groupid: 1, node: next });
    expect(after.status).toBe('done');
    expect((await second.ended((await copied(second, after.id)).id)).status).toBe('done');
    const third = await primaryAddress(second, 3);
    await second.db.query("SELECT mpp_report(3, $1, $2, 'primary')", [
      third.host === 'localhost' ? '127.0.0.1' : 'localhost',
      third.port,
    ]);
    await waitFor('the members to be copied', async () => {
      return (await primaryAddress(first, 3)).host !== third.host;
    });
  });

  it('forwards nothing any more without MPP_DATABASES', async () => {
    expect(await controller.end()).toBe(0);
    controller = await first.startController();
    const after = await first.request({
      event: 'after_promote',
      groupid: 3,
      node: await otherName(3),
    });
    expect(after.status).toBe('done');
    expect(await untold(first)).toBe(0);
    expect((await first.db.query('SELECT FROM mpp_databases')).rowCount).toBe(0);
  });
});
