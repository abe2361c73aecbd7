import { afterAll, afterEach, beforeAll, describe, expect, inject, it } from 'vitest';
import { openSession } from '../../src/postgres/session.js';
import { runCli } from '../kit/cli.js';
import type { ControllerProcess } from '../kit/controller-process.js';
import { sessionsOf, terminateSessions } from '../kit/faults/sessions.js';
import { Harness } from '../kit/harness.js';
import { waitFor } from '../kit/servers/index.js';

let h: Harness;
let controllers: ControllerProcess[] = [];

beforeAll(async () => {
  h = await Harness.start({ template: inject('template'), groups: 2, standbys: false });
});
afterAll(async () => h.stop());
afterEach(async () => {
  await Promise.all(controllers.map((one) => one.end('SIGTERM')));
  controllers = [];
});

async function start(env: Readonly<Record<string, string>> = {}): Promise<ControllerProcess> {
  const controller = await h.startController(env);
  controllers.push(controller);
  return controller;
}

const hold = async (groupid = 1, timeout = '2min') => {
  const task = await h.request({
    event: 'before_demote',
    groupid,
    node: h.cluster.group(groupid).primary,
    timeout,
  });
  expect(task.status).toBe('holding');
  return task;
};

const ownPid = async (): Promise<number> => {
  const { rows } = await h.db.query<{ pid: number }>('SELECT pg_backend_pid() AS pid');
  return rows[0]?.pid ?? 0;
};

const leader = async (): Promise<{ pid: number | null; controller: string | null }> => {
  const { rows } = await h.db.query<{ pid: number | null; controller: string | null }>(
    'SELECT mpp_leader_pid() AS pid, controller FROM mpp_leadership',
  );
  return rows[0] ?? { pid: null, controller: null };
};

describe('the active controller', () => {
  it('gets the leadership back before a standby each time its control session is ended, and keeps its hold', async () => {
    const active = await start();
    const standby = h.spawnController();
    controllers.push(standby);
    await standby.logged('that it stands by', ({ msg }) => msg.includes('stands by'));
    const task = await hold();
    for (let round = 1; round <= 12; round += 1) {
      const { pid } = await leader();
      await h.db.query('SELECT pg_terminate_backend($1::integer, 5000)', [pid]);
      await waitFor('a leader on another session', async () => {
        const now = await leader();
        return now.pid !== null && now.pid !== pid;
      });
      expect((await leader()).controller).toContain(`:${active.pid}:`);
    }
    expect(standby.log.some(({ msg }) => msg.startsWith('active,'))).toBe(false);
    expect(await h.task(task.id)).toMatchObject({ status: 'holding', attempt: task.attempt });
    expect(await h.holds()).toBe(1);
  });

  it('is replaced at once when it gives the leadership back', async () => {
    const active = await start();
    const standby = h.spawnController();
    controllers.push(standby);
    await standby.logged('that it stands by', ({ msg }) => msg.includes('stands by'));
    expect(await active.end('SIGTERM')).toBe(0);
    await standby.active();
  });

  it('keeps the leadership and its hold while a transaction has its row in mpp_controllers locked', async () => {
    const active = await start();
    const task = await hold();
    const before = await leader();
    await h.db.query('BEGIN');
    await h.db.query('SELECT mpp_rebuild_cache()');
    const pid = await ownPid();
    const isNamed = ({ msg, level }: { msg: string; level?: unknown }): boolean =>
      level === 'warn' && msg.includes(`locked by pid ${pid} (role postgres`);
    await active.logged('who has locked its row', isNamed);
    const other = await h.cluster.coordinator.connect();
    // Longer than the server lets a control session be idle that has not been used.
    const { rows } = await other.query<{ start: Date }>('SELECT clock_timestamp() AS start');
    await waitFor('several heartbeats to pass', async () => {
      const seen = await other.query<{ passed: boolean }>(
        "SELECT clock_timestamp() > $1::timestamptz + interval '3 seconds' AS passed",
        [rows[0]?.start],
      );
      return seen.rows[0]?.passed;
    });
    const status = await other.query("SELECT state FROM mpp_status WHERE state = 'active'");
    expect(status.rowCount).toBe(1);
    await other.end();
    await h.db.query('ROLLBACK');
    expect(await leader()).toEqual(before);
    expect(await h.task(task.id)).toMatchObject({ status: 'holding', attempt: task.attempt });
    expect(active.log.filter(isNamed)).toHaveLength(1);
  });

  it.each([
    ['mpp_controllers', 'the heartbeat could not be written'],
    ['mpp_leadership', 'canceling statement due to lock timeout'],
  ])('keeps them while a transaction has the whole table %s locked', async (table, text) => {
    const active = await start();
    const before = await leader();
    await h.db.query(`BEGIN; LOCK TABLE ${table}`);
    await active.logged('why', ({ msg }) => msg.includes(text) && msg.includes('stays active'));
    await h.db.query('ROLLBACK');
    expect(await leader()).toEqual(before);
    expect(active.log.some(({ msg }) => msg.includes('leadership is lost'))).toBe(false);
  });

  it('becomes active although a role without rights has the leader lock of older versions', async () => {
    await h.db.query('CREATE ROLE hostile LOGIN');
    const { host, port } = h.cluster.coordinator;
    const hostile = await openSession({ host, port, user: 'hostile', database: 'postgres' }, 'x');
    await hostile.query('SELECT pg_advisory_lock(1297109066, 0)');
    const active = await start();
    expect(active.exitCode).toBeNull();
    await hostile.end();
  });

  it('writes each key once in each line of its log', async () => {
    const active = await start({ MPP_TOPOLOGY: 'table,probe' });
    await hold(2, '2s');
    await active.logged('something of the probe or the queue', (line) => 'task' in line);
    for (const line of active.lines) {
      const keys = [...line.matchAll(/[{,]"(\w+)":/g)].map(([, key]) => key);
      const top = keys.filter((key) => key === 'component');
      expect(top.length, line).toBeLessThanOrEqual(1);
    }
  });
});

describe('a controller with another MPP_SCHEMA in the same database', () => {
  it('is refused at its start, naming the schema and the session of the other one', async () => {
    const url = `postgresql://postgres@${h.cluster.coordinator.address}/postgres`;
    const env = { DATABASE_URL: url, MPP_SCHEMA: 'mpp_other' };
    expect((await runCli(['migrate'], env)).exitCode).toBe(0);
    await start();
    const { pid } = await leader();
    const refused = await runCli(['run'], env);
    expect(refused.exitCode).toBe(1);
    expect(refused.stderr).toContain(`pid ${pid} (role postgres`);
    expect(refused.stderr).toContain('in schema public of this database');
  });

  it('and one with the first are started at the same moment: one becomes active, the other ends', async () => {
    const both = [h.spawnController(), h.spawnController({ MPP_SCHEMA: 'mpp_other' })];
    controllers.push(...both);
    const isActive = (one: ControllerProcess): boolean =>
      one.log.some(({ msg }) => msg.startsWith('active,'));
    await waitFor('one to be active and one to have ended', () =>
      Promise.resolve(both.some(isActive) && both.some(({ exitCode }) => exitCode === 1)),
    );
    expect(both.filter(isActive)).toHaveLength(1);
  });
});

describe('the sessions of a controller', () => {
  it('are as few as a small server can spare, and hooks find room', async () => {
    const small = await Harness.start({
      template: inject('template'),
      groups: 1,
      standbys: false,
      settings: { max_connections: 20, superuser_reserved_connections: 3 },
    });
    try {
      const controller = await small.startController();
      const line = await controller.logged('its sessions', ({ msg }) =>
        msg.startsWith('opens at most 17 sessions'),
      );
      expect(line).toMatchObject({ level: 'warn', maxConnections: 20 });
      const held = await small.request({
        event: 'before_demote',
        groupid: 1,
        node: small.cluster.group(1).primary,
      });
      expect(held.status).toBe('holding');
    } finally {
      await small.stop();
    }
  });

  it('in use for groups are bounded: a group beyond them waits, and the coordinator serves others', async () => {
    const active = await start({ MPP_MAX_SESSIONS: '17' });
    await hold(1);
    const second = await h.report({
      event: 'before_demote',
      groupid: 2,
      node: h.cluster.group(2).primary,
      timeout: '30s',
    });
    await waitFor('the second to have been tried', async () => (await h.task(second)).attempt > 0);
    expect((await sessionsOf(h.db, 'group')).length).toBe(1);
    expect(active.exitCode).toBeNull();
    expect(await terminateSessions(h.db, 'listen')).toBe(1);
  });
});
