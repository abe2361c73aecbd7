import type { Client } from 'pg';
import { afterAll, afterEach, beforeAll, describe, expect, inject, it } from 'vitest';
import { subjectOf } from '../kit/faults/subject.js';
import { Harness } from '../kit/harness.js';
import { waitFor } from '../kit/servers/index.js';

/** Longer than a test waits for anything: what another session keeps waiting fails the test. */
const LONG = '10min';

describe('a transaction that another session leaves open', () => {
  let h: Harness;
  let session: Client;

  beforeAll(async () => {
    h = await Harness.start({ template: inject('template'), groups: 3, standbys: false });
    await h.startController();
    session = await h.cluster.coordinator.connect('operator');
    await session.query("SET application_name = 'psql'");
  });
  afterEach(async () => {
    await session.query('ROLLBACK');
    await h.db.query('SELECT mpp_release(g) FROM generate_series(1, 3) AS g');
  });
  afterAll(async () => {
    await session.end();
    await h.stop();
  });

  /** A whole switchover of another group. */
  async function expectOthersGoOn(groupid = 2): Promise<void> {
    const { node, next } = await subjectOf(h, groupid);
    const demote = await h.request({ event: 'before_demote', groupid, node, timeout: LONG });
    expect(demote.status).toBe('holding');
    const after = await h.report({ event: 'after_promote', groupid, node: next });
    expect((await h.ended(after)).status).toBe('done');
  }

  it('with mpp_release delays no other group', async () => {
    const { node } = await subjectOf(h, 1);
    await h.request({ event: 'before_demote', groupid: 1, node, timeout: '2s' });
    await session.query('BEGIN; SELECT mpp_release(1)');
    await expectOthersGoOn();
  });

  it('with mpp_cancel of tasks that expire meanwhile delays no other group', async () => {
    const ids: string[] = [];
    for (let count = 0; count < 20; count += 1) {
      const node = { host: 'unknown', port: 5432 };
      // Behind a retry of its group that is never due, so that it stays pending.
      ids.push(await h.report({ event: 'suspect', groupid: 50 + count, node, timeout: '1s' }));
    }
    await session.query('BEGIN');
    await session.query('SELECT FROM mpp_tasks WHERE id = ANY ($1) FOR UPDATE', [ids]);
    await expectOthersGoOn();
    await session.query('ROLLBACK');
    for (const id of ids) await h.ended(id);
  });

  it('with a report delays neither its group nor any other', async () => {
    const { node } = await subjectOf(h, 1);
    await session.query('BEGIN');
    await session.query("SELECT mpp_submit('suspect', 1, $1, $2)", [node.host, node.port]);
    await expectOthersGoOn(1);
    await expectOthersGoOn(2);
  });

  it('with the row of a held task delays the commit of that group, and loses nothing', async () => {
    const subject = await subjectOf(h, 1);
    const { node, next } = subject;
    const demote = await h.request({ event: 'before_demote', groupid: 1, node, timeout: LONG });
    await session.query('BEGIN');
    await session.query('SELECT FROM mpp_tasks WHERE id = $1 FOR UPDATE', [demote.id]);
    const after = await h.report({ event: 'after_promote', groupid: 1, node: next });
    await waitFor('the reason to say so', async () =>
      (await h.task(after)).reason?.includes('another session has locked a task'),
    );
    expect(await h.holds()).toBe(1);
    await expectOthersGoOn();
    await session.query('ROLLBACK');
    expect((await h.ended(after)).status).toBe('done');
    expect((await h.task(demote.id)).status).toBe('done');
    await subject.settled();
  });

  it('with the row of a task that is being acknowledged has it taken again', async () => {
    const subject = await subjectOf(h, 1);
    const { node } = subject;
    await session.query(
      `BEGIN; SELECT mpp_submit('suspect', 1, '${node.host}', ${node.port}, timeout => '10min')`,
    );
    await session.query('COMMIT');
    const { rows } = await session.query<{ id: string }>('SELECT max(id) AS id FROM mpp_tasks');
    const id = rows[0]?.id ?? '';
    await session.query('BEGIN');
    await session.query('SELECT FROM mpp_tasks WHERE id = $1 FOR UPDATE', [id]);
    await expectOthersGoOn();
    await session.query('ROLLBACK');
    expect((await h.acknowledged(id)).status).toBe('holding');
    await h.db.query('SELECT mpp_release(1)');
    await subject.settled();
  });

  it.each([{ pause: 'writes' }, { pause: 'all' }] as const)(
    'that writes to a held group is named in the reason while a hold of $pause waits for it',
    async ({ pause }) => {
      const { node, key } = await subjectOf(h, 1);
      await session.query('BEGIN');
      await session.query('INSERT INTO notes VALUES ($1, 0)', [key]);
      const { rows } = await session.query<{ pid: number }>('SELECT pg_backend_pid() AS pid');
      const id = await h.report({
        ...{ event: 'before_demote', groupid: 1, node },
        ...{ timeout: LONG, cooldown: '5min', pause },
      });
      const named = `waits for pid ${rows[0]?.pid} (user postgres, application psql)`;
      await waitFor('the reason to name it', async () => {
        const { reason, status } = await h.task(id);
        return status === 'claimed' && reason?.includes(named);
      }).catch(async () => expect((await h.task(id)).reason).toContain(named));
      await session.query('ROLLBACK');
      expect((await h.acknowledged(id)).status).toBe('holding');
      expect(await h.db.query('SELECT mpp_release(1)')).toMatchObject({ rowCount: 1 });
      await h.ended(id);
    },
  );

  it('keeps no group waiting behind twenty thousand reports of another', async () => {
    await h.db.query(
      `INSERT INTO mpp_tasks (event, groupid, nodename, timeout)
       SELECT 'suspect', 777, 'unknown', '5s' FROM generate_series(1, 20000)`,
    );
    await expectOthersGoOn();
    await waitFor(
      'all of them to end',
      async () => {
        const { rows } = await h.db.query<{ open: number }>(
          'SELECT count(*)::integer AS open FROM mpp_tasks WHERE finished_at IS NULL AND groupid = 777',
        );
        return rows[0]?.open === 0;
      },
      { timeoutMs: 120_000 },
    );
  });
});
