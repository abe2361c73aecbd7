import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, inject, it } from 'vitest';
import type { ControllerProcess } from '../kit/controller-process.js';
import { Actor } from '../kit/faults/actor.js';
import { BusyClient } from '../kit/faults/busy-client.js';
import { terminated } from '../kit/faults/hold-log.js';
import { waitUntilNothingHeld } from '../kit/faults/hold-sessions.js';
import { Harness, type TaskRow } from '../kit/harness.js';
import { waitFor, type Server } from '../kit/servers/index.js';
import { keysOfGroup } from '../kit/standin/schema.js';

const ITEM = 'UPDATE items SET v = v + 1 WHERE id = $1';
const NOTE = 'UPDATE notes SET v = v + 1 WHERE id = $1';
const CLIENTS = 12;

const { hasCitus } = inject('template').binaries;

/** Several primaries of one host that are stopped in turn are such a case. */
describe('a hold beside a held group', () => {
  let h: Harness;
  let controller: ControllerProcess;
  /** Of group 2: a row of items and notes for each client. */
  let keys: number[];
  const clients: BusyClient[] = [];
  const actors: Actor[] = [];

  beforeAll(async () => {
    h = await Harness.start({ template: inject('template'), groups: 3, standbys: false });
    keys = await keysOfGroup(h.db, 2, CLIENTS);
    for (const key of keys) {
      await h.db.query('INSERT INTO items VALUES ($1, 0)', [key]);
      await h.db.query('INSERT INTO notes VALUES ($1, 0)', [key]);
    }
  });
  beforeEach(async () => {
    controller = await h.startController();
  });
  afterEach(async () => {
    for (const { groupid } of h.cluster.workers) {
      await h.db.query('SELECT mpp_release($1)', [groupid]);
    }
    await Promise.all(clients.splice(0).map((client) => client.stop()));
    await Promise.all(actors.splice(0).map((actor) => actor.end()));
    await waitUntilNothingHeld(h);
    await controller.end();
  });
  afterAll(async () => h.stop());

  async function demote(
    groupid: number,
    pause: 'writes' | 'all',
    cooldown: string,
  ): Promise<TaskRow> {
    const node = h.cluster.group(groupid).primary;
    const report = { groupid, node, pause, cooldown, timeout: '5min' };
    return h.request({ ...report, event: 'before_demote' });
  }

  /** Clients that are in a transaction of some 25 ms all the time, shared out among the entry nodes. */
  async function startClients(entries: readonly Server[]): Promise<void> {
    for (const [index, key] of keys.entries()) {
      const entry = entries[index % entries.length] ?? h.cluster.coordinator;
      // The rows of a client are its own, and for most clients on two shards, in either order.
      const other = keys.at(-1 - index);
      const statements = [[ITEM, [key]], ['SELECT pg_sleep(0.025)'], [NOTE, [other]]] as const;
      clients.push(await BusyClient.start(entry, statements));
    }
    await Promise.all(clients.map((client) => client.progress(2)));
  }

  function expectNoSessionTerminated(): void {
    expect(clients.map(({ failure }) => failure)).toEqual(clients.map(() => undefined));
    expect(terminated(controller.log)).toEqual([]);
  }

  describe.each([
    { where: 'the coordinator', groupids: [0] },
    { where: 'the coordinator and another worker', groupids: [0, 3] },
  ])('with clients in short transactions all the time through $where', ({ groupids }) => {
    it.each([
      { first: 'writes', second: 'writes' },
      { first: 'all', second: 'writes' },
      { first: 'writes', second: 'all' },
    ] as const)(
      'waits for their transactions and terminates no session: $second beside $first',
      async ({ first, second }) => {
        // Of two groups that are held with `all` the clients of both wait from the first one on.
        const pausesClients = first === 'all';
        if (!pausesClients) expect((await demote(1, first, '2s')).status).toBe('holding');
        await startClients(groupids.map((groupid) => h.cluster.group(groupid).primary));
        if (pausesClients) expect((await demote(1, first, '2s')).status).toBe('holding');
        expect(await demote(2, second, '2s')).toMatchObject({ status: 'holding', reason: null });
        expect(await h.holds()).toBe(2);
        expectNoSessionTerminated();
        for (const groupid of [2, 1]) await h.db.query('SELECT mpp_release($1)', [groupid]);
        await Promise.all(clients.map((client) => client.progress(1)));
        expectNoSessionTerminated();
      },
    );
  });

  it('waits outside the queue for a transaction that has written to its group and waits for the other hold', async () => {
    const { coordinator } = h.cluster;
    const [own = 0, free = 0] = keys;
    const [held = 0] = await keysOfGroup(h.db, 1, 1);
    await h.db.query('INSERT INTO items VALUES ($1, 0) ON CONFLICT DO NOTHING', [held]);
    const between = await Actor.connect(coordinator);
    const writer = await Actor.connect(coordinator);
    actors.push(between, writer);
    expect((await demote(1, 'writes', '1min')).status).toBe('holding');
    await between.begin(ITEM, [own]);
    const sent = await between.sendAndWait(ITEM, [held]);
    const node = h.cluster.group(2).primary;
    const report = { groupid: 2, node, pause: 'writes', cooldown: '1s', timeout: '5min' } as const;
    const id = await h.report({ ...report, event: 'before_demote' });
    await waitFor('the reason to name the transaction', async () => {
      const { reason } = await h.task(id);
      return reason?.includes(`pid ${between.pid}`);
    });
    // Past its cooldown and its patience, the hold neither terminates it nor makes other clients wait.
    for (let n = 0; n < 20; n += 1) await writer.query(ITEM, [free]);
    expect((await h.task(id)).status).toBe('claimed');
    await h.db.query('SELECT mpp_release(1)');
    await sent.answer;
    await between.query('COMMIT');
    expect((await h.acknowledged(id)).status).toBe('holding');
    expectNoSessionTerminated();
  });

  // Its detector takes local transactions for one, and a client that waits between two of them for a deadlock.
  it.skipIf(!hasCitus)('is made of transactions that Citus tells from one another', async () => {
    expect((await demote(1, 'writes', '1min')).status).toBe('holding');
    expect((await demote(2, 'all', '1min')).status).toBe('holding');
    for (const { groupid, primary } of h.cluster.groups) {
      const { rows } = await primary.withSession((db) => db.query<{ number: string }>(NUMBERS));
      const numbers = rows.map(({ number }) => number);
      // The held groups' own primaries are left alone by their holds.
      expect(numbers.length).toBeGreaterThan(groupid === 0 ? 2 : 0);
      expect(new Set(numbers).size).toBe(numbers.length);
      expect(numbers).not.toContain('0');
    }
  });

  it.each(['writes', 'all'] as const)(
    'that is opened with %s is there at once when no client uses its group',
    async (pause) => {
      expect((await demote(1, 'writes', '1min')).status).toBe('holding');
      const reader = await Actor.connect(h.cluster.coordinator);
      actors.push(reader);
      expect(await demote(2, pause, '1min')).toMatchObject({ status: 'holding', reason: null });
      const write = await reader.sendAndWait(ITEM, [keys[0]]);
      // Table locks that only one hold asked for may stay until the other one ends.
      for (const groupid of [2, 1]) await h.db.query('SELECT mpp_release($1)', [groupid]);
      await write.answer;
    },
  );
});

const NUMBERS = `
  SELECT coalesce(t.transaction_number, 0)::text AS number
  FROM pg_stat_activity AS a
  LEFT JOIN get_all_active_transactions() AS t ON t.process_id = a.pid
  WHERE a.application_name ~ '^mpp-controller (group [0-9]|shared locks|pause of)'`;
