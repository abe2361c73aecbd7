import { afterAll, afterEach, beforeAll, describe, expect, inject, it } from 'vitest';
import { runCli } from '../kit/cli.js';
import type { ControllerProcess } from '../kit/controller-process.js';
import { sessionsOf, terminateSessions } from '../kit/faults/sessions.js';
import { Harness } from '../kit/harness.js';
import { waitFor } from '../kit/servers/index.js';

const TRY_LOCK = 'FUNCTION pg_catalog.pg_try_advisory_lock(integer, integer)';

describe('the control session', () => {
  let h: Harness;
  let url: string;
  let controller: ControllerProcess;

  beforeAll(async () => {
    h = await Harness.start({ template: inject('template'), standbys: false });
    const { address } = h.cluster.coordinator;
    await h.db.query('CREATE ROLE controller LOGIN');
    await h.db.query('GRANT mpp_controller TO controller');
    const bootstrap = await runCli(['bootstrap'], {
      DATABASE_URL: `postgresql://postgres@${address}/postgres`,
    });
    expect(bootstrap).toMatchObject({ exitCode: 0, stderr: '' });
    url = `postgresql://controller@${address}/postgres`;
  });
  afterAll(async () => h.stop());
  afterEach(async () => controller.end('SIGKILL'));

  it('is closed each time the lead cannot be asked for: none is left to get it later', async () => {
    // The server would end a forgotten session after three heartbeats.
    controller = await h.startController({ DATABASE_URL: url, MPP_HEARTBEAT: '10s' });
    await h.db.query(`REVOKE EXECUTE ON ${TRY_LOCK} FROM PUBLIC`);
    try {
      await terminateSessions(h.db, 'control');
      await controller.logged('that it gives up', ({ msg }) =>
        msg.startsWith('the leadership is lost'),
      );
      expect((await sessionsOf(h.db, 'control')).length).toBeLessThanOrEqual(1);
    } finally {
      await h.db.query(`GRANT EXECUTE ON ${TRY_LOCK} TO PUBLIC`);
    }
    await waitFor('it to lead again', async () => (await lead())?.state === 'active');
    expect(await sessionsOf(h.db, 'control')).toHaveLength(1);
    expect(controller.exitCode).toBeNull();
  });

  it('is not ended while it waits for the answer of a silent node, however short the heartbeat', async () => {
    const { primary } = h.cluster.group(1);
    // Asked who is the coordinator before this one leads, which takes 2 s; the heartbeats make it 1 s.
    await primary.freeze();
    try {
      controller = await h.startController({ DATABASE_URL: url, MPP_HEARTBEAT: '100ms' });
      expect(await lead()).toMatchObject({ state: 'active' });
    } finally {
      await primary.thaw();
    }
  });

  it('goes on while the deletion of old tasks takes longer than the server lets it be idle', async () => {
    controller = await h.startController({ DATABASE_URL: url, MPP_RETENTION: '3s' });
    const id = await h.report({
      event: 'before_demote',
      groupid: 1,
      node: { host: 'nobody', port: 1 },
    });
    expect((await h.ended(id)).status).toBe('discarded');
    const before = await lead();
    await h.db.query('BEGIN');
    const locked = await h.db.query('SELECT FROM mpp_task_log WHERE task_id = $1 FOR UPDATE', [id]);
    expect(locked.rowCount).toBeGreaterThan(0);
    await waitFor('the deletion to wait', async () => (await h.db.query(BLOCKED)).rowCount === 1);
    const { rows } = await h.db.query<{ at: Date }>('SELECT clock_timestamp() AS at');
    const since = rows[0]?.at.getTime() ?? 0;
    await waitFor('heartbeats for longer than three of them', async () => {
      const now = await lead();
      return now !== undefined && now.heartbeat.getTime() > since + 3 * 500 + 1_000;
    });
    expect((await h.db.query(BLOCKED)).rowCount).toBe(1);
    expect((await lead())?.session).toBe(before?.session);
    await h.db.query('ROLLBACK');
    await waitFor('the task to be deleted', async () => {
      return (await h.db.query('SELECT FROM mpp_tasks WHERE id = $1', [id])).rowCount === 0;
    });
  });

  interface Lead {
    readonly state: string;
    readonly session: number;
    readonly heartbeat: Date;
  }

  /** What the server knows of the controller that runs now. */
  async function lead(): Promise<Lead | undefined> {
    const { rows } = await h.db.query<Lead>(
      `SELECT s.state, c.backend_pid AS session, c.heartbeat_at AS heartbeat
       FROM mpp_status AS s JOIN mpp_controllers AS c ON c.id = s.controller
       WHERE c.pid = $1`,
      [controller.pid],
    );
    return rows[0];
  }
});

const BLOCKED = `
  SELECT FROM pg_stat_activity
  WHERE application_name = 'mpp-controller queue' AND pg_backend_pid() = ANY (pg_blocking_pids(pid))`;
