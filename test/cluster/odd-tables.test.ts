import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, inject, it } from 'vitest';
import type { ControllerProcess } from '../kit/controller-process.js';
import { Actor } from '../kit/faults/actor.js';
import { waitUntilNothingHeld } from '../kit/faults/hold-sessions.js';
import { primaryAddress } from '../kit/faults/subject.js';
import { Harness } from '../kit/harness.js';

const FOREIGN = `
  CREATE EXTENSION postgres_fdw;
  CREATE SERVER far FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host 'nowhere', dbname 'nothing');
  CREATE USER MAPPING FOR CURRENT_USER SERVER far;
  CREATE FOREIGN TABLE outside (id bigint) SERVER far OPTIONS (table_name 'outside');`;

/** Tables that are not as most are. Their rows are nobody's business, so metadata alone stands for Citus's. */
describe('a hold of a group with tables of other kinds', () => {
  let h: Harness;
  let controller: ControllerProcess;
  const actors: Actor[] = [];

  beforeAll(async () => {
    h = await Harness.start({ template: inject('template'), standbys: false });
    await h.db.query(FOREIGN);
    if (h.cluster.hasCitus) {
      await h.db.query("SELECT citus_add_local_table_to_metadata('outside')");
    } else {
      await distribute('outside', 0);
    }
    await h.db.query('CREATE SCHEMA "it\'s ""odd"""');
    for (let index = 0; index < 145; index += 1) {
      await create(`"it's ""odd"""."A table; ${index}"`, index < 73 ? 1 : 2);
    }
  });
  beforeEach(async () => {
    controller = await h.startController();
  });
  afterEach(async () => {
    await Promise.all(actors.splice(0).map((actor) => actor.end()));
    for (const groupid of [0, 1, 2]) await h.db.query('SELECT mpp_release($1)', [groupid]);
    await waitUntilNothingHeld(h);
    await controller.end();
  });
  afterAll(async () => h.stop());

  /** One shard, in one group. */
  async function distribute(table: string, groupid: number): Promise<void> {
    await h.db.query(
      "INSERT INTO pg_dist_partition (logicalrelid, partmethod, repmodel) VALUES ($1, 'n', 's')",
      [table],
    );
    await h.db.query(
      `WITH shard AS (
         INSERT INTO pg_dist_shard (logicalrelid, shardid, shardstorage)
         SELECT $1::regclass, max(s.shardid) + 1, 't' FROM pg_dist_shard AS s
         RETURNING shardid)
       INSERT INTO pg_dist_placement (shardid, shardstate, shardlength, groupid)
       SELECT shardid, 1, 0, $2 FROM shard`,
      [table, groupid],
    );
  }

  async function create(table: string, groupid: number): Promise<void> {
    await h.db.query(`CREATE TABLE ${table} (id bigint PRIMARY KEY, v integer)`);
    if (!h.cluster.hasCitus) return distribute(table, groupid);
    await h.db.query(
      "SELECT create_distributed_table($1::regclass, NULL, colocate_with => 'none')",
      [table],
    );
  }

  async function drop(table: string): Promise<void> {
    if (!h.cluster.hasCitus) {
      await h.db.query(
        `DELETE FROM pg_dist_placement
         WHERE shardid IN (SELECT shardid FROM pg_dist_shard WHERE logicalrelid = $1::regclass)`,
        [table],
      );
      for (const catalog of ['pg_dist_shard', 'pg_dist_partition']) {
        await h.db.query(`DELETE FROM ${catalog} WHERE logicalrelid = $1::regclass`, [table]);
      }
    }
    await h.db.query(`DROP TABLE ${table}`);
  }

  async function tableOf(groupid: number, like = '%odd%'): Promise<string> {
    const { rows } = await h.db.query<{ name: string }>(
      `SELECT logicalrelid::text AS name
       FROM pg_dist_shard JOIN pg_dist_placement USING (shardid)
       WHERE groupid = $1 AND logicalrelid::text LIKE $2
       ORDER BY shardid
       LIMIT 1`,
      [groupid, like],
    );
    return String(rows[0]?.name);
  }

  async function client(): Promise<Actor> {
    const actor = await Actor.connect(h.cluster.coordinator);
    actors.push(actor);
    return actor;
  }

  async function demote(groupid: number, pause: 'writes' | 'all'): Promise<string> {
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

  it.each(['writes', 'all'] as const)(
    'foreign tables, which cannot be locked, are no reason not to hold, under %s',
    async (pause) => {
      const reader = await client();
      await reader.begin('SELECT FROM lookup');
      const writer = await client();
      await writer.begin('LOCK TABLE ONLY lookup IN ROW EXCLUSIVE MODE');
      const id = await demote(0, pause);
      await writer.isInTheWay();
      await Promise.all([reader, writer].map((actor) => actor.query('COMMIT')));
      expect(await h.acknowledged(id)).toMatchObject({ status: 'holding', reason: null });
    },
  );

  it('names that must be quoted, and more tables than are taken one by one', async () => {
    const [one, other] = [await tableOf(1), await tableOf(2)];
    const middle = await client();
    await middle.begin(`LOCK TABLE ONLY ${one} IN ACCESS SHARE MODE`);
    const first = await demote(1, 'all');
    await middle.isInTheWay();
    await middle.query('COMMIT');
    expect(await h.acknowledged(first)).toMatchObject({ status: 'holding', reason: null });
    const waiting = await (await client()).sendAndWait(`SELECT FROM ${one}`);

    await middle.begin(`LOCK TABLE ONLY ${other} IN ACCESS SHARE MODE`);
    const second = await demote(2, 'all');
    await middle.isInTheWay();
    await middle.query('COMMIT');
    expect(await h.acknowledged(second)).toMatchObject({ status: 'holding', reason: null });
    for (const groupid of [1, 2]) await h.db.query('SELECT mpp_release($1)', [groupid]);
    await waiting.answer;
  });

  // What there is to lock is remembered then, so that it need not be read first.
  it('what came and what went since the last hold, when the primary is gone', async () => {
    for (const groupid of [1, 2]) await create(`gone_${groupid}`, groupid);
    const node = await primaryAddress(h, 1);
    const suspect = { event: 'suspect', groupid: 1, node, pause: 'all', timeout: '1min' } as const;
    expect((await h.request(suspect)).status).toBe('holding');
    await h.db.query('SELECT mpp_release(1)');
    await waitUntilNothingHeld(h);

    for (const groupid of [1, 2]) await create(`late_${groupid}`, groupid);
    for (const groupid of [1, 2]) await drop(`gone_${groupid}`);
    expect(await h.request(suspect)).toMatchObject({ status: 'holding', reason: null });
    const waiting = await (await client()).sendAndWait(`SELECT FROM ${await tableOf(1, 'late%')}`);
    await h.db.query('SELECT mpp_release(1)');
    await waiting.answer;
  });
});
