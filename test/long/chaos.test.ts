import { once } from 'node:events';
import type { Client } from 'pg';
import { afterAll, beforeAll, describe, expect, inject, it } from 'vitest';
import { onceASecond, pick, randomFrom, ReportStream } from '../kit/chaos.js';
import type { ControllerProcess } from '../kit/controller-process.js';
import { waitUntilNothingHeld } from '../kit/faults/hold-sessions.js';
import { primaryAddress } from '../kit/faults/subject.js';
import { Harness } from '../kit/harness.js';
import { waitFor } from '../kit/servers/index.js';
import { waitUntilSynced } from '../kit/standin/observe.js';

const SECONDS = Number(process.env['CHAOS_SECONDS'] ?? 15);
const SEED = Number(process.env['CHAOS_SEED'] ?? Math.floor(Math.random() * 1e9));
/** Each controller logs in as a role of its own, so that the server tells whose a session is. */
const ROLES = ['chaos_a', 'chaos_b', 'chaos_c'] as const;

/** One acknowledged hold, written down by the server in the statement that acknowledges it. */
interface Held {
  readonly task: string;
  readonly controller: string;
  readonly role: string;
  /** Roles of the sessions that have the lock of its group at that moment. */
  readonly holders: string[];
}

describe('three controllers, one of them killed every second', () => {
  let h: Harness;
  let random: () => number;
  const running = new Map<string, ControllerProcess>();
  /** Process ids of all that ever were, by role. */
  const roleOf = new Map<number, string>();

  beforeAll(async () => {
    h = await Harness.start({ template: inject('template'), groups: 4, standbys: false });
    for (const role of ROLES) await h.db.query(`CREATE ROLE ${role} LOGIN SUPERUSER`);
    await h.db.query(RECORD_HOLDS);
    random = randomFrom(SEED);
  });
  afterAll(async () => h.stop());

  function start(role: string): void {
    const { host, port } = h.cluster.coordinator;
    const controller = h.spawnController({
      DATABASE_URL: `postgres://${role}@${host}:${port}/postgres`,
      MPP_NODE_URL: 'postgres://postgres@/postgres',
    });
    running.set(role, controller);
    roleOf.set(controller.pid, role);
  }

  it(
    `every report ends, and nothing is held twice (CHAOS_SECONDS=${SECONDS} CHAOS_SEED=${SEED})`,
    async () => {
      for (const role of ROLES) start(role);
      await waitFor('one to be active', async () => (await states()).includes('active'), {
        timeoutMs: 20_000,
      });
      const streams = await Promise.all(
        h.cluster.workers.map(async ({ groupid }) =>
          ReportStream.open(
            h.cluster.coordinator,
            groupid,
            await primaryAddress(h, groupid),
            randomFrom(SEED + groupid),
          ),
        ),
      );
      const over = new AbortController();
      const watching = new AbortController();
      const watcher = await h.cluster.coordinator.connect('watcher');
      const watched = watch(watcher, watching.signal);
      watched.catch(() => undefined);
      let kills = 0;
      await Promise.all([
        ...streams.map((stream) => stream.run(over.signal)),
        onceASecond(over.signal, async () => {
          const role = pick(random, ROLES);
          await running.get(role)?.end('SIGKILL');
          kills += 1;
          start(role);
        }),
        longEnough().finally(() => over.abort()),
      ]);

      await waitFor(
        'every report to end',
        async () => {
          const { rows } = await h.db.query<{ open: number }>(
            'SELECT count(*)::integer AS open FROM mpp_tasks WHERE finished_at IS NULL',
          );
          return rows[0]?.open === 0;
        },
        { timeoutMs: 45_000 },
      );
      watching.abort();
      expect(await watched, 'held by two sessions at once').toEqual([]);
      await watcher.end();
      await waitUntilNothingHeld(h);

      expect(kills).toBeGreaterThan(SECONDS / 3);
      const { rows: failed } = await h.db.query(
        "SELECT id, event, reason FROM mpp_tasks WHERE status = 'failed' AND event = 'after_promote'",
      );
      expect(failed).toEqual([]);
      await expectLastReported(streams);
      await expectOneHolder();
    },
    (SECONDS + 180) * 1_000,
  );

  /** On a busy machine none of them may live long enough to hold anything in the time. */
  async function longEnough(): Promise<void> {
    await once(AbortSignal.timeout(SECONDS * 1_000), 'abort');
    await waitFor(
      'a hold to be acknowledged',
      async () => (await h.db.query('SELECT FROM chaos_holds LIMIT 1')).rowCount === 1,
      { timeoutMs: 60_000 },
    );
  }

  /** On the coordinator, and on every worker. */
  async function expectLastReported(streams: readonly ReportStream[]): Promise<void> {
    await waitUntilSynced(h.db);
    for (const { primary } of h.cluster.groups) {
      await primary.withSession(async (session) => {
        for (const stream of streams) {
          const [row] = await h.nodes(stream.groupid, session);
          expect(row?.node, `group ${stream.groupid} on ${primary.name}`).toBe(stream.last);
          expect(stream.count).toBeGreaterThan(0);
        }
      });
    }
  }

  /**
   * Whoever acknowledged a hold had the lock of its group, and nobody else. There is no lock when it was
   * killed in that moment: its sessions end in any order, and its statement may be the last to.
   */
  async function expectOneHolder(): Promise<void> {
    const { rows } = await h.db.query<Held>(
      'SELECT task, controller, role, holders FROM chaos_holds',
    );
    expect(rows.length).toBeGreaterThan(0);
    for (const { task, controller, role, holders } of rows) {
      expect(roleOf.get(Number(controller.split(':')[1])), `of task ${task}`).toBe(role);
      expect(
        holders.filter((holder) => holder !== role),
        `of task ${task}`,
      ).toEqual([]);
      expect(holders.length).toBeLessThanOrEqual(1);
    }
    const held = rows.filter(({ holders }) => holders.length === 1).length;
    expect(held).toBeGreaterThan(rows.length / 2);
  }

  async function states(): Promise<string[]> {
    const { rows } = await h.db.query<{ state: string }>('SELECT state FROM mpp_status');
    return rows.map(({ state }) => state);
  }

  /** Looks time and again whether two sessions have locks for the same group. @returns what it saw. */
  async function watch(session: Client, signal: AbortSignal): Promise<string[]> {
    const seen: string[] = [];
    while (!signal.aborted) {
      const { rows } = await session.query<{ name: string }>(TWICE);
      seen.push(...rows.map(({ name }) => name));
    }
    return seen;
  }
});

/** A hold of `shard-locks` has the shards of its group in the session of the group. */
const TWICE = `
  SELECT a.application_name AS name
  FROM pg_stat_activity AS a
  JOIN pg_locks AS l ON l.pid = a.pid AND l.locktype = 'advisory' AND l.granted
  WHERE a.application_name ~ '^mpp-controller group [0-9]+$'
  GROUP BY a.application_name
  HAVING count(DISTINCT a.pid) > 1`;

const RECORD_HOLDS = `
  CREATE TABLE chaos_holds (
    task bigint, controller text, role text, holders text[]
  );
  CREATE FUNCTION chaos_record() RETURNS trigger LANGUAGE plpgsql AS $$
  BEGIN
    INSERT INTO public.chaos_holds
    SELECT NEW.id, NEW.claimed_by, session_user, coalesce(array_agg(a.usename::text), '{}')
    FROM public.mpp_group_sessions AS s
    JOIN pg_stat_activity AS a ON a.pid = s.pid
    WHERE s.groupid = NEW.groupid;
    RETURN NULL;
  END
  $$;
  CREATE TRIGGER chaos_record AFTER UPDATE OF status ON mpp_tasks
    FOR EACH ROW WHEN (NEW.status = 'holding' AND OLD.status <> 'holding')
    EXECUTE FUNCTION chaos_record()`;
