import pg from 'pg';
import { afterAll, afterEach, beforeAll, describe, expect, inject, it } from 'vitest';
import { runCli } from '../kit/cli.js';
import type { ControllerProcess } from '../kit/controller-process.js';
import { Harness } from '../kit/harness.js';
import { waitFor } from '../kit/servers/index.js';
import { startTraffic } from '../kit/traffic/traffic.js';

/** Login roles, each a member of one role of ours and nothing else. */
const LOGINS = { hook: 'mpp_client', dba: 'mpp_operator', controller: 'mpp_controller' } as const;
type Login = keyof typeof LOGINS;

let h: Harness;
let controller: ControllerProcess;
const sessions: pg.Client[] = [];

beforeAll(async () => {
  h = await Harness.start({ template: inject('template'), secondaries: false });
  // Two statements: with Citus a role cannot be made a member of one that the workers do not have.
  for (const [login, role] of Object.entries(LOGINS)) {
    await h.createLogin(login);
    await h.db.query(`GRANT ${role} TO ${login}`);
  }
  const bootstrap = await runCli(['bootstrap'], { DATABASE_URL: url('postgres') });
  expect(bootstrap).toMatchObject({ exitCode: 0, stderr: '' });
  expect(bootstrap.stdout).toMatch(/^grants +done +mpp_controller, .*citus_update_node/m);
  controller = await h.startController({ DATABASE_URL: url('controller') });
});
afterAll(async () => h.stop());

afterEach(async () => {
  await Promise.all(sessions.splice(0).map((session) => session.end()));
});

function url(user: string): string {
  return `postgresql://${user}@${h.cluster.coordinator.address}/postgres`;
}

function cli(login: Login, ...args: string[]) {
  return runCli(args, { DATABASE_URL: url(login) });
}

async function login(user: Login): Promise<pg.Client> {
  const session = new pg.Client({ connectionString: url(user) });
  await session.connect();
  sessions.push(session);
  return session;
}

/** SQLSTATE of what PostgreSQL answers to a statement that it refuses. */
async function refusal(session: pg.Client, statement: string): Promise<string | undefined> {
  const error: unknown = await session.query(statement).then(
    () => undefined,
    (thrown: unknown) => thrown,
  );
  return error instanceof pg.DatabaseError ? error.code : undefined;
}

const DENIED = '42501';

/** What a hook sends: it reports, and returns once the report is acknowledged. */
async function request(
  session: pg.Client,
  event: string,
  groupid: number,
  { host, port }: { host: string; port: number },
): Promise<{ id: string; status: string }> {
  const { rows } = await session.query<{ id: string; status: string }>(
    "CALL mpp_request($1, $2, $3, $4, cooldown => '1s')",
    [event, groupid, host, port],
  );
  const [answer] = rows;
  if (answer === undefined) throw new Error('CALL mpp_request returned no row');
  return answer;
}

describe('a controller that is only a member of mpp_controller', () => {
  it('is no superuser, and is active', async () => {
    const { rows } = await h.db.query(
      `SELECT rolname, rolsuper, rolcreaterole
       FROM pg_stat_activity JOIN pg_roles ON rolname = usename
       WHERE application_name = 'mpp-controller control'`,
    );
    expect(rows).toEqual([{ rolname: 'controller', rolsuper: false, rolcreaterole: false }]);
    expect(controller.stderr).toBe('');
  });

  it.each(['pause-node', 'demoted-row'])('switches a worker over with %s', async (strategy) => {
    await controller.end();
    controller = await h.startController({
      DATABASE_URL: url('controller'),
      MPP_STRATEGY: strategy,
    });
    const group = h.cluster.group(1);
    const [row] = await h.nodes(1);
    const hook = await login('hook');
    const { rows } = await h.db.query<{ id: number }>(
      'SELECT coalesce(max(id), 0)::integer AS id FROM items',
    );
    const traffic = startTraffic({
      connection: h.cluster.coordinator.connection,
      clients: { writers: 3, readers: 0 },
      thinkMs: 2,
      firstId: (rows[0]?.id ?? 0) + 1,
    });
    await traffic.waitForProgress(20);

    const [old, next] = [group.primary, group.standby];
    expect((await request(hook, 'before_demote', 1, old)).status).toBe('holding');
    await group.switchover();
    expect((await request(hook, 'before_promote', 1, next)).status).toBe('holding');
    const after = await request(hook, 'after_promote', 1, next);
    expect(after.status).toBe('done');

    await traffic.waitForProgress(20);
    const report = await traffic.stop();
    expect(report.failures).toEqual([]);
    expect(await h.nodes(1)).toEqual([
      { nodeid: row?.nodeid, groupid: 1, node: next.address, role: 'primary' },
    ]);
    const { rows: made } = await h.db.query('SELECT created_by FROM mpp_tasks WHERE id = $1', [
      after.id,
    ]);
    expect(made).toEqual([{ created_by: 'hook' }]);
    await group.rejoin();
  });

  it('registers a secondary, replaces it and removes it', async () => {
    const group = h.cluster.group(2);
    await group.failover();
    await group.rejoin();
    const { primary, standby } = group;
    const report = { event: 'after_promote', groupid: 2, node: primary } as const;
    const secondaries = async (...addresses: string[]): Promise<void> => {
      await h.request({ ...report, secondaries: addresses });
      await waitFor('the secondaries to follow', async () => {
        const rows = await h.nodes(2);
        const nodes = rows.filter(({ role }) => role === 'secondary').map(({ node }) => node);
        return nodes.join() === addresses.join();
      });
    };
    await secondaries(standby.address);
    await secondaries();
    await secondaries(standby.address);
    expect(await h.nodes(2)).toMatchObject([
      { node: primary.address, role: 'primary' },
      { node: standby.address, role: 'secondary' },
    ]);
  });

  it('says which command installs what it may not do, and does it once that has run', async () => {
    const { primary } = h.cluster.group(2);
    await h.db.query('DROP FUNCTION mpp_remove_node');
    await h.report({ event: 'after_promote', groupid: 2, node: primary, secondaries: [] });
    const task = await waitFor('Citus to refuse the removal', async () => {
      const { rows } = await h.db.query<{ id: string; reason: string }>(
        `SELECT id, reason FROM mpp_tasks
         WHERE groupid = 2 AND finished_at IS NULL AND attempt > 1 AND reason LIKE '%bootstrap%'`,
      );
      return rows[0];
    });
    expect(task.reason).toMatch(
      /^Citus lets only a superuser call citus_remove_node: run mpp-controller bootstrap as a superuser, which installs mpp_remove_node .+ Citus says: .+ \(SQLSTATE \w+\)$/,
    );
    expect(await runCli(['bootstrap'], { DATABASE_URL: url('postgres') })).toMatchObject({
      exitCode: 0,
      stdout: expect.stringMatching(/^grants +done +mpp_controller, mpp_remove_node$/m) as string,
    });
    expect(await h.ended(task.id)).toMatchObject({ status: 'done' });
    expect(await h.nodes(2)).toMatchObject([{ node: primary.address, role: 'primary' }]);
  });

  it("registers the coordinator's host", async () => {
    const { host, port } = h.cluster.coordinator;
    // Fails while the metadata of a node is not in sync.
    await waitFor('Citus to remove the row', () =>
      h.db.query('SELECT citus_remove_node($1, $2)', [host, port]),
    );
    expect(await h.nodes(0)).toEqual([]);
    const report = { event: 'after_promote', groupid: 0, node: { host, port } } as const;
    expect(await h.ended((await h.request(report)).id)).toMatchObject({ status: 'done' });
    expect(await h.nodes(0)).toMatchObject([{ node: `${host}:${port}`, role: 'primary' }]);
  });
});

describe('a member of mpp_client', () => {
  it('reports by plain INSERT, by function and by command, and waits for the answer', async () => {
    const hook = await login('hook');
    const { host, port } = h.cluster.group(1).primary;
    await hook.query(
      "INSERT INTO mpp_tasks (event, groupid, nodename, nodeport) VALUES ('after_promote', 1, $1, $2)",
      [host, port],
    );
    const { rows } = await hook.query<{ id: string }>(
      "SELECT mpp_submit('after_promote', 1, $1, $2) AS id",
      [host, port],
    );
    const waited = await hook.query('CALL mpp_wait($1)', [rows[0]?.id]);
    expect(waited.rows).toEqual([{ status: 'done' }]);
    const node = ['--group', '1', '--host', host, '--port', String(port)];
    const notified = await cli('hook', 'notify', 'after_promote', ...node, '--wait');
    expect(notified).toMatchObject({ exitCode: 0, stderr: '' });
    expect(notified.stdout).toMatch(/^task \d+: done\n/);
  });

  it('can neither look at the tasks nor change or end any', async () => {
    const hook = await login('hook');
    for (const statement of [
      'SELECT * FROM mpp_tasks',
      'SELECT * FROM mpp_queue',
      "UPDATE mpp_tasks SET status = 'done'",
      'DELETE FROM mpp_tasks',
      'SELECT mpp_cancel(1)',
      'SELECT mpp_release(1)',
      'SELECT mpp_rebuild_cache()',
      "INSERT INTO mpp_tasks (event, groupid, nodename, status) VALUES ('suspect', 1, 'a', 'done')",
    ]) {
      expect(await refusal(hook, statement), statement).toBe(DENIED);
    }
    const status = await cli('hook', 'status');
    expect(status).toMatchObject({ exitCode: 2, stdout: '' });
    expect(status.stderr).toContain('mpp_operator');
  });
});

describe('a member of mpp_operator', () => {
  it('releases a hold, and cancels a task that waits for its turn', async () => {
    const { primary } = h.cluster.group(1);
    await controller.end();
    controller = await h.startController({ DATABASE_URL: url('controller'), MPP_MAX_HOLDS: '1' });
    const report = { event: 'before_demote', groupid: 1, node: primary } as const;
    const hold = await h.request(report);
    expect(hold.status).toBe('holding');
    const { id } = hold;
    const next = await h.report({ ...report, groupid: 2, node: h.cluster.group(2).primary });

    const dba = await login('dba');
    await dba.query('SELECT mpp_cancel($1)', [next]);
    expect(await h.task(next)).toMatchObject({
      status: 'cancelled',
      reason: expect.stringContaining('dba') as string,
    });
    const { rows } = await dba.query('SELECT mpp_release(1) AS released');
    expect(rows).toEqual([{ released: true }]);
    expect((await h.ended(id)).status).toBe('rolled_back');
    await waitFor('the hold to end', async () => (await h.holds()) === 0);
  });

  it('sees controllers, queue, holds and nodes', async () => {
    const status = await cli('dba', 'status', '--json');
    expect(status).toMatchObject({ exitCode: 0, stderr: '' });
    expect(JSON.parse(status.stdout)).toMatchObject({
      controllers: [{ state: 'active' }],
      nodes: expect.arrayContaining([expect.objectContaining({ groupid: 1 })]) as unknown,
    });
    const dba = await login('dba');
    expect(await refusal(dba, "UPDATE mpp_tasks SET status = 'done'")).toBe(DENIED);
    expect(await refusal(dba, 'DELETE FROM mpp_task_log')).toBe(DENIED);
  });
});
