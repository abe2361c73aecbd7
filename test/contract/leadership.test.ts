import type { Client } from 'pg';
import { afterAll, beforeAll, beforeEach, describe, expect, inject, it } from 'vitest';
import { Leadership, type Attempt } from '../../src/controller/leadership.js';
import { ContractServer, SCHEMAS, sqlstateOf, type ContractDatabase } from '../kit/contract.js';
import { waitFor } from '../kit/servers/index.js';

let server: ContractServer;

beforeAll(async () => {
  server = await ContractServer.start(inject('template'));
});
afterAll(async () => server.stop());

describe.each(SCHEMAS)('the leadership in schema $schema', ({ schema, database }) => {
  let contract: ContractDatabase;
  let controller: string;
  let stranger: string;

  beforeAll(async () => {
    contract = await server.database(`leadership_${database}`, schema);
    controller = `controller_${database}`;
    stranger = `stranger_${database}`;
    await contract.db.query(`CREATE ROLE ${controller} LOGIN IN ROLE mpp_controller`);
    await contract.db.query(`CREATE ROLE ${stranger} LOGIN`);
  });
  beforeEach(async () => {
    await contract.db.query(
      'UPDATE mpp_leadership SET controller = NULL, backend_pid = NULL, key = NULL',
    );
  });

  interface Candidate {
    readonly session: Client;
    readonly leadership: Leadership;
    readonly pid: number;
  }

  async function candidate(id: string, user = controller): Promise<Candidate> {
    const session = await contract.session({ user, searchPath: 'pg_catalog, pg_temp' });
    const { rows } = await session.query<{ pid: number }>('SELECT pg_backend_pid() AS pid');
    return { session, leadership: new Leadership(session, id), pid: rows[0]?.pid ?? 0 };
  }

  const leaderPid = async (): Promise<number | null> => {
    const { rows } = await contract.db.query<{ pid: number | null }>(
      'SELECT mpp_leader_pid() AS pid',
    );
    return rows[0]?.pid ?? null;
  };

  const isOver = async ({ pid }: Candidate): Promise<void> => {
    await waitFor('the session to be gone', async () => {
      const found = await contract.db.query('SELECT FROM pg_stat_activity WHERE pid = $1', [pid]);
      return found.rowCount === 0;
    });
  };

  it('goes to exactly one of many that try at the same moment, again and again', async () => {
    let candidates = await Promise.all(
      Array.from({ length: 16 }, (_, index) => candidate(`c${index}`)),
    );
    for (let round = 0; round < 12; round += 1) {
      const attempts = await Promise.all(candidates.map(({ leadership }) => leadership.tryLead()));
      const leaders = candidates.filter((_, index) => attempts[index]?.leads);
      // The row may have been locked by a loser; then one leads at the next attempt.
      if (leaders.length === 0) continue;
      expect(leaders).toHaveLength(1);
      const [leader] = leaders;
      if (leader === undefined) throw new Error('a leader without a session');
      expect(await leaderPid()).toBe(leader.pid);
      await leader.session.end();
      await isOver(leader);
      expect(await leaderPid()).toBeNull();
      candidates = candidates.filter((one) => one !== leader);
    }
    expect(candidates.length).toBeLessThan(16 - 6);
    await Promise.all(candidates.map(({ session }) => session.end()));
  });

  it('is kept by no role without rights, whatever advisory locks it takes', async () => {
    const hostile = await contract.session({ user: stranger, searchPath: 'pg_catalog' });
    await hostile.query('SELECT pg_advisory_lock(1297109066, 0), pg_advisory_lock(1297109064, 1)');
    const first = await candidate('first');
    expect(await first.leadership.tryLead()).toEqual({ leads: true });

    // It sees the key once it is taken, waits for it, and gets it when the leader dies.
    const { rows } = await contract.db.query<{ class: number; key: number }>(
      'SELECT mpp_leader_lock_class() AS class, key FROM mpp_leadership',
    );
    const waiting = hostile.query('SELECT pg_advisory_lock($1, $2)', [
      rows[0]?.class,
      rows[0]?.key,
    ]);
    await first.session.end();
    await waiting;
    expect(await leaderPid()).toBeNull();
    const second = await candidate('second');
    await waitFor('the second to lead', async () => (await second.leadership.tryLead()).leads);
    expect(await leaderPid()).toBe(second.pid);
    await Promise.all([second.session.end(), hostile.end()]);
  });

  it('is not that of a session whose role is no member of mpp_controller, recorded or not', async () => {
    const hostile = await contract.session({ user: stranger, searchPath: 'pg_catalog' });
    const { rows } = await hostile.query<{ pid: number }>('SELECT pg_backend_pid() AS pid');
    const { rows: classes } = await contract.db.query<{ class: number }>(
      'SELECT mpp_leader_lock_class() AS class',
    );
    await hostile.query('SELECT pg_advisory_lock($1, 7)', [classes[0]?.class]);
    // As if the server had given the pid of a dead leader to this session.
    await contract.db.query(
      "UPDATE mpp_leadership SET controller = 'x', key = 7, backend_pid = $1",
      [rows[0]?.pid],
    );
    expect(await leaderPid()).toBeNull();
    expect(
      await sqlstateOf(hostile, `UPDATE ${contract.quotedSchema}.mpp_leadership SET key = 1`),
    ).toBe('42501');
    await hostile.end();
  });

  it('is not that of a session that has the key in shared mode', async () => {
    const shared = await contract.session();
    await shared.query('SELECT pg_advisory_lock_shared(mpp_leader_lock_class(), 8)');
    await shared.query(
      "UPDATE mpp_leadership SET controller = 'x', key = 8, backend_pid = pg_backend_pid()",
    );
    expect(await leaderPid()).toBeNull();
    await shared.end();
  });

  it('is not waited for while another transaction has its row locked, whose session is named', async () => {
    const operator = await contract.session();
    const { rows } = await operator.query<{ pid: number }>('SELECT pg_backend_pid() AS pid');
    await operator.query('BEGIN; SELECT FROM mpp_leadership FOR UPDATE');
    const one = await candidate('one');
    const attempt = await one.leadership.tryLead();
    expect(attempt).toMatchObject({
      leads: false,
      reason: expect.stringContaining(`pid ${rows[0]?.pid} (role postgres`) as string,
    });
    await operator.query('ROLLBACK');
    expect(await one.leadership.tryLead()).toEqual({ leads: true });
    await Promise.all([operator.end(), one.session.end()]);
  });

  it('stays with a leader whose row another transaction has locked', async () => {
    const one = await candidate('one');
    expect(await one.leadership.tryLead()).toEqual({ leads: true });
    const operator = await contract.session();
    await operator.query('BEGIN; SELECT FROM mpp_leadership FOR UPDATE');
    expect(await one.leadership.lostBecause()).toBeUndefined();
    const other = await candidate('other');
    expect(await other.leadership.tryLead()).toEqual({ leads: false, reason: undefined });
    await Promise.all([operator.end(), one.session.end(), other.session.end()]);
  });

  it('waits for a controller of a version before the table, which mpp_status names', async () => {
    const older = await contract.session({ user: controller });
    const { rows } = await older.query<{ pid: number }>(
      "SELECT pg_backend_pid() AS pid, set_config('application_name', 'mpp-controller control', false)",
    );
    await older.query('SELECT pg_advisory_lock(1297109066, 0)');
    const newer = await candidate('newer');
    const blocked: Attempt = await newer.leadership.tryLead();
    const session = `pid ${rows[0]?.pid} (role ${controller}, application mpp-controller control)`;
    expect(blocked).toMatchObject({
      leads: false,
      reason: expect.stringContaining(session) as string,
    });
    expect(await leaderPid()).toBe(rows[0]?.pid);
    await newer.session.query(
      "SELECT set_config('application_name', 'mpp-controller control', false)",
    );
    await contract.db.query(
      `INSERT INTO mpp_controllers (id, host, pid, backend_pid, version) VALUES ('newer', 'h', 1, $1, '0')`,
      [newer.pid],
    );
    const status = await contract.db.query('SELECT state, waits_for FROM mpp_status');
    expect(status.rows).toEqual([
      {
        state: 'standby',
        waits_for: `a lock of an older version of mpp-controller: pid ${rows[0]?.pid}, role ${controller}, application mpp-controller control`,
      },
    ]);
    await older.end();
    await waitFor('the newer one to lead', async () => (await newer.leadership.tryLead()).leads);
    const active = await contract.db.query('SELECT state, waits_for FROM mpp_status');
    expect(active.rows).toEqual([{ state: 'active', waits_for: null }]);
    await contract.db.query('DELETE FROM mpp_controllers');
    await newer.session.end();
  });

  it('is kept for a controller that has lost its control session alone, and taken from a dead one', async () => {
    const former = await candidate('former');
    expect(await former.leadership.tryLead()).toEqual({ leads: true });
    const queue = await contract.session({ user: controller });
    await queue.query("SELECT set_config('application_name', 'mpp-controller queue', false)");
    const standby = await candidate('standby');
    await former.session.end();
    await isOver(former);
    expect(await standby.leadership.tryLead()).toMatchObject({ leads: false, reason: /lost/ });
    const again = await candidate('former');
    expect(await again.leadership.regain()).toEqual({ leads: true });
    expect(await standby.leadership.tryLead()).toEqual({ leads: false, reason: undefined });

    await Promise.all([again.session.end(), queue.end()]);
    await isOver(again);
    await waitFor('the standby to lead', async () => (await standby.leadership.tryLead()).leads);
    await standby.session.end();
  });

  it('is not kept for long for one whose other sessions stay, and not at all for one that gave it back', async () => {
    const queue = await contract.session({ user: controller });
    await queue.query("SELECT set_config('application_name', 'mpp-controller queue', false)");
    const first = await candidate('first');
    expect(await first.leadership.tryLead()).toEqual({ leads: true });
    await first.leadership.resign();
    const second = await candidate('second');
    expect(await second.leadership.tryLead()).toEqual({ leads: true });
    await second.session.end();
    await isOver(second);
    const third = await candidate('third');
    await waitFor('the third to lead', async () => (await third.leadership.tryLead()).leads);
    await Promise.all([third.session.end(), first.session.end(), queue.end()]);
  });

  it('is taken back at once from an own session that the server has not seen end', async () => {
    const first = await candidate('c');
    expect(await first.leadership.tryLead()).toEqual({ leads: true });
    const second = await candidate('c');
    expect(await second.leadership.regain()).toEqual({ leads: true });
    expect(await first.leadership.lostBecause()).toContain('mpp_leadership names c');
    expect(await leaderPid()).toBe(second.pid);
    await Promise.all([first.session.end(), second.session.end()]);
  });

  it('is given up by a leader whose role is no member of mpp_controller any more', async () => {
    const one = await candidate('one');
    expect(await one.leadership.tryLead()).toEqual({ leads: true });
    await contract.db.query(`REVOKE mpp_controller FROM ${controller}`);
    await contract.db.query(`GRANT USAGE ON SCHEMA ${contract.quotedSchema} TO ${controller}`);
    expect(await leaderPid()).toBeNull();
    await contract.db.query(`GRANT mpp_controller TO ${controller}`);
    expect(await leaderPid()).toBe(one.pid);
    await one.session.end();
  });

  it('has its row again where that was deleted', async () => {
    await contract.db.query('DELETE FROM mpp_leadership');
    const one = await candidate('one');
    await waitFor('it to lead', async () => (await one.leadership.tryLead()).leads);
    await one.session.end();
  });
});
