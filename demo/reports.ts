import type { ClientBase } from 'pg';
import type { Server } from '../test/kit/servers/server.js';

export type Pause = 'none' | 'writes' | 'all';

/** What an HA manager, or a client, tells the controller. */
export interface Report {
  readonly event: 'before_demote' | 'before_promote' | 'after_promote' | 'suspect';
  readonly groupid: number;
  readonly node: Server;
  readonly pause?: Pause;
}

/** A row of mpp_tasks; times in milliseconds since 1970 by the server's clock. */
export interface ReportedTask {
  readonly id: string;
  readonly event: string;
  readonly node: string;
  readonly status: string;
  readonly reason: string | null;
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
  { event, groupid, node, pause }: Report,
  expected: 'holding' | 'done',
): Promise<ReportedTask> {
  const values = [event, groupid, node.host, node.port, pause];
  const id = (await session.query<{ id: string }>(INSERT, values)).rows[0]?.id;
  await session.query('CALL mpp_wait($1)', [id]);
  const [task] = (await session.query<ReportedTask>(SELECT_TASK, [id])).rows;
  if (task?.status === expected) return task;
  throw new Error(
    `task ${id ?? '?'}, ${event} of group ${groupid}, is ${task?.status ?? 'missing'} ` +
      `and not ${expected}: ${task?.reason ?? 'no reason given'}`,
  );
}

export async function readNodes(session: ClientBase): Promise<NodeRow[]> {
  return (await session.query<NodeRow>(SELECT_NODES)).rows;
}

/** All rows that the traffic has inserted, and all increments. */
export async function sumOfChanges(session: ClientBase): Promise<number> {
  const { rows } = await session.query<{ changes: number }>(SUM_OF_CHANGES);
  return rows[0]?.changes ?? 0;
}

const INSERT = `
  INSERT INTO mpp_tasks (event, groupid, nodename, nodeport, pause)
  VALUES ($1, $2, $3, $4, $5)
  RETURNING id`;

const SELECT_TASK = `
  SELECT id, event, format('%s:%s', nodename, nodeport) AS node, status, reason,
    (extract(epoch FROM created_at) * 1000)::float8 AS "createdAt",
    (extract(epoch FROM held_at) * 1000)::float8 AS "heldAt",
    (extract(epoch FROM finished_at) * 1000)::float8 AS "finishedAt"
  FROM mpp_tasks
  WHERE id = $1`;

const SELECT_NODES = `
  SELECT nodeid, groupid, noderole::text AS role, format('%s:%s', nodename, nodeport) AS node
  FROM pg_dist_node
  ORDER BY groupid, nodeid`;

const SUM_OF_CHANGES = `
  SELECT ((SELECT count(*) FROM items)
    + (SELECT coalesce(sum(v), 0) FROM items)
    + (SELECT coalesce(sum(v), 0) FROM notes))::integer AS changes`;
