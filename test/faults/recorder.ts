import type { Client } from 'pg';
import type { Harness } from '../kit/harness.js';

/**
 * Makes the server itself look at each acknowledgement, in the statement that makes it: the session of the
 * group must have all its locks by then.
 *
 * @returns how many locks the hold of each group has on the coordinator at least.
 */
export async function installRecorder(h: Harness): Promise<Map<number, number>> {
  const locks = new Map<number, number>();
  await h.db.query("SET citus.enable_ddl_propagation = 'off'");
  await h.db.query(TABLES);
  for (const { groupid } of h.cluster.workers) {
    const count = await countLocks(h.db, groupid);
    if (count === 0) throw new Error(`group ${groupid} has no shard of its own`);
    locks.set(groupid, count);
    await h.db.query('INSERT INTO faults_groups (groupid, locks) VALUES ($1, $2)', [
      groupid,
      count,
    ]);
  }
  await h.db.query(TRIGGER);
  await h.db.query(STATUS_TRIGGER);
  return locks;
}

/** A change of a task's status or attempt. mpp_task_log leaves some out, and says not which session made it. */
export interface StatusChange {
  readonly task_id: string;
  readonly status: string;
  readonly attempt: number;
  readonly reason: string | null;
  readonly controller: string | null;
  readonly changed_by: string;
}

export async function readChanges(db: Client): Promise<StatusChange[]> {
  const { rows } = await db.query<StatusChange>(
    'SELECT task_id, status, attempt, reason, controller, changed_by FROM faults_changes ORDER BY id',
  );
  return rows;
}

/** What the server has found in the acknowledgements since the last call. */
export async function takeRecorded(db: Client): Promise<string[]> {
  const { rows } = await db.query<{ what: string }>('DELETE FROM faults_seen RETURNING what');
  return rows.map(({ what }) => what);
}

async function countLocks(db: Client, groupid: number): Promise<number> {
  await db.query('BEGIN');
  try {
    await db.query(LOCK_GROUP, [groupid]);
    const { rows } = await db.query<{ count: number }>(COUNT);
    return rows[0]?.count ?? 0;
  } finally {
    await db.query('ROLLBACK');
  }
}

/** Shards of distributed tables; those of reference tables have placements in all groups. */
const LOCK_GROUP = `
  SELECT lock_shard_metadata(7, array_agg(s.shardid ORDER BY s.shardid))
  FROM pg_dist_shard AS s
  JOIN pg_dist_placement AS p USING (shardid)
  JOIN pg_dist_partition AS d USING (logicalrelid)
  WHERE p.groupid = $1 AND d.partmethod = 'h'`;

const COUNT = `
  SELECT count(*)::integer AS count
  FROM pg_locks AS l
  WHERE l.pid = pg_backend_pid() AND l.locktype = 'advisory' AND l.mode = 'ExclusiveLock' AND l.granted`;

const TABLES = `
  CREATE TABLE faults_groups (groupid integer PRIMARY KEY, locks integer NOT NULL);
  CREATE TABLE faults_seen (what text NOT NULL);
  CREATE TABLE faults_changes (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    task_id bigint NOT NULL,
    status text NOT NULL,
    attempt integer NOT NULL,
    reason text,
    controller text,
    changed_by name NOT NULL DEFAULT session_user
  )`;

/**
 * A session that is ended at this very moment has no locks, and is no session of the group any more: so it is
 * looked for after the locks.
 */
const TRIGGER = `
  CREATE FUNCTION faults_acknowledged() RETURNS trigger LANGUAGE plpgsql SET search_path = public AS $$
  DECLARE
    of_group record;
    found integer;
    holder integer;
  BEGIN
    -- A report that does not say what waits leaves a hold as it is.
    IF NEW.pause IS NULL AND EXISTS (
      SELECT FROM mpp_tasks AS t
      WHERE t.groupid = NEW.groupid AND t.status = 'holding' AND t.pause = 'none'
    ) THEN
      RETURN NULL;
    END IF;
    SELECT s.pid INTO holder FROM mpp_group_sessions AS s WHERE s.groupid = NEW.groupid;
    SELECT g.locks INTO of_group FROM faults_groups AS g WHERE g.groupid = NEW.groupid;
    SELECT count(*) INTO found
    FROM pg_locks AS l
    WHERE l.pid = holder AND l.locktype = 'advisory' AND l.mode = 'ExclusiveLock' AND l.granted;
    IF found < of_group.locks AND EXISTS (
      SELECT FROM mpp_group_sessions AS s WHERE s.groupid = NEW.groupid AND s.pid = holder
    ) THEN
      INSERT INTO faults_seen VALUES (format(
        'task %s was acknowledged while its group %s had %s of %s locks',
        NEW.id, NEW.groupid, found, of_group.locks));
    END IF;
    RETURN NULL;
  END
  $$;
  CREATE TRIGGER faults_acknowledged AFTER UPDATE OF status ON mpp_tasks
    FOR EACH ROW
    WHEN (NEW.status = 'holding' AND OLD.status <> 'holding' AND NEW.pause IS DISTINCT FROM 'none')
    EXECUTE FUNCTION faults_acknowledged()`;

const STATUS_TRIGGER = `
  CREATE FUNCTION faults_changed() RETURNS trigger LANGUAGE plpgsql SET search_path = public AS $$
  BEGIN
    IF TG_OP = 'INSERT' OR OLD.status <> NEW.status OR OLD.attempt <> NEW.attempt THEN
      INSERT INTO faults_changes (task_id, status, attempt, reason, controller)
      VALUES (NEW.id, NEW.status, NEW.attempt, NEW.reason, NEW.claimed_by);
    END IF;
    RETURN NULL;
  END
  $$;
  CREATE TRIGGER faults_changed AFTER INSERT OR UPDATE ON mpp_tasks
    FOR EACH ROW EXECUTE FUNCTION faults_changed()`;
