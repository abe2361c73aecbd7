import { afterAll, afterEach, beforeAll, describe, expect, inject, it } from 'vitest';
import { runCli } from '../kit/cli.js';
import { subjectOf } from '../kit/faults/subject.js';
import { Harness } from '../kit/harness.js';
import { waitFor } from '../kit/servers/index.js';

const TASKS = "SELECT id FROM mpp_tasks WHERE source <> 'client' AND finished_at IS NULL";
const SOON = { MPP_HEARTBEAT: '200ms', MPP_PROBE_INTERVAL: '200ms' };

describe('a group in maintenance', () => {
  let h: Harness;
  let url: string;

  beforeAll(async () => {
    h = await Harness.start({ template: inject('template'), standbys: false });
    url = `postgresql://postgres@${h.cluster.coordinator.address}/postgres`;
  });
  afterEach(async () => {
    await h.db.query(
      'SELECT mpp_end_maintenance(g) FROM unnest(ARRAY[NULL, 1, 2]::integer[]) AS g',
    );
  });
  afterAll(async () => h.stop());

  /** The comparison runs at each heartbeat, before the next one is written. */
  async function heartbeats(count: number): Promise<void> {
    const { rows } = await h.db.query<{ now: Date }>('SELECT clock_timestamp() AS now');
    await waitFor(`${count} heartbeats`, async () => {
      const { rowCount } = await h.db.query(
        "SELECT FROM mpp_controllers WHERE heartbeat_at > $1::timestamptz + $2 * interval '200 ms'",
        [rows[0]?.now, count],
      );
      return rowCount === 1;
    });
  }

  it('gets no task of the comparison, though a report counts, until it ends', async () => {
    const { node, next } = await subjectOf(h, 1);
    // The probe would say that both names are one server.
    const controller = await h.startController({ ...SOON, MPP_TOPOLOGY: 'table' });
    await h.db.query("SELECT mpp_start_maintenance(1, '1 hour')");
    await h.db.query("SELECT mpp_report(1, $1, $2, 'primary')", [next.host, next.port]);
    await heartbeats(4);
    expect((await h.db.query(TASKS)).rowCount).toBe(0);
    const { rows } = await h.db.query<{ problem: string }>(
      "SELECT problem FROM mpp_topology WHERE groupid = 1 AND source = 'table'",
    );
    expect(rows[0]?.problem).toBe('the group is in maintenance: no task is made for it');
    const back = await h.request({ event: 'after_promote', groupid: 1, node });
    expect(back).toMatchObject({ status: 'done', reason: 'pg_dist_node says so already' });
    // What was reported before a confirmed report counts less than that.
    for (const role of ['replica', 'primary'])
      await h.db.query('SELECT mpp_report(1, $1, $2, $3)', [next.host, next.port, role]);
    await h.db.query('SELECT mpp_end_maintenance(1)');
    await waitFor('the task of the comparison', async () => {
      const { rowCount } = await h.db.query(
        "SELECT FROM mpp_tasks WHERE groupid = 1 AND source = 'sync' AND nodename = $1",
        [next.host],
      );
      return rowCount === 1;
    });
    await controller.end();
  });

  it('is not suspected while its primary is down, and is once all groups have left maintenance', async () => {
    const { primary } = h.cluster.group(2);
    const controller = await h.startController({
      ...SOON,
      MPP_TOPOLOGY: 'table,probe',
      MPP_PROBE_SUSPECT: 'on',
    });
    await h.db.query('SELECT mpp_start_maintenance()');
    // The probe has asked it by then, and knows that it was up.
    await heartbeats(4);
    await primary.stop('immediate');
    try {
      await waitFor('the probe to see that it is down', async () => {
        const { rowCount } = await h.db.query(
          "SELECT FROM mpp_members WHERE groupid = 2 AND source = 'probe' AND NOT mpp_is_up(state)",
        );
        return rowCount === 1;
      });
      await heartbeats(4);
      expect((await h.db.query(TASKS)).rowCount).toBe(0);
      await h.db.query('SELECT mpp_end_maintenance()');
      await waitFor('the suspect', async () => {
        const { rowCount } = await h.db.query(
          "SELECT FROM mpp_tasks WHERE groupid = 2 AND event = 'suspect' AND source = 'probe'",
        );
        return rowCount !== 0;
      });
    } finally {
      await primary.start();
      await controller.end();
    }
  });

  it('ends by itself, and a second call moves its end', async () => {
    await h.db.query("SELECT mpp_start_maintenance(2, '1 hour', 'new disks')");
    await h.db.query("SELECT mpp_start_maintenance(2, '1 ms')");
    await waitFor('its end', async () => {
      const { rows } = await h.db.query<{ now: boolean }>('SELECT mpp_in_maintenance(2) AS now');
      return rows[0]?.now === false;
    });
    await expect(h.db.query("SELECT mpp_start_maintenance(2, '31 days')")).rejects.toMatchObject({
      code: '22023',
    });
    await expect(h.db.query('SELECT mpp_start_maintenance(-1)')).rejects.toMatchObject({
      code: '22023',
    });
  });

  it('is started, shown and ended by the command, by a member of mpp_operator and no other', async () => {
    await h.db.query('CREATE ROLE operator_2 LOGIN; GRANT mpp_operator TO operator_2');
    await h.db.query('CREATE ROLE client_2 LOGIN; GRANT mpp_client TO client_2');
    const as = (role: string) => ({ DATABASE_URL: url.replace('postgres@', `${role}@`) });
    const on = ['maintenance', 'on', '--group', '2', '--for', '10min', '--reason', 'new disks'];
    const started = await runCli(on, as('operator_2'));
    expect(started).toMatchObject({ exitCode: 0, stderr: '' });
    expect(started.stdout).toMatch(/^group 2: maintenance for 10min, until \d{4}-/);
    const shown = await runCli(['maintenance'], as('operator_2'));
    expect(shown.stdout).toMatch(/^GROUP +UNTIL .*\n2 .* operator_2 +new disks\n$/);
    const json = await runCli(['maintenance', 'show', '--json'], as('operator_2'));
    expect(JSON.parse(json.stdout)).toMatchObject([
      { groupid: 2, startedBy: 'operator_2', reason: 'new disks' },
    ]);
    expect(await runCli(on, as('client_2'))).toMatchObject({ exitCode: 2, stdout: '' });
    const off = await runCli(['maintenance', 'off', '--group', '2'], as('operator_2'));
    expect(off.stdout).toBe('group 2: maintenance is ended\n');
    const again = await runCli(['maintenance', 'off', '--group', '2'], as('operator_2'));
    expect(again.stdout).toBe('group 2: there was no maintenance\n');
    const wrong = await runCli(['maintenance', 'off', '--for', '1h'], as('operator_2'));
    expect(wrong).toMatchObject({ exitCode: 2 });
    expect(wrong.stderr).toContain('--for cannot be used with off; leave it out');
  });
});
