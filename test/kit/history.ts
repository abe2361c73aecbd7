import type { Client } from 'pg';
import { NODES_QUERY } from '../../src/mpp/citus/nodes.js';
import { lookHere, lookThere } from '../../src/databases/waiting.js';
import { readOutbox } from '../../src/databases/other-databases.js';
import { claimTask, othersWait } from '../../src/tasks/claim.js';
import { expire, takeBack } from '../../src/tasks/sweep.js';
import { endTasks, markHolding, pruneTasks, requeueTasks } from '../../src/tasks/finish.js';
import { compareMembers } from '../../src/topology/compare.js';
import { reportSuspect } from '../../src/topology/members.js';

/** How many tasks a database has. */
export interface HistorySize {
  readonly ended: number;
  /** Log entries of each ended task. */
  readonly logged: number;
  readonly open: number;
  /** Groups that the tasks are of, each with a primary in pg_dist_node and a member. */
  readonly groups: number;
}

/** Groups that are held; they come first. */
const HELD = 5;
const CONTROLLER = 'history';
const DAY_MS = 86_400_000;

/**
 * Fills an empty database, without triggers. None of the open tasks supersedes another. Ended tasks are of the last 30 days; the open ones are new
 * and wait for a day, so that none expires.
 *
 * @param db a superuser's session whose search_path is our schema
 */
export async function fillHistory(db: Client, size: HistorySize): Promise<void> {
  const { ended, logged, open, groups } = size;
  await db.query("SET session_replication_role = 'replica'");
  await db.query(FILL_NODES, [groups]);
  await db.query(FILL_MEMBERS);
  await db.query(FILL_ENDED, [ended, groups]);
  await db.query(FILL_LOG, [logged]);
  await db.query(FILL_OPEN, [open, groups, HELD, CONTROLLER]);
  await db.query("RESET session_replication_role; SET citus.enable_ddl_propagation = 'off'");
  await db.query('ANALYZE mpp_tasks, mpp_task_log, mpp_members');
}

const FILL_NODES = `
  INSERT INTO pg_dist_node (groupid, nodename, nodeport, noderole)
  SELECT g, format('worker-%s', g), 5432, 'primary'::noderole
  FROM generate_series(1, $1::integer) AS g`;

const FILL_MEMBERS = `
  INSERT INTO mpp_members (groupid, nodename, nodeport, source, role, state, since)
  SELECT n.groupid, n.nodename, n.nodeport, 'probe', 'primary', 'running', clock_timestamp()
  FROM pg_dist_node AS n
  WHERE n.groupid > 0`;

const FILL_ENDED = `
  INSERT INTO mpp_tasks (event, groupid, nodename, timeout, cooldown, source, status, attempt, claimed_by, nodeid,
                         created_at, claimed_at, held_at, finished_at)
  SELECT (ARRAY['before_demote', 'before_promote', 'after_promote', 'after_promote', 'suspect'])[1 + i % 5],
         1 + i % $2::integer, format('worker-%s', 1 + i % $2::integer), '30 s', '10 s',
         (ARRAY['client', 'client', 'sync', 'probe'])[1 + i % 4],
         (ARRAY['done', 'done', 'superseded', 'rolled_back', 'discarded', 'failed'])[1 + i % 6],
         1, 'history', 1, at.ended, at.ended, at.ended, at.ended
  FROM generate_series(1, $1::integer) AS i
  CROSS JOIN LATERAL (
    SELECT clock_timestamp() - interval '1 h' - (1 - i / $1::float8) * interval '29 days' AS ended
  ) AS at`;

const FILL_LOG = `
  INSERT INTO mpp_task_log (task_id, logged_at, groupid, event, status, attempt)
  SELECT t.id, t.finished_at, t.groupid, t.event, t.status, t.attempt
  FROM mpp_tasks AS t
  CROSS JOIN generate_series(1, $1::integer) AS i`;

/** The first of each of the held groups holds. */
const FILL_OPEN = `
  INSERT INTO mpp_tasks (event, groupid, nodename, timeout, cooldown, status, attempt, claimed_by,
                         claimed_at, held_at, deadline, expires_at)
  SELECT CASE WHEN i <= $3 THEN 'before_demote' ELSE 'suspect' END,
         g.id, format('worker-%s', g.id), '1 day', '10 s', CASE WHEN h.held THEN 'holding' ELSE 'pending' END,
         h.held::integer, CASE WHEN h.held THEN $4::text END,
         h.at, h.at, h.at + interval '1 day', clock_timestamp() + interval '1 day'
  FROM generate_series(1, $1::integer) AS i
  CROSS JOIN LATERAL (SELECT 1 + (i - 1) % $2::integer AS id) AS g
  CROSS JOIN LATERAL (
    SELECT i <= $3::integer AS held, CASE WHEN i <= $3::integer THEN clock_timestamp() END AS at) AS h`;

/** A statement whose work must not depend on how long the history is. */
export interface HistoryStatement {
  readonly name: string;
  /** A report of a client, what a controller runs by itself, a view, or what an operator calls. */
  readonly kind: 'report' | 'controller' | 'view' | 'operator';
  /** @param db a session that replaces `@mpp.` */
  readonly run: (db: Client) => Promise<unknown>;
}

const sql = (name: string, kind: HistoryStatement['kind'], text: string): HistoryStatement => ({
  name,
  kind,
  run: (db) => db.query(text),
});

const scope = (open: boolean): Parameters<typeof claimTask>[1] => ({
  controller: CONTROLLER,
  busy: [],
  held: HELD_GROUPS,
  open,
});

const HELD_GROUPS = Array.from({ length: HELD }, (_, index) => index + 1);

/** All that reads or changes tasks in a report, by itself, for an operator, or in a view. */
export const STATEMENTS: readonly HistoryStatement[] = [
  sql('INSERT of a before_demote', 'report', insert('before_demote', 9)),
  sql('INSERT of a suspect', 'report', insert('suspect', 9)),
  sql('INSERT of an after_promote', 'report', insert('after_promote', 9)),
  sql('INSERT of an after_promote by sync', 'report', insert('after_promote', 9, 'sync')),
  sql('mpp_submit', 'report', "SELECT @mpp.mpp_submit('before_promote', 9, 'worker-9')"),
  sql('mpp_report', 'report', "SELECT @mpp.mpp_report(9, 'worker-9', 5432, 'primary')"),
  sql(
    'mpp_follow',
    'report',
    `SELECT @mpp.mpp_follow('other', jsonb_build_object(
       'id', 1, 'event', 'before_promote', 'groupid', 9, 'nodename', 'worker-9', 'nodeport', 5432,
       'timeout', '30 s', 'cooldown', '10 s', 'status', 'pending', 'created_at', clock_timestamp()))`,
  ),
  { name: 'claim', kind: 'controller', run: (db) => claimTask(db, scope(true)) },
  { name: 'claim of a held group', kind: 'controller', run: (db) => claimTask(db, scope(false)) },
  { name: 'tasks of other groups', kind: 'controller', run: (db) => othersWait(db, HELD_GROUPS) },
  { name: 'expiry', kind: 'controller', run: (db) => expire(db) },
  {
    name: 'taking back of lost tasks',
    kind: 'controller',
    run: (db) => takeBack(db, { busy: [], held: HELD_GROUPS }),
  },
  {
    name: 'taking back what another has left',
    kind: 'controller',
    run: (db) => takeBack(db, { busy: [], held: [] }),
  },
  {
    name: 'mark holding',
    kind: 'controller',
    run: async (db) => markHolding(db, await held(db), 1, null),
  },
  {
    name: 'end',
    kind: 'controller',
    run: async (db) => endTasks(db, [await held(db)], { status: 'rolled_back', reason: 'over' }),
  },
  {
    name: 'back to the queue',
    kind: 'controller',
    run: async (db) => requeueTasks(db, [await held(db)], 'later', 1_000),
  },
  { name: 'prune with nothing old', kind: 'controller', run: (db) => pruneTasks(db, 30 * DAY_MS) },
  { name: 'comparison', kind: 'controller', run: compare },
  {
    name: 'suspect of the probe',
    kind: 'controller',
    run: (db) =>
      reportSuspect(
        db,
        NODES_QUERY,
        { groupid: 9, registered: 'primary', address: { host: 'worker-9', port: 5432 } },
        10_000,
      ),
  },
  { name: 'outbox', kind: 'controller', run: (db) => readOutbox(db, 'other', 100, []) },
  { name: 'look here', kind: 'controller', run: async (db) => lookHere(db, (await held(db)).id) },
  {
    name: 'look there',
    kind: 'controller',
    run: (db) => lookThere(db, { origin: 'other', id: '1', groupid: 9 }),
  },
  ...['mpp_queue', 'mpp_holds', 'mpp_status', 'mpp_topology'].map((view) =>
    sql(view, 'view', `SELECT * FROM @mpp.${view}`),
  ),
  sql('mpp_release', 'operator', 'SELECT @mpp.mpp_release(1)'),
  sql(
    'mpp_cancel',
    'operator',
    `SELECT @mpp.mpp_cancel(t.id) FROM @mpp.mpp_tasks AS t
     WHERE t.finished_at IS NULL AND t.groupid = 9 AND t.status = 'pending' LIMIT 1`,
  ),
];

function insert(event: string, groupid: number, source = 'client'): string {
  return `INSERT INTO @mpp.mpp_tasks (event, groupid, nodename, source)
          VALUES ('${event}', ${groupid}, 'worker-${groupid}', '${source}')`;
}

async function compare(db: Client): Promise<void> {
  await compareMembers(db, { nodesQuery: NODES_QUERY, ttlMs: DAY_MS, sources: ['table', 'probe'] });
}

/** The task that group 1 is held for. */
async function held(db: Client): Promise<{ controller: string; id: string; attempt: number }> {
  const { rows } = await db.query<{ id: string }>(
    `SELECT t.id FROM @mpp.mpp_tasks AS t WHERE t.finished_at IS NULL AND t.groupid = 1 AND t.status = 'holding'`,
  );
  return { controller: CONTROLLER, id: rows[0]?.id ?? '0', attempt: 1 };
}

/**
 * Runs a statement and takes it back.
 *
 * @returns how many rows of our tables, and entries of their indexes, it has read; as PostgreSQL counts
 *   them for the transaction, triggers and functions included.
 */
export async function rowsRead(db: Client, { run }: HistoryStatement): Promise<number> {
  const read = async (): Promise<number> =>
    (await db.query<{ read: number }>(READ)).rows[0]?.read ?? Number.NaN;
  await db.query('BEGIN');
  try {
    // The counters go on from one transaction to the next, until they are flushed between two.
    const before = await read();
    await run(db);
    return (await read()) - before;
  } finally {
    await db.query('ROLLBACK');
  }
}

const READ = `
  WITH ours AS (
    SELECT c.oid
    FROM pg_class AS c
    WHERE c.relkind = 'r' AND c.relname ~ '^mpp_'
  )
  SELECT sum(pg_stat_get_xact_tuples_returned(r.oid))::integer AS read
  FROM (
    SELECT o.oid FROM ours AS o
    UNION ALL
    SELECT i.indexrelid FROM pg_index AS i JOIN ours AS o ON o.oid = i.indrelid
  ) AS r`;
