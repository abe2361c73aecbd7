import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, inject, it } from 'vitest';
import type { ControllerProcess } from '../kit/controller-process.js';
import { Actor } from '../kit/faults/actor.js';
import { cancelled, terminated, type Interruption } from '../kit/faults/hold-log.js';
import { waitUntilNothingHeld } from '../kit/faults/hold-sessions.js';
import { releaseGroup } from '../kit/faults/release-group.js';
import { primaryAddress } from '../kit/faults/subject.js';
import { Harness, type TaskRow } from '../kit/harness.js';
import { waitFor, type Server } from '../kit/servers/index.js';
import { waitUntilSynced } from '../kit/standin/observe.js';
import { keysOfGroup } from '../kit/standin/schema.js';

const { hasCitus } = inject('template').binaries;
const UPDATE = 'UPDATE items SET v = v + 1 WHERE id = $1';

/** Early is long before its end. */
const COOLDOWN_MS = 30_000;
const LONG = { cooldown: `${COOLDOWN_MS} ms`, timeout: '5min' } as const;

describe('what blocks a hold of group 1 and is no client', () => {
  let h: Harness;
  let controller: ControllerProcess;
  let key: number;
  const actors: Actor[] = [];

  beforeAll(async () => {
    h = await Harness.start({ template: inject('template'), groups: 3, standbys: false });
    [key = 0] = await keysOfGroup(h.db, 1, 1);
    await h.db.query('INSERT INTO items SELECT id, 0 FROM generate_series(1, 100) AS id');
    await h.db.query('INSERT INTO lookup VALUES (1, 0)');
  });
  beforeEach(async () => {
    controller = await h.startController();
  });
  afterEach(async () => {
    await Promise.all(actors.splice(0).map((actor) => actor.end()));
    await releaseGroup(h, 1);
    await waitUntilNothingHeld(h);
    await waitUntilSynced(h.db);
    await controller.end();
  });
  afterAll(async () => h.stop());

  async function through(server: Server, application = 'shop'): Promise<Actor> {
    const actor = await Actor.connect(server, application);
    actors.push(actor);
    return actor;
  }

  async function demote(
    pause: 'writes' | 'all',
    options: { cooldown?: string; timeout?: string } = LONG,
  ): Promise<string> {
    const node = await primaryAddress(h, 1);
    return h.report({ event: 'before_demote', groupid: 1, node, pause, ...options });
  }

  async function held(id: string): Promise<TaskRow> {
    const task = await h.acknowledged(id);
    expect(task.status).toBe('holding');
    return task;
  }

  /** Waits until the reason of a task that is not held yet says so. */
  async function reasonOf(id: string, ...texts: string[]): Promise<string> {
    return waitFor(`the reason to name ${texts.join(', ')}`, async () => {
      const { reason } = await h.task(id);
      if (reason && texts.every((text) => reason.includes(text))) return reason;
      throw new Error(String(reason));
    });
  }

  describe.skipIf(!hasCitus)('maintenance', () => {
    /** Starts it, and has it wait for a lock of another session on group 2. */
    async function beginMaintenance(
      entry: Server,
      statement: string,
      table: string,
    ): Promise<{ client: Actor; other: Actor; answer: Promise<unknown> }> {
      const { primary } = h.cluster.group(2);
      const other = await through(primary, 'backup');
      await other.query('SET citus.override_table_visibility = off');
      await other.query('SET citus.enable_manual_changes_to_shards = on');
      const { rows } = await other.query(SHARDS_HERE, [`^${table}_[0-9]+$`]);
      const shards = rows.map(({ name }) => name as string);
      await other.begin(`LOCK TABLE ${shards.join(', ')} IN SHARE UPDATE EXCLUSIVE MODE`);
      const client = await through(entry, 'maintenance');
      const { answer } = client.send(statement);
      const waits = primary.withSession((db) =>
        waitFor(`${statement} to wait`, async () => {
          return (await db.query(WAITS_FOR, [other.pid])).rows.length > 0;
        }),
      );
      // What Citus refuses does not wait.
      await Promise.race([waits, answer]);
      return { client, other, answer };
    }

    function expectCancelledEarly({ server, pid }: Actor): void {
      const interruptions = cancelled(controller.log);
      const isClient = (one: Interruption): boolean =>
        one.pid === pid && one.server === server.address;
      expect(interruptions.filter(isClient)).toHaveLength(1);
      for (const { blockedMs } of interruptions) expect(blockedMs).toBeLessThan(COOLDOWN_MS / 2);
      // A session of Citus that works for the client on another node may block the hold as well.
      const others = interruptions.filter((one) => !isClient(one));
      expect(others.filter(({ application }) => !/^citus_internal/.test(application))).toEqual([]);
      expect(terminated(controller.log)).toEqual([]);
    }

    describe.each([
      { entry: 'the coordinator', groupid: 0 },
      { entry: 'another worker', groupid: 3 },
    ])('through $entry', ({ groupid }) => {
      it.each([
        { statement: 'VACUUM items', table: 'items', pause: 'writes' },
        { statement: 'VACUUM items', table: 'items', pause: 'all' },
        { statement: 'VACUUM lookup', table: 'lookup', pause: 'writes' },
        { statement: 'ANALYZE items', table: 'items', pause: 'all' },
        { statement: 'ANALYZE lookup', table: 'lookup', pause: 'writes' },
      ] as const)(
        '$statement is cancelled early and its session lives, with $pause',
        async ({ statement, table, pause }) => {
          const entry = h.cluster.group(groupid).primary;
          const { client, answer } = await beginMaintenance(entry, statement, table);
          const { reason } = await held(await demote(pause));
          await expect(answer).rejects.toMatchObject({ code: '57014' });
          await client.query('SELECT 1');
          expect(reason).toContain(`pid ${client.pid}`);
          expect(reason).toMatch(new RegExp(statement.split(' ')[0] ?? '', 'i'));
          expectCancelledEarly(client);
        },
      );
    });

    it('REINDEX TABLE through the coordinator is cancelled early and its session lives', async () => {
      const statement = 'REINDEX TABLE items';
      const { client, answer } = await beginMaintenance(h.cluster.coordinator, statement, 'items');
      const { reason } = await held(await demote('all'));
      await expect(answer).rejects.toMatchObject({ code: '57014' });
      await client.query('SELECT 1');
      expect(reason).toContain(`pid ${client.pid}`);
      expectCancelledEarly(client);
    });

    it('REINDEX TABLE CONCURRENTLY blocks no hold and is left alone', async () => {
      const statement = 'REINDEX TABLE CONCURRENTLY items';
      const { coordinator } = h.cluster;
      const { other, answer } = await beginMaintenance(coordinator, statement, 'items');
      expect((await held(await demote('all'))).reason).toBeNull();
      await other.query('COMMIT');
      await releaseGroup(h, 1);
      await answer;
      expect([...cancelled(controller.log), ...terminated(controller.log)]).toEqual([]);
    });
  });

  describe('a prepared transaction', () => {
    const GID = 'shop-4711';

    afterEach(async () => {
      const { rowCount } = await h.db.query('SELECT FROM pg_prepared_xacts WHERE gid = $1', [GID]);
      if (rowCount !== 0) await h.db.query(`ROLLBACK PREPARED '${GID}'`);
    });

    /** Citus itself prepares none that has written to several nodes; the lock is what blocks. */
    async function prepare(): Promise<string> {
      const client = await through(h.cluster.coordinator);
      await client.query("SET citus.enable_ddl_propagation = 'off'");
      await client.begin('LOCK TABLE lookup IN ROW EXCLUSIVE MODE');
      await client.query(`PREPARE TRANSACTION '${GID}'`);
      const { rows } = await h.db.query<{ since: string }>(PREPARED_SINCE, [GID]);
      return rows[0]?.since ?? '';
    }

    it.each(['writes', 'all'] as const)(
      'of a reference table is named while the hold waits for it, with %s',
      async (pause) => {
        const since = await prepare();
        const id = await demote(pause);
        const reason = await reasonOf(id, GID, since);
        expect(reason).toMatch(/prepared transaction/);
        await h.db.query(`ROLLBACK PREPARED '${GID}'`);
        await held(id);
      },
    );

    it.each(['writes', 'all'] as const)(
      'of a reference table is named when the hold fails because of it, with %s',
      async (pause) => {
        const since = await prepare();
        const id = await demote(pause, { cooldown: '1s', timeout: '10s' });
        const { status, reason } = await h.acknowledged(id);
        expect(status).not.toBe('holding');
        expect(reason).toMatch(/prepared transaction/);
        expect(reason).toContain(GID);
        expect(reason).toContain(since);
        await (await through(h.cluster.coordinator)).query(UPDATE, [key]);
      },
    );
  });

  describe.skipIf(!hasCitus)('a shard move that lets clients write', () => {
    afterEach(async () => {
      await h.db.query(END_OPERATOR);
      await Promise.all(actors.splice(0).map((actor) => actor.end()));
      await h.db.query('CALL citus_cleanup_orphaned_resources()');
    });

    it.each(['writes', 'all'] as const)(
      'and is under way is named in the reason, with %s',
      async (pause) => {
        const [from, to] = [await primaryAddress(h, 1), await primaryAddress(h, 2)];
        // Its replication slot waits for this transaction, and with it the move.
        const old = await through(h.cluster.group(1).primary, 'backup');
        await old.begin('SELECT pg_current_xact_id()');
        const operator = await through(h.cluster.coordinator, 'operator');
        const values = [key, from.host, from.port, to.host, to.port];
        operator.send(MOVE, values);
        await old.server.withSession((db) =>
          waitFor('the move to wait', async () => {
            return (await db.query(WAITS_FOR, [old.pid])).rows.length > 0;
          }),
        );
        const id = await demote(pause);
        const reason = await reasonOf(id, `pid ${operator.pid}`);
        expect(reason).toContain(
          `a shard move of pid ${operator.pid} (public.items, public.notes, from `,
        );
        expect(reason).toContain(`pg_cancel_backend(${operator.pid})`);
      },
    );
  });
});

const MOVE = `
  SELECT citus_move_shard_placement(
    get_shard_id_for_distribution_column('items', $1::bigint), $2, $3, $4, $5, 'force_logical')`;

const SHARDS_HERE = `
  SELECT relname AS name FROM pg_class
  WHERE relname ~ $1 AND relkind = 'r' AND relnamespace = 'public'::regnamespace`;

const END_OPERATOR = `
  SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = 'operator'`;

const WAITS_FOR = `
  SELECT FROM pg_locks WHERE NOT granted AND $1 = ANY (pg_blocking_pids(pid))`;

const PREPARED_SINCE = `
  SELECT to_char(prepared AT TIME ZONE 'UTC', 'HH24:MI') AS since
  FROM pg_prepared_xacts WHERE gid = $1`;
