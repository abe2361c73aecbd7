import type { Client } from 'pg';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, inject, it } from 'vitest';
import type { ControllerProcess } from '../kit/controller-process.js';
import { Actor } from '../kit/faults/actor.js';
import { waitUntilNothingHeld } from '../kit/faults/hold-sessions.js';
import { primaryAddress } from '../kit/faults/subject.js';
import { Harness, type TaskRow } from '../kit/harness.js';
import { waitFor } from '../kit/servers/index.js';
import { waitUntilSynced } from '../kit/standin/observe.js';
import { keysOfGroup } from '../kit/standin/schema.js';
import { startTraffic } from '../kit/traffic/traffic.js';

const UPDATE = 'UPDATE items SET v = v + 1 WHERE id = $1';
const LOOKUP = 'UPDATE lookup SET v = v + 1 WHERE id = 1';
const UPDATE_NODE = 'SELECT citus_update_node($1, $2, $3, $4, $5)';

/** Four worker groups that share a reference table. */
describe('several groups at once', () => {
  let h: Harness;
  let controller: ControllerProcess;
  const keys: number[] = [];
  const actors: Actor[] = [];

  beforeAll(async () => {
    h = await Harness.start({ template: inject('template'), groups: 4, standbys: true });
    for (const { groupid } of h.cluster.workers) {
      const [key = 0] = await keysOfGroup(h.db, groupid, 1, 500_000);
      keys[groupid] = key;
      await h.db.query('INSERT INTO items VALUES ($1, 0)', [key]);
    }
    await h.db.query('INSERT INTO lookup VALUES (1, 0)');
  });
  beforeEach(async () => {
    controller = await h.startController();
  });
  afterEach(async () => {
    await Promise.all(actors.splice(0).map((actor) => actor.end()));
    for (const { groupid } of h.cluster.workers) await release(groupid);
    await waitUntilNothingHeld(h);
    await waitUntilSynced(h.db);
    await controller.end();
  });
  afterAll(async () => h.stop());

  async function client(): Promise<Actor> {
    const actor = await Actor.connect(h.cluster.coordinator);
    actors.push(actor);
    return actor;
  }

  function keyOf(groupid: number): number {
    return keys[groupid] ?? 0;
  }

  async function demote(groupid: number, pause: 'writes' | 'all' = 'writes'): Promise<string> {
    const node = await primaryAddress(h, groupid);
    return h.report({
      event: 'before_demote',
      groupid,
      node,
      pause,
      timeout: '2min',
      cooldown: '1min',
    });
  }

  async function held(id: string): Promise<TaskRow> {
    const task = await h.acknowledged(id);
    expect(task).toMatchObject({ status: 'holding', reason: null });
    return task;
  }

  /** The same server by its other name. */
  async function moved(groupid: number): Promise<void> {
    const { host, port } = await primaryAddress(h, groupid);
    const node = { host: host === 'localhost' ? '127.0.0.1' : 'localhost', port };
    const after = await h.request({ event: 'after_promote', groupid, node });
    expect(after.status).toBe('done');
    expect(await primaryAddress(h, groupid)).toEqual(node);
  }

  async function release(groupid: number): Promise<void> {
    await h.db.query('SELECT mpp_release($1)', [groupid]);
  }

  it('two are held side by side, and neither end waits for the other', async () => {
    const ids = [await demote(1), await demote(2, 'all')];
    for (const id of ids) await held(id);
    expect(await h.holds()).toBe(2);
    const inOne = await (await client()).sendAndWait(UPDATE, [keyOf(1)]);
    await moved(2);
    expect((await h.task(ids[0] ?? '')).status).toBe('holding');
    await moved(1);
    await inOne.answer;
  });

  it('all beside writes, a client in the middle: no lock of the one blocks the other', async () => {
    await held(await demote(1, 'writes'));
    const middle = await client();
    await middle.begin(UPDATE, [keyOf(2)]);
    const id = await demote(2, 'all');
    await middle.isInTheWay();
    await middle.query('COMMIT');
    await held(id);
    const reader = await (
      await client()
    ).sendAndWait('SELECT FROM items WHERE id = $1', [keyOf(2)]);
    await moved(2);
    await moved(1);
    await reader.answer;
  });

  it('writers of a reference table wait until the last of them ends', async () => {
    for (const id of [await demote(1), await demote(2)]) await held(id);
    const writer = await (await client()).sendAndWait(LOOKUP);
    await release(1);
    await waitFor('one hold to be left', async () => (await h.holds()) === 1);
    const second = await (await client()).sendAndWait(LOOKUP);
    await (await client()).query(UPDATE, [keyOf(1)]);
    await moved(2);
    await Promise.all([writer.answer, second.answer]);
  });

  it('all four switch over at once, with writers, readers and transactions on all', async () => {
    const traffic = startTraffic({
      connection: h.cluster.coordinator.connection,
      clients: { writers: 4, readers: 4, transactions: 4 },
      thinkMs: 20,
    });
    await traffic.waitForProgress(50);
    const { workers } = h.cluster;
    const ids: string[] = [];
    for (const { groupid } of workers) ids.push(await demote(groupid, 'all'));
    for (const id of ids) expect((await h.acknowledged(id)).status).toBe('holding');
    expect(await h.holds()).toBe(4);
    await Promise.all(workers.map((group) => group.switchover()));
    const reports: string[] = [];
    for (const { groupid, primary: node } of workers) {
      reports.push(await h.report({ event: 'after_promote', groupid, node }));
    }
    for (const id of reports) expect((await h.ended(id)).status).toBe('done');
    await traffic.waitForProgress(50);
    const report = await traffic.stop();
    expect(report.failures).toEqual([]);
    for (const { groupid, primary } of workers) {
      expect(await primaryAddress(h, groupid)).toEqual({ host: primary.host, port: primary.port });
    }
    const { rows } = await h.db.query<{ n: number }>(
      'SELECT count(*)::integer AS n FROM items WHERE id < 500000',
    );
    expect(rows).toEqual([{ n: report.inserted }]);
    await waitUntilNothingHeld(h);
    for (const group of workers) await group.rejoin();
  });

  it('a worker of another group is down: held and switched over all the same', async () => {
    const down = h.cluster.group(4).primary;
    await down.stop();
    const id = await demote(1, 'all');
    const task = await h.acknowledged(id);
    expect(task.status).toBe('holding');
    expect(task.reason).toContain(down.address);
    const writer = await (await client()).sendAndWait(UPDATE, [keyOf(1)]);
    await moved(1);
    await writer.answer;
    await down.start();
    await waitUntilSynced(h.db);
    await held(await demote(1, 'all'));
  });

  it('mpp_release of one of two holds leaves what the other makes wait', async () => {
    for (const id of [await demote(1, 'all'), await demote(2, 'all')]) await held(id);
    const reader = await (
      await client()
    ).sendAndWait('SELECT FROM items WHERE id = $1', [keyOf(2)]);
    const writer = await (await client()).sendAndWait(UPDATE, [keyOf(2)]);
    await release(1);
    await waitFor('one hold to be left', async () => (await h.holds()) === 1);
    const next = await (await client()).sendAndWait(UPDATE, [keyOf(2)]);
    await moved(2);
    await Promise.all([reader.answer, writer.answer, next.answer]);
  });

  it('one at a time with MPP_MAX_HOLDS=1', async () => {
    await controller.end();
    controller = await h.startController({ MPP_MAX_HOLDS: '1' });
    await held(await demote(1));
    const second = await demote(2);
    await (await client()).query(UPDATE, [keyOf(2)]);
    expect((await h.task(second)).status).toBe('pending');
    await moved(1);
    await held(second);
    expect(await h.holds()).toBe(1);
  });

  it('two at a time with MPP_MAX_HOLDS=2', async () => {
    await controller.end();
    controller = await h.startController({ MPP_MAX_HOLDS: '2' });
    for (const groupid of [1, 2]) await held(await demote(groupid));
    const third = await demote(3);
    await (await client()).query(UPDATE, [keyOf(3)]);
    expect((await h.task(third)).status).toBe('pending');
    await release(1);
    await held(third);
    expect(await h.holds()).toBe(2);
  });

  describe("an operator's own citus_update_node meanwhile", () => {
    let operator: Client;
    beforeEach(async () => {
      operator = await h.cluster.coordinator.connect('operator');
    });
    afterEach(async () => operator.end());

    async function rename(groupid: number, force: boolean): Promise<string> {
      const [row] = await h.nodes(groupid);
      const { host, port } = await primaryAddress(h, groupid);
      const name = host === 'localhost' ? '127.0.0.1' : 'localhost';
      await operator.query(UPDATE_NODE, [row?.nodeid, name, port, force, 100]);
      return name;
    }

    // A reference table has a placement there, too; its writers are kept by a table lock alone.
    it('of another group does not wait for the hold, nor end it', async () => {
      const id = await demote(1, 'all');
      await held(id);
      const name = await rename(2, true);
      expect((await h.task(id)).status).toBe('holding');
      const writer = await (await client()).sendAndWait(UPDATE, [keyOf(1)]);
      expect((await primaryAddress(h, 2)).host).toBe(name);
      await moved(1);
      await writer.answer;
    });

    it('of the held group waits for the hold without force', async () => {
      await held(await demote(1, 'all'));
      const before = await primaryAddress(h, 1);
      const renamed = rename(1, false);
      await waitFor('the operator to wait', async () => {
        const { rowCount } = await h.db.query(OPERATOR_WAITS);
        return rowCount === 1;
      });
      expect(await primaryAddress(h, 1)).toEqual(before);
      await release(1);
      const name = await renamed;
      expect((await primaryAddress(h, 1)).host).toBe(name);
      await (await client()).query(UPDATE, [keyOf(1)]);
    });

    it('of the held group with force ends the hold, shared sessions and all', async () => {
      const id = await demote(1, 'all');
      await held(id);
      const name = await rename(1, true);
      expect((await h.ended(id)).status).toBe('discarded');
      expect((await primaryAddress(h, 1)).host).toBe(name);
      await waitUntilNothingHeld(h);
      await (await client()).query(UPDATE, [keyOf(1)]);
    });
  });
});

const OPERATOR_WAITS = `
  SELECT FROM pg_stat_activity
  WHERE application_name = 'mpp-controller operator' AND wait_event_type = 'Lock'`;
