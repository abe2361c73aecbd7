import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, inject, it } from 'vitest';
import type { ControllerProcess } from '../kit/controller-process.js';
import { Actor } from '../kit/faults/actor.js';
import { waitUntilNothingHeld } from '../kit/faults/hold-sessions.js';
import { primaryAddress } from '../kit/faults/subject.js';
import { Harness, type TaskRow } from '../kit/harness.js';
import { waitUntilSynced } from '../kit/standin/observe.js';
import { keysOfGroup } from '../kit/standin/schema.js';

const UPDATE = 'UPDATE items SET v = v + 1 WHERE id = $1';
/** Sent on to the shards by Citus; on the stand-in the table is a view, which takes this as well. */
const ALTER = 'ALTER TABLE items ALTER COLUMN v SET DEFAULT 7';
const MOVE = `
  SELECT citus_move_shard_placement(
    get_shard_id_for_distribution_column('items', $1::bigint), $2, $3, $4, $5, 'block_writes')`;
const GROUP_OF = `
  SELECT DISTINCT groupid FROM pg_dist_placement
  WHERE shardid IN (
    get_shard_id_for_distribution_column('items', $1::bigint),
    get_shard_id_for_distribution_column('notes', $1::bigint))`;

describe('DDL and shard moves beside a hold of group 1', () => {
  let h: Harness;
  let controller: ControllerProcess;
  const actors: Actor[] = [];
  /** Keys of shards that may have been moved, and the groups that they belong to. */
  const homes = new Map<number, number>();

  beforeAll(async () => {
    h = await Harness.start({ template: inject('template'), groups: 3, standbys: false });
  });
  beforeEach(async () => {
    controller = await h.startController();
  });
  afterEach(async () => {
    await Promise.all(actors.splice(0).map((actor) => actor.end()));
    await h.db.query('SELECT mpp_release(1)');
    await waitUntilNothingHeld(h);
    await waitUntilSynced(h.db);
    for (const [key, home] of homes) {
      const { rows } = await h.db.query<{ groupid: number }>(GROUP_OF, [key]);
      const now = rows[0]?.groupid ?? home;
      if (now !== home) await h.db.query(MOVE, await moveOf(key, now, home));
    }
    homes.clear();
    await controller.end();
  });
  afterAll(async () => h.stop());

  async function client(groupid = 0): Promise<Actor> {
    const actor = await Actor.connect(h.cluster.group(groupid).primary);
    actors.push(actor);
    return actor;
  }

  /** A row of a group that no test has used before. */
  let after = 0;
  async function rowOf(groupid: number): Promise<number> {
    const [key = 0] = await keysOfGroup(h.db, groupid, 1, after);
    after = key;
    homes.set(key, groupid);
    await h.db.query('INSERT INTO items VALUES ($1, 0)', [key]);
    return key;
  }

  async function demote(pause: 'writes' | 'all', cooldown = '30s'): Promise<string> {
    const node = await primaryAddress(h, 1);
    return h.report({
      event: 'before_demote',
      groupid: 1,
      node,
      pause,
      cooldown,
      timeout: '2min',
    });
  }

  async function held(id: string): Promise<TaskRow> {
    const task = await h.acknowledged(id);
    expect(task.status).toBe('holding');
    return task;
  }

  /** Moves the row to the server's other name, so that what waited has to find it anew. */
  async function finish(): Promise<void> {
    const { host, port } = await primaryAddress(h, 1);
    const node = { host: host === 'localhost' ? '127.0.0.1' : 'localhost', port };
    const task = await h.request({ event: 'after_promote', groupid: 1, node });
    expect(task.status).toBe('done');
  }

  function ended(): unknown[] {
    return controller.log
      .filter(({ msg }) => msg.startsWith('ended a session'))
      .map(({ sessionPid }) => sessionPid);
  }

  async function moveOf(key: number, from: number, to: number): Promise<unknown[]> {
    const [source, target] = [await primaryAddress(h, from), await primaryAddress(h, to)];
    return [key, source.host, source.port, target.host, target.port];
  }

  describe('DDL', () => {
    it.each(['writes', 'all'] as const)(
      'in progress, and over before the cooldown: the hold waits, or goes without reads, under %s',
      async (pause) => {
        const key = await rowOf(1);
        const ddl = await client();
        await ddl.begin(ALTER);
        // On Citus it has the locks of the shards; a write makes it so everywhere.
        await ddl.query(UPDATE, [key]);
        const id = await demote(pause);
        await ddl.isInTheWay();
        await ddl.query('COMMIT');
        await held(id);
        expect(ended()).toEqual([]);
        const writer = await (await client()).sendAndWait(UPDATE, [key]);
        await finish();
        await writer.answer;
      },
    );

    it('in progress for longer than the cooldown: is ended, as a writer is', async () => {
      const key = await rowOf(1);
      const ddl = await client();
      await ddl.begin(ALTER);
      await ddl.query(UPDATE, [key]);
      await held(await demote('all', '2s'));
      await ddl.waitUntilLost();
      expect(ended()).toContain(ddl.pid);
      const writer = await (await client()).sendAndWait(UPDATE, [key]);
      await finish();
      await writer.answer;
    });

    it.each([
      { what: 'a table of the group', pause: 'all', statement: ALTER },
      {
        what: 'a reference table',
        pause: 'writes',
        statement: 'ALTER TABLE lookup ALTER COLUMN v SET DEFAULT 7',
      },
    ] as const)('of $what that comes while it is held waits, and goes on', async (row) => {
      await held(await demote(row.pause));
      const ddl = await (await client()).sendAndWait(row.statement);
      const node = await primaryAddress(h, 1);
      const same = await h.request({ event: 'after_promote', groupid: 1, node });
      expect(same.status).toBe('done');
      await ddl.answer;
    });

    // Citus refuses distributed DDL while a node has not got its metadata, whoever changed the row.
    it('that has waited for a switchover goes on, or is to be tried again', async () => {
      await held(await demote('all'));
      const waiting = await client();
      const ddl = await waiting.sendAndWait(ALTER);
      await finish();
      const answer = await ddl.answer.catch((error: unknown) => error);
      if (!(answer instanceof Error)) return;
      expect(answer).toMatchObject({ code: '55000' });
      await waitUntilSynced(h.db);
      await waiting.query(ALTER);
    });

    it('of a table that is not distributed passes', async () => {
      await held(await demote('all'));
      const ddl = await client();
      await ddl.query('CREATE TABLE plain (id bigint)');
      await ddl.query('ALTER TABLE plain ADD COLUMN v integer');
      await ddl.query('DROP TABLE plain');
      await finish();
    });
  });

  describe('a shard move', () => {
    async function beginMove(key: number, from: number, to: number): Promise<Actor> {
      const operator = await client();
      await operator.begin(MOVE, await moveOf(key, from, to));
      return operator;
    }

    /** On every node that has a copy; the row is where it says. */
    async function expectPlaced(key: number, groupid: number, v: number): Promise<void> {
      for (const { primary } of h.cluster.groups) {
        await primary.withSession(async (db) => {
          expect((await db.query(GROUP_OF, [key])).rows).toEqual([{ groupid }]);
          const { rows } = await db.query('SELECT v FROM items WHERE id = $1', [key]);
          expect(rows).toEqual([{ v }]);
        });
      }
    }

    it.each(['writes', 'all'] as const)(
      'out of the group, in progress: the hold waits for its end, under %s',
      async (pause) => {
        const moved = await rowOf(1);
        const operator = await beginMove(moved, 1, 2);
        const id = await demote(pause);
        await operator.isInTheWay();
        await operator.query('COMMIT');
        await held(id);
        expect(ended()).toEqual([]);
        await finish();
        await (await client()).query(UPDATE, [moved]);
        await expectPlaced(moved, 2, 1);
      },
    );

    it('out of the group, longer than the cooldown: is ended, and was never', async () => {
      const key = await rowOf(1);
      const operator = await beginMove(key, 1, 2);
      await held(await demote('writes', '2s'));
      await operator.waitUntilLost();
      const writer = await (await client()).sendAndWait(UPDATE, [key]);
      await finish();
      await writer.answer;
      await expectPlaced(key, 1, 1);
    });

    it('between other groups blocks nothing, under writes', async () => {
      const key = await rowOf(2);
      const operator = await beginMove(key, 2, 3);
      expect((await held(await demote('writes'))).reason).toBeNull();
      await operator.query('COMMIT');
      await finish();
      await expectPlaced(key, 3, 0);
    });

    it('into the group, over while the hold still waits: its writers wait, too', async () => {
      const [own, key] = [await rowOf(1), await rowOf(2)];
      const operator = await beginMove(key, 2, 1);
      const middle = await client();
      await middle.begin(UPDATE, [own]);
      const id = await demote('writes');
      await middle.isInTheWay();
      await operator.query('COMMIT');
      await middle.query('COMMIT');
      await held(id);
      const writer = await (await client()).sendAndWait(UPDATE, [key]);
      await finish();
      await writer.answer;
      await expectPlaced(key, 1, 1);
    });

    // A limit: what comes into the group under writes is not made to wait. Not so under all.
    it.each([
      { when: 'in progress', first: 'move' },
      { when: 'begun while it is held', first: 'hold' },
    ] as const)(
      'into the group, $when: its writers wait once it is there',
      { fails: true },
      async ({ first }) => {
        const key = await rowOf(2);
        const operator = await client();
        if (first === 'hold') await held(await demote('writes'));
        await operator.query('BEGIN');
        await operator.query(MOVE, await moveOf(key, 2, 1));
        if (first === 'move') await h.acknowledged(await demote('writes'));
        await operator.query('COMMIT');
        const writer = await (await client()).sendAndWait(UPDATE, [key]);
        await finish();
        await writer.answer;
      },
    );

    it('into the group, begun while it is held under all: waits, and goes on', async () => {
      const key = await rowOf(2);
      await held(await demote('all'));
      const move = await (await client()).sendAndWait(MOVE, await moveOf(key, 2, 1));
      await h.db.query('SELECT mpp_release(1)');
      await move.answer;
      await expectPlaced(key, 1, 0);
    });

    it('out of the group, begun while it is held: waits, and goes on', async () => {
      const key = await rowOf(1);
      await held(await demote('writes'));
      const operator = await client();
      const move = await operator.sendAndWait(MOVE, await moveOf(key, 1, 2));
      await h.db.query('SELECT mpp_release(1)');
      await move.answer;
      await expectPlaced(key, 2, 0);
    });
  });
});
