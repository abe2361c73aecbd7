import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, inject, it } from 'vitest';
import type { ControllerProcess } from '../kit/controller-process.js';
import { Actor } from '../kit/faults/actor.js';
import { cancelled, terminated } from '../kit/faults/hold-log.js';
import { waitUntilNothingHeld } from '../kit/faults/hold-sessions.js';
import { releaseGroup } from '../kit/faults/release-group.js';
import { subjectOf, type Subject } from '../kit/faults/subject.js';
import { Harness } from '../kit/harness.js';
import { waitFor } from '../kit/servers/index.js';
import { waitUntilSynced } from '../kit/standin/observe.js';

const { hasCitus } = inject('template').binaries;

describe('the snapshots of a hold', () => {
  let h: Harness;
  let controller: ControllerProcess;
  let subject: Subject;
  const actors: Actor[] = [];

  beforeAll(async () => {
    h = await Harness.start({ template: inject('template'), groups: 3, standbys: false });
    await h.db.query('INSERT INTO items SELECT id, 0 FROM generate_series(1, 100) AS id');
  });
  beforeEach(async () => {
    subject = await subjectOf(h, 1);
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

  async function hold(pause: 'writes' | 'all'): Promise<string> {
    const report = { groupid: 1, node: subject.node, pause, cooldown: '10min', timeout: '1h' };
    const task = await h.request({ ...report, event: 'before_demote' });
    expect(task.status).toBe('holding');
    return task.id;
  }

  /** Sessions of holds that keep the server from removing old rows, on any node. */
  async function pinned(): Promise<unknown[]> {
    const found = await Promise.all(
      h.cluster.groups.map(({ primary: server }) =>
        server.withSession(async (db) => {
          const { rows } = await db.query<Record<string, unknown>>(PINNED);
          return rows.map((row) => ({ server: server.name, ...row }));
        }),
      ),
    );
    return found.flat();
  }

  it.each(['writes', 'all'] as const)(
    'none is pinned while a group is held with %s, nor after before_promote',
    async (pause) => {
      await hold(pause);
      expect(await pinned()).toEqual([]);
      const { next: node } = subject;
      const promote = await h.request({ event: 'before_promote', groupid: 1, node, timeout: '1h' });
      expect(promote.status).toBe('holding');
      expect(await pinned()).toEqual([]);
    },
  );

  it('none is pinned by a hold that has terminated a session', async () => {
    const writer = await Actor.connect(h.cluster.coordinator);
    actors.push(writer);
    await writer.begin('UPDATE items SET v = v + 1 WHERE id = $1', [subject.key]);
    const { node } = subject;
    const report = { groupid: 1, node, pause: 'all', cooldown: '1s', timeout: '1h' } as const;
    expect((await h.request({ ...report, event: 'before_demote' })).status).toBe('holding');
    await writer.waitUntilLost();
    expect(await pinned()).toEqual([]);
  });

  describe.skipIf(!hasCitus)('CREATE INDEX CONCURRENTLY', () => {
    afterEach(async () => {
      await releaseGroup(h, 1);
      await waitUntilSynced(h.db);
      await h.db.query('DROP INDEX IF EXISTS items_v');
    });

    /** Starts to build an index, which waits on group 2 for a snapshot that a session there has. */
    async function beginBuild(): Promise<{
      builder: Actor;
      build: Promise<unknown>;
      goOn: () => Promise<unknown>;
    }> {
      const { primary } = h.cluster.group(2);
      const old = await Actor.connect(primary, 'backup');
      const builder = await Actor.connect(h.cluster.coordinator);
      actors.push(old, builder);
      await old.query('BEGIN ISOLATION LEVEL REPEATABLE READ');
      await old.query('SELECT count(*) FROM pg_class');
      const { answer } = builder.send('CREATE INDEX CONCURRENTLY items_v ON items (v)');
      await primary.withSession((db) =>
        waitFor('the build to wait for the snapshot', async () => {
          const { rows } = await db.query(WAITS_FOR_SNAPSHOT, [old.pid]);
          return rows.length > 0;
        }),
      );
      return { builder, build: answer, goOn: () => old.query('COMMIT') };
    }

    /** Returns once a statement waits for a hold on a worker. */
    async function waitsOnWorker({ pid }: Actor): Promise<void> {
      await waitFor('the statement to wait on a worker', async () => {
        const workers = h.cluster.groups.slice(1).map(({ primary }) => primary);
        const counts = await Promise.all(
          workers.map((server) =>
            server.withSession(async (db) => (await db.query(WORKS_AND_WAITS, [pid])).rowCount),
          ),
        );
        return counts.some((count) => count !== 0);
      });
    }

    async function expectValidIndex(): Promise<void> {
      for (const { primary } of h.cluster.groups) {
        const { rows } = await primary.withSession((db) => db.query<IndexRow>(INDEXES));
        expect(rows.length).toBeGreaterThan(0);
        expect(rows.filter(({ valid }) => !valid)).toEqual([]);
      }
    }

    async function commit(): Promise<void> {
      const { next: node } = subject;
      const report = { event: 'after_promote', groupid: 1, node, cooldown: '10min' } as const;
      expect((await h.request(report)).status).toBe('done');
      expect([...terminated(controller.log), ...cancelled(controller.log)]).toEqual([]);
    }

    it('that runs when the group is held with writes is left alone and ends with a valid index', async () => {
      const { build, goOn } = await beginBuild();
      await hold('writes');
      await goOn();
      await commit();
      await build;
      await expectValidIndex();
    });

    it('that waits on a node for a hold with all, and blocks its commit, is cancelled at once', async () => {
      const { builder, build, goOn } = await beginBuild();
      await hold('all');
      await goOn();
      const failed = expect(build).rejects.toMatchObject({ code: '57014' });
      await waitsOnWorker(builder);
      await commit();
      await failed;
      await controller.logged('what it cancelled', ({ msg }) =>
        msg.startsWith(`cancelled the statement of pid ${builder.pid} `),
      );
      await builder.query('SELECT 1');
    });
  });
});

interface IndexRow {
  readonly valid: boolean;
}

/** A session that looks at locks has a snapshot for as long as its statement runs. */
const PINNED = `
  SELECT pid, application_name AS name, state, backend_xmin AS xmin
  FROM pg_stat_activity
  WHERE application_name ~ '^mpp-controller (group|shared locks|pause)'
    AND state <> 'active' AND backend_xmin IS NOT NULL`;

const WAITS_FOR_SNAPSHOT = `
  SELECT FROM pg_locks
  WHERE NOT granted AND locktype = 'virtualxid' AND $1 = ANY (pg_blocking_pids(pid))`;

/** The last ten digits of a global pid are the pid. */
const WORKS_AND_WAITS = `
  SELECT
  FROM pg_stat_activity AS a
  JOIN pg_stat_activity AS b ON b.pid = ANY (pg_blocking_pids(a.pid))
  WHERE a.application_name ~ ('^citus_internal gpid=[0-9]+' || lpad($1::integer::text, 10, '0') || '$')
    AND b.application_name ~ '^mpp-controller (pause|shared locks)'`;

const INDEXES = `
  SELECT i.indisvalid AS valid
  FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid
  WHERE c.relname LIKE 'items_v%'`;
