import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, inject, it } from 'vitest';
import type { ControllerProcess } from '../kit/controller-process.js';
import { Actor } from '../kit/faults/actor.js';
import { waitUntilNothingHeld } from '../kit/faults/hold-sessions.js';
import { Harness } from '../kit/harness.js';
import { waitFor, type Server } from '../kit/servers/index.js';
import { waitUntilSynced } from '../kit/standin/observe.js';
import { keysOfGroup } from '../kit/standin/schema.js';

const { hasCitus } = inject('template').binaries;

/** Citus alone sends such statements on to the shards, node by node. */
describe.skipIf(!hasCitus)('a statement that locks a whole table while group 1 is held', () => {
  let h: Harness;
  let controller: ControllerProcess;
  let key: number;
  const actors: Actor[] = [];

  beforeAll(async () => {
    h = await Harness.start({ template: inject('template'), groups: 2, standbys: true });
    [key = 0] = await keysOfGroup(h.db, 1, 1);
    await h.db.query('CREATE ROLE reporting');
  });
  beforeEach(async () => {
    // Citus keeps connections to workers with a session; those to a primary that was stopped are broken.
    await h.reconnect();
    await h.db.query('DROP TABLE IF EXISTS countries, items, notes, lookup');
    for (const statement of TABLES) await h.db.query(statement);
    await h.db.query('INSERT INTO items VALUES ($1, 1)', [key]);
    controller = await h.startController();
  });
  afterEach(async () => {
    await Promise.all(actors.splice(0).map((actor) => actor.end()));
    await h.db.query('SELECT mpp_release(1)');
    const group = h.cluster.group(1);
    await group.primary.start();
    // A test that has failed may have left the row as it was.
    await commit();
    await waitUntilNothingHeld(h);
    await controller.end();
    if (!group.standby.isRunning) await group.rejoin();
    await waitUntilSynced(h.db);
  });
  afterAll(async () => h.stop());

  async function through(server: Server): Promise<Actor> {
    const actor = await Actor.connect(server);
    actors.push(actor);
    return actor;
  }

  async function hold(): Promise<void> {
    const node = h.cluster.group(1).primary;
    const report = { groupid: 1, node, pause: 'all', cooldown: '1min', timeout: '5min' } as const;
    const task = await h.request({ ...report, event: 'before_demote' });
    expect(task).toMatchObject({ status: 'holding', reason: null });
  }

  async function commit(): Promise<void> {
    const node = h.cluster.group(1).primary;
    const after = await h.request({ event: 'after_promote', groupid: 1, node });
    expect(after.status).toBe('done');
  }

  /** Waits until a session of a client, or one that works for it, waits for a table or a shard. */
  async function waitsSomewhere(answer: Promise<unknown>): Promise<void> {
    const servers = h.cluster.groups.map(({ primary }) => primary);
    const waits = waitFor('the statement to wait', async () => {
      const running = servers.filter(({ isRunning }) => isRunning);
      const found = await Promise.all(
        running.map((server) =>
          server.withSession(async (db) => (await db.query(WAITS)).rowCount ?? 0),
        ),
      );
      return found.some((count) => count > 0);
    });
    const passed = answer.then(() => Promise.reject(new Error('the statement did not wait')));
    await Promise.race([waits, passed]);
  }

  it.each([
    'ALTER TABLE items ADD COLUMN w integer',
    'ALTER TABLE items ALTER COLUMN v SET DEFAULT 7',
    'CREATE INDEX items_v ON items (v)',
    'DROP TABLE notes',
    'ALTER TABLE lookup ADD COLUMN w integer',
    'CREATE INDEX lookup_v ON lookup (v)',
  ])('goes through after the commit: %s', async (statement) => {
    await hold();
    const sent = await (await through(h.cluster.coordinator)).sendAndWait(statement);
    await h.cluster.group(1).switchover();
    await commit();
    await sent.answer;
    const { rows } = await h.db.query('SELECT v FROM items WHERE id = $1', [key]);
    expect(rows).toEqual([{ v: 1 }]);
  });

  it('goes through: create_reference_table of a table that refers to another', async () => {
    await h.db.query('CREATE TABLE countries (id bigint PRIMARY KEY REFERENCES lookup (id))');
    await hold();
    const client = await through(h.cluster.coordinator);
    const { answer } = client.send("SELECT create_reference_table('countries')");
    await Promise.race([waitsSomewhere(answer).catch(() => undefined), answer]);
    await h.cluster.group(1).switchover();
    await commit();
    await answer;
  });

  it('does not keep statements that change no table waiting after the commit', async () => {
    await hold();
    const writer = await through(h.cluster.coordinator);
    const write = await writer.sendAndWait('UPDATE items SET v = v + 1 WHERE id = $1', [key]);
    const alter = await (
      await through(h.cluster.coordinator)
    ).sendAndWait('ALTER TABLE items ADD COLUMN w integer');
    await h.cluster.group(1).switchover();
    await commit();
    await Promise.all([write.answer, alter.answer]);
    const { rows } = await h.db.query('SELECT v, w FROM items WHERE id = $1', [key]);
    expect(rows).toEqual([{ v: 2, w: null }]);
  });
});

const TABLES = [
  'CREATE TABLE items (id bigint PRIMARY KEY, v integer)',
  'CREATE TABLE notes (id bigint PRIMARY KEY, v integer)',
  'CREATE TABLE lookup (id bigint PRIMARY KEY, v integer)',
  'SET citus.shard_count = 8',
  "SELECT create_distributed_table('items', 'id')",
  "SELECT create_distributed_table('notes', 'id')",
  "SELECT create_reference_table('lookup')",
];

/** For a table, or for a shard's or table's advisory lock. */
const WAITS = `
  SELECT FROM pg_locks AS l JOIN pg_stat_activity AS a USING (pid)
  WHERE NOT l.granted AND l.locktype IN ('relation', 'advisory')
    AND a.application_name !~ '^mpp-controller'`;
