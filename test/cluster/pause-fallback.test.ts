import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, inject, it } from 'vitest';
import type { ControllerProcess } from '../kit/controller-process.js';
import { Actor } from '../kit/faults/actor.js';
import { terminated } from '../kit/faults/hold-log.js';
import { waitUntilNothingHeld } from '../kit/faults/hold-sessions.js';
import { Harness, type TaskRow } from '../kit/harness.js';
import type { Server } from '../kit/servers/index.js';
import { keysOfGroup } from '../kit/standin/schema.js';

const READ = { items: readOf('items'), notes: readOf('notes'), big: readOf('big') };
const WRITE_BIG = 'UPDATE big SET v = v + 1 WHERE id = $1';

/** A transaction that has read a table is never terminated for a hold with `all`. */
describe('a hold with all, and a table that is being read', () => {
  let h: Harness;
  let controller: ControllerProcess;
  /** Of each group. */
  const keys: number[] = [];
  const actors: Actor[] = [];

  beforeAll(async () => {
    h = await Harness.start({ template: inject('template'), groups: 3, standbys: false });
    if (h.cluster.hasCitus) {
      await h.db.query('CREATE TABLE big (id bigint PRIMARY KEY, v integer)');
      await h.db.query("SELECT create_distributed_table('big', 'id', colocate_with => 'items')");
    } else {
      await h.db.query("SELECT standin.create_distributed_table('big', 8)");
    }
    for (const { groupid } of h.cluster.workers) {
      const [key = 0] = await keysOfGroup(h.db, groupid, 1);
      keys[groupid] = key;
      for (const table of ['items', 'notes', 'big']) {
        await h.db.query(`INSERT INTO ${table} VALUES ($1, 0)`, [key]);
      }
    }
  });
  beforeEach(async () => {
    controller = await h.startController();
  });
  afterEach(async () => {
    await Promise.all(actors.splice(0).map((actor) => actor.end()));
    await releaseAll();
    await waitUntilNothingHeld(h);
    await controller.end();
  });
  afterAll(async () => h.stop());

  async function through(server: Server): Promise<Actor> {
    const actor = await Actor.connect(server);
    actors.push(actor);
    return actor;
  }

  function keyOf(groupid: number): number {
    return keys[groupid] ?? 0;
  }

  async function demote(groupid: number): Promise<TaskRow> {
    const node = h.cluster.group(groupid).primary;
    const report = { groupid, node, pause: 'all', cooldown: '1min', timeout: '5min' } as const;
    const task = await h.request({ ...report, event: 'before_demote' });
    expect(task.status).toBe('holding');
    return task;
  }

  async function releaseAll(): Promise<void> {
    for (const { groupid } of h.cluster.workers) {
      await h.db.query('SELECT mpp_release($1)', [groupid]);
    }
  }

  describe.each([
    { entry: 'the coordinator', groupid: 0 },
    { entry: 'another worker', groupid: 2 },
  ])('through $entry', ({ groupid }) => {
    let entry: Server;
    let reader: Actor;

    beforeEach(async () => {
      entry = h.cluster.group(groupid).primary;
      reader = await through(entry);
      await reader.begin(READ.big, [keyOf(1)]);
    });

    it('pauses that table for writes and the other tables for reads as well', async () => {
      const { reason } = await demote(1);
      expect(reason).toContain('big');
      expect(reason).toContain(entry.address);
      expect(reason).toContain(`pid ${reader.pid}`);
      expect(reason).not.toMatch(/\b(items|notes)\b/);
      await (await through(entry)).query(READ.big, [keyOf(1)]);
      const waiting = [
        await (await through(entry)).sendAndWait(READ.items, [keyOf(1)]),
        await (await through(entry)).sendAndWait(READ.notes, [keyOf(1)]),
        await (await through(entry)).sendAndWait(WRITE_BIG, [keyOf(1)]),
      ];
      await reader.query('COMMIT');
      expect(terminated(controller.log)).toEqual([]);
      await releaseAll();
      await Promise.all(waiting.map(({ answer }) => answer));
    });

    it.each([
      { what: 'beside the first', keepsFirst: true },
      { what: 'after the first has ended', keepsFirst: false },
    ])(
      'pauses all tables of the next hold, $what, once the reader has ended',
      async ({ keepsFirst }) => {
        expect((await demote(1)).reason).toContain('big');
        await reader.query('COMMIT');
        if (!keepsFirst) await h.db.query('SELECT mpp_release(1)');
        expect((await demote(3)).reason).toBeNull();
        const waiting = [];
        for (const text of Object.values(READ)) {
          waiting.push(await (await through(entry)).sendAndWait(text, [keyOf(3)]));
        }
        await releaseAll();
        await Promise.all(waiting.map(({ answer }) => answer));
      },
    );

    it('pauses all tables when the same group is held again once the reader has ended', async () => {
      expect((await demote(1)).reason).toContain('big');
      await reader.query('COMMIT');
      await h.db.query('SELECT mpp_release(1)');
      expect((await demote(1)).reason).toBeNull();
      const waiting = await (await through(entry)).sendAndWait(READ.big, [keyOf(1)]);
      await releaseAll();
      await waiting.answer;
    });
  });
});

function readOf(table: string): string {
  return `SELECT v FROM ${table} WHERE id = $1`;
}
