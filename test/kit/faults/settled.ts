import { expect } from 'vitest';
import type { Harness } from '../harness.js';
import { waitFor } from '../servers/index.js';

/** A row of pg_dist_node as mpp_task_log has it. */
interface LoggedNode {
  readonly nodeid: number;
  readonly noderole: string;
  readonly nodename: string;
  readonly nodeport: number;
}

/** A group as it was, so that what the log says can be followed from there. */
export interface GroupSnapshot {
  readonly groupid: number;
  readonly nodes: readonly LoggedNode[];
  readonly lastLogId: string;
}

export async function snapshotOf(h: Harness, groupid: number): Promise<GroupSnapshot> {
  const { rows } = await h.db.query<{ last: string }>(
    'SELECT coalesce(max(id), 0) AS last FROM mpp_task_log',
  );
  return { groupid, nodes: await loggedNodes(h, groupid), lastLogId: rows[0]?.last ?? '0' };
}

/**
 * Waits until nothing is left to do, and expects that nothing is paused and that the log tells every
 * change of the group's rows since the snapshot, each in the commit of a task: it leads from the rows
 * then to the rows now.
 *
 * @param key of `items`, of the group.
 */
export async function expectSettled(h: Harness, since: GroupSnapshot, key: number): Promise<void> {
  await waitFor(
    'all tasks to end',
    async () => {
      const { rows } = await h.db.query('SELECT id FROM mpp_tasks WHERE finished_at IS NULL');
      return rows.length === 0;
    },
    { timeoutMs: 20_000 },
  );
  await waitFor('no group to be held', async () => {
    const { rowCount } = await h.db.query(GROUP_LOCKS);
    return rowCount === 0;
  });
  await expectWritable(h, key);
  await expectLogTellsAll(h, since);
}

/** A write that has to wait for a hold fails here. */
export async function expectWritable(h: Harness, key: number): Promise<void> {
  await h.cluster.coordinator.withSession(async (session) => {
    await session.query("SET statement_timeout = '5s'");
    await session.query('INSERT INTO notes VALUES ($1, 0)', [key]);
    await session.query('DELETE FROM notes WHERE id = $1', [key]);
  });
}

async function expectLogTellsAll(h: Harness, since: GroupSnapshot): Promise<void> {
  const { rows } = await h.db.query<{ before: LoggedNode[]; after: LoggedNode[] }>(LOGGED_CHANGES, [
    since.groupid,
    since.lastLogId,
  ]);
  let known = JSON.stringify(since.nodes);
  for (const { before, after } of rows) {
    // All tasks of a hold are logged with the one change that ends it.
    if (JSON.stringify(sorted(after)) === known) continue;
    expect(JSON.stringify(sorted(before))).toBe(known);
    known = JSON.stringify(sorted(after));
  }
  expect(JSON.stringify(await loggedNodes(h, since.groupid))).toBe(known);
}

async function loggedNodes(h: Harness, groupid: number): Promise<LoggedNode[]> {
  const { rows } = await h.db.query<LoggedNode>(GROUP_NODES, [groupid]);
  return sorted(rows);
}

function sorted(nodes: readonly LoggedNode[]): LoggedNode[] {
  return nodes
    .map(({ nodeid, noderole, nodename, nodeport }) => ({ nodeid, noderole, nodename, nodeport }))
    .sort((a, b) => a.nodeid - b.nodeid);
}

const GROUP_LOCKS = 'SELECT FROM mpp_group_sessions';

const LOGGED_CHANGES = `
  SELECT node_before AS before, node_after AS after
  FROM mpp_task_log
  WHERE groupid = $1 AND id > $2 AND node_after IS NOT NULL
  ORDER BY id`;

const GROUP_NODES = `
  SELECT nodeid, noderole::text AS noderole, nodename, nodeport
  FROM pg_dist_node
  WHERE groupid = $1 AND nodecluster = 'default'
  ORDER BY nodeid`;
