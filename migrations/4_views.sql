-- What a DBA looks at.
SELECT set_config('search_path', current_setting('mpp.objects_path'), true);

-- The order is that of the claim in src/tasks/claim.ts; a test holds the two together.
CREATE VIEW mpp_queue AS
WITH open_tasks AS (
    SELECT t.*,
           max(t.id) FILTER (WHERE t.status = 'holding') OVER (PARTITION BY t.groupid) AS newest_holding,
           min(t.id) FILTER (WHERE t.status = 'claimed') OVER (PARTITION BY t.groupid) AS claimed_task
    FROM mpp_tasks AS t
    WHERE t.finished_at IS NULL
), judged AS (
    SELECT o.*,
           o.event <> 'after_promote'
               AND coalesce(o.deadline, o.created_at + o.timeout) <= clock_timestamp() AS late,
           o.newest_holding IS NOT NULL
               AND (o.newest_holding > o.id OR (o.event = 'after_promote' AND o.source <> 'client')) AS frozen
    FROM open_tasks AS o
), ready AS (
    SELECT j.*,
           j.status = 'pending'
               AND NOT j.late
               AND NOT j.frozen
               AND (j.not_before IS NULL OR j.not_before <= clock_timestamp()) AS due
    FROM judged AS j
), ranked AS (
    SELECT r.*,
           min(r.id) FILTER (WHERE r.due) OVER (PARTITION BY r.groupid) AS first_due
    FROM ready AS r
)
SELECT row_number() OVER (
           ORDER BY status <> 'pending' DESC, due DESC, newest_holding IS NOT NULL DESC, groupid = 0 DESC, id
       ) AS position,
       id, groupid, event, nodename, nodeport, status, source, attempt, not_before,
       clock_timestamp() - created_at AS age,
       CASE
           WHEN status = 'holding' THEN format('the traffic of group %s waits, until %s at most', groupid, to_char(deadline, 'HH24:MI:SS'))
           WHEN status = 'claimed' THEN format('running since %s', to_char(claimed_at, 'HH24:MI:SS'))
           WHEN late THEN 'too late: it will be ended'
           WHEN frozen THEN format('waits for the hold of its group, task %s, to end', newest_holding)
           WHEN claimed_task IS NOT NULL THEN format('waits for task %s of its group', claimed_task)
           WHEN first_due < id THEN format('waits for task %s of its group', first_due)
           WHEN not_before > clock_timestamp() THEN format('attempt %s is due at %s', attempt + 1, to_char(not_before, 'HH24:MI:SS'))
           WHEN newest_holding IS NOT NULL THEN 'its group is held'
           WHEN (SELECT count(DISTINCT h.groupid) FROM open_tasks AS h WHERE h.status = 'holding') >= (
               SELECT c.max_holds
               FROM mpp_controllers AS c
               JOIN pg_locks AS l ON l.pid = c.backend_pid
               WHERE l.locktype = 'advisory' AND l.classid = 1297109066 AND l.objid = 0 AND l.granted
                 AND l.database = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
               ORDER BY c.heartbeat_at DESC
               LIMIT 1
           ) THEN 'waits for the hold of another group to end'
           WHEN groupid = 0 THEN 'group 0 comes before the others'
           ELSE 'by age'
       END AS why
FROM ranked;
COMMENT ON VIEW mpp_queue IS 'Pending and running tasks in the order in which they will be taken, with the reason for it.';

CREATE VIEW mpp_holds AS
SELECT t.groupid,
       min(t.held_at) AS held_since,
       max(t.deadline) AS deadline,
       max(t.claimed_by) AS controller,
       array_agg(t.id ORDER BY t.id) AS tasks,
       s.pid,
       coalesce(s.sessions_waiting, 0) AS sessions_waiting,
       string_agg(t.reason, '; ' ORDER BY t.id) AS reason
FROM mpp_tasks AS t
LEFT JOIN LATERAL (
    SELECT l.pid,
           (SELECT count(DISTINCT w.pid)
            FROM pg_locks AS w
            WHERE NOT w.granted AND l.pid = ANY (pg_blocking_pids(w.pid))) AS sessions_waiting
    FROM pg_locks AS l
    WHERE l.locktype = 'advisory' AND l.classid = 1297109064 AND l.objid = t.groupid::oid AND l.objsubid = 2
      AND l.database = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
      AND l.granted
) AS s ON true
WHERE t.status = 'holding'
GROUP BY t.groupid, s.pid, s.sessions_waiting;
COMMENT ON VIEW mpp_holds IS
    'Groups held now. pid is the server process of the hold; NULL while its session is gone and a controller has yet to take the tasks up again. sessions_waiting are those it blocks directly.';

-- The server gives a pid anew, so a pid alone says little: it is the controller's that registered it last,
-- and its session must be one of ours. The name of a session is shown to every role, its start is not.
CREATE VIEW mpp_status AS
SELECT c.id AS controller,
       CASE
           WHEN c.id IS NULL THEN 'none'
           WHEN leader.pid IS NOT NULL THEN 'active'
           WHEN alive.pid IS NOT NULL THEN 'standby'
           ELSE 'gone'
       END AS state,
       c.host, c.pid, c.version, c.strategy, c.max_holds, c.started_at, c.heartbeat_at,
       queue.backlog, queue.oldest_pending, queue.holds
FROM (
    SELECT count(*) FILTER (WHERE t.status = 'pending') AS backlog,
           clock_timestamp() - min(t.created_at) FILTER (WHERE t.status = 'pending') AS oldest_pending,
           count(DISTINCT t.groupid) FILTER (WHERE t.status = 'holding') AS holds
    FROM mpp_tasks AS t
    WHERE t.finished_at IS NULL
) AS queue
LEFT JOIN mpp_controllers AS c ON true
LEFT JOIN LATERAL (
    SELECT c.backend_pid AS pid
    WHERE NOT EXISTS (
        SELECT FROM mpp_controllers AS newer
        WHERE newer.backend_pid = c.backend_pid AND newer.heartbeat_at > c.heartbeat_at
    )
) AS mark ON true
LEFT JOIN pg_locks AS leader
    ON leader.locktype = 'advisory' AND leader.classid = 1297109066 AND leader.objid = 0 AND leader.objsubid = 2
   AND leader.database = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
   AND leader.granted AND leader.pid = mark.pid
LEFT JOIN pg_stat_get_activity(mark.pid) AS alive
    ON mark.pid IS NOT NULL
   AND alive.datid = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
   AND alive.application_name = 'mpp-controller control';
COMMENT ON VIEW mpp_status IS
    'Controllers (active, standby, gone) and the backlog. One row with state none where no controller has ever registered.';

SELECT set_config('search_path', current_setting('mpp.bookkeeping_path'), true);
