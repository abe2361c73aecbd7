import type { ClientBase } from 'pg';
import type { Server } from '../servers/server.js';

export type DemoEvent = 'before_demote' | 'before_promote' | 'after_promote';

/** A row of mpp_tasks; times in milliseconds since 1970 by the server's clock. */
export interface ReportedTask {
  readonly id: string;
  readonly event: string;
  readonly groupid: number;
  readonly node: string;
  readonly status: string;
  readonly reason: string | null;
  readonly nodeid: number | null;
  readonly attempt: number;
  readonly createdAt: number;
  readonly heldAt: number | null;
  readonly finishedAt: number | null;
}

/** A row of pg_dist_node. */
export interface NodeRow {
  readonly nodeid: number;
  readonly groupid: number;
  readonly role: string;
  readonly node: string;
}

/**
 * Reports an event with a plain INSERT, and waits until the controller has acknowledged it.
 *
 * @throws Error when the task is not acknowledged, or not with `expected`
 */
export async function report(
  session: ClientBase,
  event: DemoEvent,
  groupid: number,
  node: Server,
  expected: 'holding' | 'done',
): Promise<ReportedTask> {
  const { rows } = await session.query<{ id: string }>(INSERT, [
    event,
    groupid,
    node.host,
    node.port,
  ]);
  const id = rows[0]?.id;
  await session.query('CALL mpp_wait($1)', [id]);
  const [task] = await readTasks(session, id);
  if (task?.status === expected) return task;
  throw new Error(
    `task ${id ?? '?'}, ${event} of group ${groupid}, is ${task?.status ?? 'missing'} ` +
      `and not ${expected}: ${task?.reason ?? 'no reason given; see the log of the controller'}`,
  );
}

/** The task with this id, or all of them. */
export async function readTasks(session: ClientBase, id?: string): Promise<ReportedTask[]> {
  return (await session.query<ReportedTask>(SELECT_TASKS, [id ?? null])).rows;
}

export async function readNodes(session: ClientBase): Promise<NodeRow[]> {
  return (await session.query<NodeRow>(SELECT_NODES)).rows;
}

/** Rows of `items`. */
export async function countItems(session: ClientBase): Promise<number> {
  const { rows } = await session.query<{ count: number }>(COUNT_ITEMS);
  return rows[0]?.count ?? 0;
}

const INSERT = `
  INSERT INTO mpp_tasks (event, groupid, nodename, nodeport)
  VALUES ($1, $2, $3, $4)
  RETURNING id`;

const SELECT_TASKS = `
  SELECT id, event, groupid, format('%s:%s', nodename, nodeport) AS node, status, reason, nodeid, attempt,
    (extract(epoch FROM created_at) * 1000)::float8 AS "createdAt",
    (extract(epoch FROM held_at) * 1000)::float8 AS "heldAt",
    (extract(epoch FROM finished_at) * 1000)::float8 AS "finishedAt"
  FROM mpp_tasks
  WHERE id = $1 OR $1 IS NULL
  ORDER BY id`;

const SELECT_NODES = `
  SELECT nodeid, groupid, noderole::text AS role, format('%s:%s', nodename, nodeport) AS node
  FROM pg_dist_node
  ORDER BY groupid, nodeid`;

const COUNT_ITEMS = 'SELECT count(*)::integer AS count FROM items';
