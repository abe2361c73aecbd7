-- A hold has more than one session now: what several holds need is locked in sessions that they share.
SELECT set_config('search_path', current_setting('mpp.objects_path'), true);

CREATE OR REPLACE VIEW mpp_holds AS
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
            WHERE NOT w.granted AND pg_blocking_pids(w.pid) && (l.pid || shared.pids)) AS sessions_waiting
    FROM pg_locks AS l
    CROSS JOIN (
        SELECT array_agg(a.pid) AS pids
        FROM pg_stat_get_activity(NULL) AS a
        WHERE a.application_name = 'mpp-controller shared locks'
          AND a.datid = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
    ) AS shared
    WHERE l.locktype = 'advisory' AND l.classid = 1297109064 AND l.objid = t.groupid::oid AND l.objsubid = 2
      AND l.database = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
      AND l.granted
) AS s ON true
WHERE t.status = 'holding'
GROUP BY t.groupid, s.pid, s.sessions_waiting;
COMMENT ON VIEW mpp_holds IS
    'Groups held now. pid is the server process of the hold; NULL while its session is gone and a controller has yet to take the tasks up again. sessions_waiting are those on this server that it blocks directly, or that wait for locks which all holds share.';

SELECT set_config('search_path', current_setting('mpp.bookkeeping_path'), true);
