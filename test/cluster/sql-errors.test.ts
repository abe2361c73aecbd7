import { afterAll, afterEach, beforeAll, describe, expect, inject, it } from 'vitest';
import type { ControllerProcess } from '../kit/controller-process.js';
import { subjectOf, primaryAddress } from '../kit/faults/subject.js';
import { Harness } from '../kit/harness.js';
import { waitFor } from '../kit/servers/index.js';

/** Makes what a test breaks fail with a SQLSTATE, until `fault.code` is emptied. */
const INSTALL_FAULTS = `
  CREATE SCHEMA fault;
  CREATE TABLE fault.code (place text PRIMARY KEY, sqlstate text NOT NULL);
  CREATE FUNCTION fault.strike() RETURNS trigger LANGUAGE plpgsql AS $$
  DECLARE
    state text := (SELECT c.sqlstate FROM fault.code AS c WHERE c.place = TG_ARGV[0]);
  BEGIN
    IF state IS NOT NULL THEN
      RAISE EXCEPTION 'fault at %', TG_ARGV[0] USING ERRCODE = state;
    END IF;
    RETURN NEW;
  END
  $$;
  CREATE TRIGGER fault_catalog AFTER UPDATE ON pg_catalog.pg_dist_node
    FOR EACH ROW EXECUTE FUNCTION fault.strike('catalog');
  CREATE TRIGGER fault_done BEFORE UPDATE ON mpp_tasks
    FOR EACH ROW WHEN (NEW.status = 'done') EXECUTE FUNCTION fault.strike('done');
  CREATE TRIGGER fault_holding BEFORE UPDATE ON mpp_tasks
    FOR EACH ROW WHEN (NEW.status = 'holding') EXECUTE FUNCTION fault.strike('holding');
  CREATE TRIGGER fault_log AFTER INSERT ON mpp_task_log
    FOR EACH ROW WHEN (NEW.status = 'done') EXECUTE FUNCTION fault.strike('log');
  CREATE CONSTRAINT TRIGGER fault_commit AFTER UPDATE ON mpp_tasks DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (NEW.status = 'done') EXECUTE FUNCTION fault.strike('commit');`;

/** Real Citus writes pg_dist_node past its triggers. */
const PLACES = [
  ...(inject('template').binaries.hasCitus ? [] : ['catalog']),
  'done',
  'log',
  'commit',
] as const;

describe('SQL fails in the middle of a task', () => {
  let h: Harness;
  let controller: ControllerProcess;

  beforeAll(async () => {
    h = await Harness.start({ template: inject('template'), standbys: false });
    await h.db.query('SET allow_system_table_mods = on');
    // Real Citus would take the function and the schema to the workers.
    if (h.cluster.hasCitus) await h.db.query('SET citus.enable_ddl_propagation = off');
    await h.db.query(INSTALL_FAULTS);
    controller = await h.startController();
  });
  afterAll(async () => h.stop());
  afterEach(async () => h.db.query('TRUNCATE fault.code'));

  describe.each(PLACES)('at the %s', (place) => {
    it('after_promote without a hold is tried again, ever more slowly, until it works', async () => {
      const subject = await subjectOf(h, 1);
      await strike(place, '55000');
      const after = await h.report({ event: 'after_promote', groupid: 1, node: subject.next });
      await waitFor('a few attempts', async () => (await h.task(after)).attempt >= 3);
      expect(await primaryAddress(h, 1)).toEqual(subject.node);
      await repair();
      expect(await h.ended(after)).toMatchObject({ status: 'done', reason: null });
      expect(await primaryAddress(h, 1)).toEqual(subject.next);
      await subject.settled();
      const [first = 0, second = 0] = await pauses(after);
      expect(first).toBeGreaterThanOrEqual(90);
      expect(second).toBeGreaterThanOrEqual(190);
    });

    it.each(['55000', '55P03', '40P01', '40001'])(
      'after_promote of a hold that fails with %s is tried again, in the hold unless its commit failed',
      async (code) => {
        const subject = await subjectOf(h, 1);
        const demote = await h.request({ event: 'before_demote', groupid: 1, node: subject.node });
        await strike(place, code);
        const after = await h.report({ event: 'after_promote', groupid: 1, node: subject.next });
        if (place === 'commit') {
          expect(await h.ended(demote.id)).toMatchObject({ status: 'rolled_back' });
          expect((await h.task(demote.id)).reason).toContain(`task ${after}`);
        } else {
          await waitFor('a few attempts', async () => (await h.task(after)).attempt >= 3);
          expect((await h.task(demote.id)).status).toBe('holding');
          expect(await h.holds()).toBe(1);
        }
        expect(await primaryAddress(h, 1)).toEqual(subject.node);
        await repair();
        expect(await h.ended(after)).toMatchObject({ status: 'done', reason: null });
        expect((await h.task(demote.id)).status).toBe(place === 'commit' ? 'rolled_back' : 'done');
        await subject.settled();
      },
    );

    it('what no retry can fix is failed, and says why', async () => {
      const subject = await subjectOf(h, 1);
      await strike(place, '23514');
      const after = await h.report({ event: 'after_promote', groupid: 1, node: subject.next });
      expect(await h.ended(after)).toMatchObject({
        status: 'failed',
        reason: `fault at ${place} (SQLSTATE 23514)`,
        attempt: 1,
      });
      await repair();
      await subject.settled();
      expect(await primaryAddress(h, 1)).toEqual(subject.node);
    });

    it('the victim of a deadlock is tried again at once', async () => {
      const subject = await subjectOf(h, 1);
      await strike(place, '40P01');
      const after = await h.report({ event: 'after_promote', groupid: 1, node: subject.next });
      await waitFor('a few attempts', async () => (await h.task(after)).attempt >= 3);
      await repair();
      expect((await h.ended(after)).status).toBe('done');
      await subject.settled();
    });
  });

  it('a before_demote that cannot be acknowledged is failed, and nothing waits', async () => {
    const subject = await subjectOf(h, 1);
    await strike('holding', '55000');
    const demote = await h.request({ event: 'before_demote', groupid: 1, node: subject.node });
    expect(demote).toMatchObject({
      status: 'failed',
      reason: 'fault at holding (SQLSTATE 55000)',
    });
    await subject.settled();
  });

  it('a before_promote that fails ends the hold that it would go on', async () => {
    const subject = await subjectOf(h, 1);
    const demote = await h.request({ event: 'before_demote', groupid: 1, node: subject.node });
    await strike('holding', '55000');
    const promote = await h.request({ event: 'before_promote', groupid: 1, node: subject.next });
    expect(promote.status).toBe('failed');
    expect((await h.ended(demote.id)).status).toBe('rolled_back');
    await subject.settled();
  });

  it('the address has been taken by another group meanwhile', async () => {
    const subject = await subjectOf(h, 1);
    const other = await subjectOf(h, 2);
    const demote = await h.request({ event: 'before_demote', groupid: 1, node: subject.node });
    const after = await h.request({ event: 'after_promote', groupid: 1, node: other.node });
    expect(after.status).toBe('failed');
    expect(after.reason).toContain('belongs to group 2');
    // The report was wrong; the hold waits for the right one.
    expect((await h.task(demote.id)).status).toBe('holding');
    expect(
      (await h.request({ event: 'after_promote', groupid: 1, node: subject.next })).status,
    ).toBe('done');
    await subject.settled();
    await other.settled();
  });

  it('a node that does not answer cannot be registered; that is tried ever more slowly', async () => {
    // Citus reports its own failed connection with the SQLSTATE of a lost one.
    const nobody = { host: '127.0.0.1', port: 1 };
    const after = await h.report({ event: 'after_promote', groupid: 7, node: nobody });
    await waitFor('a few attempts', async () => (await h.task(after)).attempt >= 3);
    const [first = 0, second = 0] = await pauses(after);
    expect(first).toBeGreaterThanOrEqual(90);
    expect(second).toBeGreaterThanOrEqual(190);
    expect(await h.nodes(7)).toEqual([]);
    await h.db.query("UPDATE mpp_tasks SET status = 'cancelled' WHERE id = $1", [after]);
    expect((await h.ended(after)).status).toBe('cancelled');
  });

  it('was one and the same controller process all the time', () => {
    expect(controller.exitCode).toBeNull();
    expect(controller.stderr).toBe('');
  });

  async function strike(place: string, sqlstate: string): Promise<void> {
    await h.db.query('INSERT INTO fault.code VALUES ($1, $2)', [place, sqlstate]);
  }

  async function repair(): Promise<void> {
    await h.db.query('TRUNCATE fault.code');
  }

  /** Milliseconds from the end of each attempt to the next claim. */
  async function pauses(id: string): Promise<number[]> {
    const { rows } = await h.db.query<{ ms: number }>(
      `SELECT ms
       FROM (SELECT id, status,
                    (extract(epoch FROM logged_at - lag(logged_at) OVER (ORDER BY id)) * 1000)::float8 AS ms
             FROM mpp_task_log WHERE task_id = $1) AS log
       WHERE status = 'claimed' ORDER BY id OFFSET 1`,
      [id],
    );
    return rows.map(({ ms }) => ms);
  }
});
