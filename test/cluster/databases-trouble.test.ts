import { afterAll, beforeAll, describe, expect, inject, it } from 'vitest';
import type { ControllerProcess } from '../kit/controller-process.js';
import { primaryAddress } from '../kit/faults/subject.js';
import { Harness, type ReportInput } from '../kit/harness.js';
import { waitFor } from '../kit/servers/index.js';

const MINE = 'postgres';

let first: Harness;
let second: Harness;
let controller: ControllerProcess;

async function activeIn(...databases: string[]): Promise<void> {
  for (const database of databases) {
    await controller.logged(
      `that it is active in ${database}`,
      (line) => line.msg.startsWith('active,') && line['database'] === database,
    );
  }
}

async function report(groupid: number): Promise<ReportInput> {
  return { event: 'before_demote', groupid, node: await primaryAddress(first, groupid) };
}

/** Holds a group, and releases it. @returns how long it took in milliseconds, and the reason. */
async function hold(groupid: number): Promise<{ ms: number; reason: string | null }> {
  const began = performance.now();
  const task = await first.request(await report(groupid));
  expect(task.status).toBe('holding');
  const ms = performance.now() - began;
  await first.db.query('SELECT mpp_release($1)', [groupid]);
  return { ms, reason: task.reason };
}

describe('a hold beside a database in trouble', () => {
  beforeAll(async () => {
    first = await Harness.start({ template: inject('template'), groups: 1, standbys: false });
    second = await first.addDatabase('shop');
    await first.db.query('CREATE DATABASE nocitus');
    // Times as text of this style are read wrongly, or not at all.
    await first.db.query("ALTER DATABASE shop SET datestyle = 'SQL, DMY'");
    await first.db.query("ALTER DATABASE postgres SET datestyle = 'German'");
    controller = first.spawnController({ MPP_DATABASES: `${MINE},shop,nocitus` });
    await activeIn(MINE, 'shop');
  });
  afterAll(() => first.stop());

  it('does not wait for a database without Citus, and names it', async () => {
    await controller.logged('that reports cannot be forwarded to nocitus', ({ msg }) =>
      msg.startsWith('reports cannot be forwarded to database nocitus'),
    );
    const { ms, reason } = await hold(1);
    expect(reason).toContain('in database nocitus: it has no tables of mpp-controller');
    // The wait for a database that has just lost its controller.
    expect(ms).toBeLessThan(2_000);
    const lines = controller.log.filter(
      ({ msg, database }) =>
        database === MINE && msg.startsWith('reports cannot be forwarded to database nocitus'),
    );
    expect(lines).toHaveLength(1);
  });

  it('does not wait for one whose table is locked, and names the session', async () => {
    const session = await first.cluster.coordinator.connect('test', 'shop');
    try {
      await session.query('BEGIN');
      await session.query('LOCK mpp_tasks');
      const { rows } = await session.query<{ pid: number }>('SELECT pg_backend_pid() AS pid');
      const { ms, reason } = await hold(1);
      expect(reason).toMatch(
        new RegExp(`in database shop: mpp_tasks is locked there by pid ${rows[0]?.pid ?? 0} `),
      );
      expect(ms).toBeLessThan(2_500);
    } finally {
      await session.end();
    }
    await waitFor('the report to be forwarded to shop', async () => {
      const { rowCount } = await first.db.query("SELECT FROM mpp_outbox WHERE database = 'shop'");
      return rowCount === 0;
    });
  });

  it('copies what a hook says of a member, whatever the style of dates is', async () => {
    await second.db.query("SELECT mpp_report(1, 'elsewhere', 5432, 'replica', 'stopped')");
    await waitFor('the copy', async () => {
      const { rowCount } = await first.db.query(
        `SELECT FROM mpp_members
         WHERE nodename = 'elsewhere' AND reported_at > clock_timestamp() - interval '1 min'`,
      );
      return rowCount === 1;
    });
    await second.db.query("SELECT mpp_report(1, 'elsewhere', 5432, 'replica', 'crashed')");
    await waitFor('the copy of the later report', async () => {
      const { rowCount } = await first.db.query(
        "SELECT FROM mpp_members WHERE nodename = 'elsewhere' AND state = 'crashed'",
      );
      return rowCount === 1;
    });
    expect(
      controller.log.filter(
        ({ msg }) => msg.includes('cannot be copied') && !msg.includes('nocitus'),
      ),
    ).toEqual([]);
  });
});
