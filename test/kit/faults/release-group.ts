import type { Harness } from '../harness.js';
import { waitFor } from '../servers/index.js';

/** Ends all tasks of a group, those of a hold that is still being opened as well. */
export async function releaseGroup(h: Harness, groupid: number): Promise<void> {
  await waitFor(`the tasks of group ${groupid} to end`, async () => {
    await h.db.query('SELECT mpp_release($1)', [groupid]);
    const { rowCount } = await h.db.query(OPEN, [groupid]);
    return rowCount === 0;
  });
}

const OPEN = 'SELECT FROM mpp_tasks WHERE groupid = $1 AND finished_at IS NULL';
