import { afterAll, beforeAll, describe, expect, inject, it } from 'vitest';
import { runCli } from '../kit/cli.js';
import type { ControllerProcess } from '../kit/controller-process.js';
import { Harness } from '../kit/harness.js';
import { ask, samples } from '../kit/http.js';
import { waitFor } from '../kit/servers/index.js';
import { PortAllocator } from '../kit/servers/ports.js';

const ports = new PortAllocator();
let h: Harness;
let port: number;
let active: ControllerProcess;

const ENV = { MPP_TOPOLOGY: 'table,probe', MPP_PROBE_INTERVAL: '200ms' };

beforeAll(async () => {
  port = await ports.allocate();
  h = await Harness.start({ template: inject('template'), groups: 2 });
  active = await h.startController({ ...ENV, MPP_HTTP: String(port) });
});
afterAll(async () => {
  await h.stop();
  await ports.releaseAll();
});

async function scrape(at = port): Promise<Map<string, number>> {
  const { status, body } = await ask(at, '/metrics');
  expect(status).toBe(200);
  return samples(body);
}

/** Scrapes until a sample has this value: what is read of the cluster is shared for a second. */
async function until(sample: string, value: number, at = port): Promise<Map<string, number>> {
  return waitFor(`${sample} to be ${value}`, async () => {
    const seen = await scrape(at);
    return seen.get(sample) === value && seen;
  });
}

const statusAt = async (at: number, path: string): Promise<number> =>
  ask(at, path).then(
    ({ status }) => status,
    () => 0,
  );

describe('metrics of a controller', () => {
  it('show the active controller, and each set of labels from 0 on', async () => {
    const seen = await until('mpp_group_members{groupid="1",role="primary",state="up"}', 1);
    expect(seen.get('mpp_controller_active')).toBe(1);
    expect(seen.get('mpp_controller_state{state="active"}')).toBe(1);
    expect(seen.get('mpp_controller_state{state="standby"}')).toBe(0);
    expect(seen.get('mpp_database_up')).toBe(1);
    expect(seen.get('mpp_leadership_changes_total{reason="gained"}')).toBe(1);
    expect(seen.get('mpp_leadership_changes_total{reason="lost"}')).toBe(0);
    expect(seen.get('mpp_group_held{groupid="1"}')).toBe(0);
    expect(seen.get('mpp_switchovers_total{groupid="2",kind="planned"}')).toBe(0);
    expect(seen.get('mpp_group_metadata_synced{groupid="1"}')).toBe(1);
    expect(seen.get('mpp_topology_source_up{source="probe"}')).toBe(1);
    expect(seen.get('mpp_probe_duration_seconds_count{result="answered"}')).toBeGreaterThan(0);
    expect(seen.get('mpp_database_connections{purpose="control"}')).toBe(1);
    expect(seen.get('mpp_database_connections{purpose="listen"}')).toBe(1);
    expect(
      [...seen.keys()].filter((name) => /(cluster|instance|job|database)="/.test(name)),
    ).toEqual([]);
  });

  it('show a hold and who waits for it, and then the switchover', async () => {
    const group = h.cluster.group(1);
    const [old, next] = [group.primary, group.standby];
    const task = await h.request({ event: 'before_demote', groupid: 1, node: old });
    expect(task.status).toBe('holding');
    const writer = await h.cluster.coordinator.connect();
    const write = writer.query(
      `UPDATE items SET id = id WHERE id = (
         SELECT i FROM generate_series(1, 1000) AS i
         JOIN pg_dist_placement AS p ON p.shardid = get_shard_id_for_distribution_column('items', i)
         WHERE p.groupid = 1 LIMIT 1)`,
    );
    write.catch(() => undefined);
    const held = await until('mpp_group_held{groupid="1"}', 1);
    expect(held.get('mpp_group_held{groupid="2"}')).toBe(0);
    expect(held.get('mpp_hold_open_duration_seconds_count{pause="writes"}')).toBe(1);
    const deadline = held.get('mpp_hold_deadline_timestamp_seconds{groupid="1"}') ?? 0;
    const { rows } = await h.db.query<{ deadline: number }>(
      'SELECT extract(epoch FROM deadline)::float8 AS deadline FROM mpp_tasks WHERE id = $1',
      [task.id],
    );
    expect(deadline).toBeCloseTo(rows[0]?.deadline ?? -1, 3);
    const waiting = await until('mpp_hold_waiting_sessions{groupid="1"}', 1);
    expect(waiting.get('mpp_hold_max_wait_seconds{groupid="1"}')).toBeGreaterThan(0);
    await group.switchover();
    const done = await h.request({ event: 'after_promote', groupid: 1, node: next });
    expect(done.status).toBe('done');
    await write.catch(() => undefined);
    await writer.end();
    const seen = await until('mpp_group_held{groupid="1"}', 0);
    expect(seen.has('mpp_hold_deadline_timestamp_seconds{groupid="1"}')).toBe(false);
    expect(seen.get('mpp_switchovers_total{groupid="1",kind="planned"}')).toBe(1);
    expect(seen.get('mpp_switchovers_total{groupid="1",kind="failover"}')).toBe(0);
    for (const step of ['open', 'promote', 'change', 'total']) {
      const name = `mpp_switchover_duration_seconds_count{kind="planned",step="${step}"}`;
      expect(seen.get(name), step).toBe(1);
    }
    const ended = 'mpp_hold_duration_seconds_count{kind="planned",outcome="committed"}';
    expect(seen.get(ended)).toBe(1);
    expect(seen.get('mpp_last_switchover_timestamp_seconds{groupid="1"}')).toBeGreaterThan(0);
    expect(seen.has('mpp_last_switchover_timestamp_seconds{groupid="2"}')).toBe(false);
    const counted = await until(
      'mpp_tasks_total{event="after_promote",status="done",source="client"}',
      1,
    );
    const demoted = 'mpp_tasks_total{event="before_demote",status="done",source="client"}';
    expect(counted.get(demoted)).toBe(1);
  });

  it('count the tasks that operators end, and a hold that one releases', async () => {
    const node = h.cluster.group(2).primary;
    await h.request({ event: 'before_demote', groupid: 2, node });
    await h.db.query('SELECT mpp_release(2)');
    await until('mpp_hold_duration_seconds_count{kind="planned",outcome="released"}', 1);
    await until('mpp_tasks_total{event="before_demote",status="rolled_back",source="client"}', 1);
  });

  it('have what status --json prints beside them', async () => {
    const { status, headers, body } = await ask(port, '/status.json');
    expect(status).toBe(200);
    expect(headers['content-type']).toBe('application/json; charset=utf-8');
    const { host, port: at } = h.cluster.coordinator;
    const url = `postgres://postgres@${host}:${at}/postgres`;
    const printed = await runCli(['status', '--json'], { DATABASE_URL: url });
    type Shape = Record<string, unknown>;
    const [shown, said] = [body, printed.stdout].map((text) => JSON.parse(text) as Shape);
    expect(Object.keys(shown ?? {})).toEqual(Object.keys(said ?? {}));
    // What the sources say of a node has an age, which goes on meanwhile.
    const rows = (one: Shape | undefined): unknown =>
      (one?.['nodes'] as Shape[]).map((node) => ({ ...node, seen: [] }));
    expect(rows(shown)).toEqual(rows(said));
  });
});

describe('the routes for health', () => {
  it('follow a takeover: /active moves, and a standby shows no state of the cluster', async () => {
    const other = await ports.allocate();
    const standby = h.spawnController({ ...ENV, MPP_HTTP: `127.0.0.1:${other}` });
    await waitFor('it to be ready', async () => (await statusAt(other, '/readyz')) === 200);
    const seen = await scrape(other);
    expect(seen.get('mpp_controller_active')).toBe(0);
    expect(seen.get('mpp_controller_state{state="standby"}')).toBe(1);
    expect(seen.get('mpp_database_up')).toBe(1);
    expect([...seen.keys()].some((name) => name.startsWith('mpp_group_'))).toBe(false);
    expect(await statusAt(other, '/active')).toBe(503);
    expect(await statusAt(other, '/status.json')).toBe(200);
    expect(await statusAt(port, '/active')).toBe(200);
    await active.end('SIGKILL');
    await standby.active();
    expect(await statusAt(other, '/active')).toBe(200);
    const taken = await until('mpp_group_held{groupid="1"}', 0, other);
    expect(taken.get('mpp_controller_active')).toBe(1);
    expect(taken.get('mpp_leadership_changes_total{reason="gained"}')).toBe(1);
    // What the other one has done is not counted here.
    expect(taken.get('mpp_switchovers_total{groupid="1",kind="planned"}')).toBe(0);
    expect(taken.get('mpp_last_switchover_timestamp_seconds{groupid="1"}')).toBeGreaterThan(0);
    [active, port] = [standby, other];
  });

  it('say that the database is down, and /metrics still answers', async () => {
    await h.cluster.coordinator.stop('immediate');
    await waitFor('it not to be ready', async () => (await statusAt(port, '/readyz')) === 503);
    await waitFor('it to lead no more', async () => (await statusAt(port, '/active')) === 503);
    expect(await statusAt(port, '/livez')).toBe(200);
    expect(await statusAt(port, '/status.json')).toBe(503);
    const seen = await scrape();
    expect(seen.get('mpp_database_up')).toBe(0);
    expect(seen.get('mpp_leadership_changes_total{reason="lost"}')).toBe(1);
    expect([...seen.keys()].some((name) => name.startsWith('mpp_group_'))).toBe(false);
    await h.cluster.coordinator.start();
    await h.reconnect();
    await waitFor('it to lead again', async () => (await statusAt(port, '/active')) === 200);
    await until('mpp_database_up', 1);
  });

  it('do not keep a stop waiting for a scrape that is kept open', async () => {
    expect((await ask(port, '/livez')).status).toBe(200);
    const { headers } = await fetch(`http://127.0.0.1:${port}/livez`);
    expect(headers.get('connection')).toBe('keep-alive');
    expect(await active.end('SIGTERM')).toBe(0);
    expect(await statusAt(port, '/livez')).toBe(0);
  });
});

it('a port that another program has is an error at the start, with exit code 2', async () => {
  const taken = await ports.allocate();
  // The allocator listens on the next one itself.
  const { exitCode, stderr } = await runCli(['run', '--http', String(taken + 1)]);
  expect(exitCode).toBe(2);
  expect(stderr).toContain(
    `cannot listen at 127.0.0.1:${taken + 1}: another program listens there`,
  );
});
