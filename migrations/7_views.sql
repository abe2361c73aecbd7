-- What a DBA looks at.
SELECT set_config('search_path', current_setting('mpp.objects_path'), true);

DO $migration$
DECLARE
    home constant text := pg_catalog.quote_ident(pg_catalog.current_schema()::text);
BEGIN
    PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    EXECUTE replace(replace($sql$

-- The order is that of the claim in src/tasks/claim.ts; a test holds the two together. Rows read: what is open, once. A hold
-- that the probe alone has opened is ended by the after_promote that the comparison makes, so that one is not frozen.
CREATE VIEW @mpp.mpp_queue AS
WITH running AS MATERIALIZED (
    SELECT r.groupid,
           max(r.id) FILTER (WHERE r.status = 'holding') AS newest_holding,
           bool_or(r.status = 'holding' AND r.source <> 'probe') AS held_for_others,
           min(r.id) FILTER (WHERE r.status = 'claimed') AS claimed_task
    FROM @mpp.mpp_tasks AS r
    WHERE r.status IN ('claimed', 'holding')
    GROUP BY r.groupid
), judged AS (
    SELECT t.id, t.groupid, t.event, t.nodename, t.nodeport, t.status, t.source, t.attempt, t.not_before,
           t.created_at, t.deadline, t.claimed_at, t.reason, r.newest_holding, r.claimed_task,
           t.event <> 'after_promote'
               AND coalesce(t.deadline, t.expires_at) <= statement_timestamp() AS late,
           r.newest_holding IS NOT NULL
               AND (r.newest_holding > t.id
                    OR (t.event = 'after_promote' AND t.source <> 'client' AND r.held_for_others)) AS frozen
    FROM @mpp.mpp_tasks AS t
    LEFT JOIN running AS r ON r.groupid = t.groupid
    WHERE t.finished_at IS NULL
), ready AS (
    SELECT j.*,
           j.status = 'pending'
               AND NOT j.late
               AND NOT j.frozen
               AND (j.not_before IS NULL OR j.not_before <= statement_timestamp()) AS due
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
       statement_timestamp() - created_at AS age,
       CASE
           WHEN status = 'holding' THEN format('the traffic of group %s waits, until %s at most'::text, groupid, to_char(deadline, 'HH24:MI:SS'))
           WHEN status = 'claimed' THEN format('running since %s'::text, to_char(claimed_at, 'HH24:MI:SS'))
           WHEN late THEN 'too late: it will be ended'
           WHEN frozen THEN format('waits for the hold of its group, task %s, to end'::text, newest_holding)
           WHEN claimed_task IS NOT NULL THEN format('waits for task %s of its group'::text, claimed_task)
           WHEN first_due < id THEN format('waits for task %s of its group'::text, first_due)
           WHEN not_before > statement_timestamp() THEN format('attempt %s is due at %s'::text, attempt + 1, to_char(not_before, 'HH24:MI:SS'))
           WHEN newest_holding IS NOT NULL THEN 'its group is held'
           WHEN (SELECT count(*) FROM running AS h WHERE h.newest_holding IS NOT NULL) >= (
               SELECT c.max_holds
               FROM @mpp.mpp_controllers AS c
               WHERE c.backend_pid = (SELECT @mpp.mpp_leader_pid())
               ORDER BY c.heartbeat_at DESC
               LIMIT 1
           ) THEN 'waits for the hold of another group to end'
           WHEN groupid = 0 THEN 'group 0 comes before the others'
           ELSE 'by age'
       END AS why,
       reason
FROM ranked;
COMMENT ON VIEW @mpp.mpp_queue IS
    'Pending and running tasks in the order in which they will be taken, why they stand where they do, and the reason of the last attempt or what they wait for.';

CREATE VIEW @mpp.mpp_holds AS
SELECT t.groupid,
       min(t.held_at) AS held_since,
       max(t.deadline) AS deadline,
       max(t.claimed_by) AS controller,
       array_agg(t.id ORDER BY t.id) AS tasks,
       s.pid,
       coalesce(s.sessions_waiting, 0) AS sessions_waiting,
       string_agg(t.reason, '; ' ORDER BY t.id) AS reason
FROM @mpp.mpp_tasks AS t
LEFT JOIN LATERAL (
    SELECT g.pid,
           (SELECT count(DISTINCT w.pid)
            FROM pg_locks AS w
            WHERE NOT w.granted AND pg_blocking_pids(w.pid) && (g.pid || shared.pids)) AS sessions_waiting
    FROM @mpp.mpp_group_sessions AS g
    CROSS JOIN (
        SELECT array_agg(a.pid) AS pids
        FROM pg_stat_get_activity(NULL) AS a
        WHERE a.application_name = 'mpp-controller shared locks'
          AND a.datid = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
    ) AS shared
    WHERE g.groupid = t.groupid
) AS s ON true
WHERE t.finished_at IS NULL AND t.status = 'holding'
GROUP BY t.groupid, s.pid, s.sessions_waiting;
COMMENT ON VIEW @mpp.mpp_holds IS
    'Groups held now. pid is the server process of the hold; NULL while its session is gone and a controller has yet to take the tasks up again. sessions_waiting are those on this server that it blocks directly, or that wait for locks which all holds share.';

-- The server gives a pid again, so a pid alone says little: it is the controller's that registered it last,
-- and its session must have the name of a control session. The name is shown to every role, its start is not.
CREATE VIEW @mpp.mpp_status AS
SELECT c.id AS controller,
       CASE
           WHEN c.id IS NULL THEN 'none'
           WHEN c.id = leader.controller OR mark.pid = leader.pid THEN 'active'
           WHEN alive.pid IS NOT NULL THEN 'standby'
           ELSE 'gone'
       END AS state,
       c.host, c.pid, c.version, c.strategy, c.max_holds, c.started_at, c.heartbeat_at,
       queue.backlog, queue.oldest_pending, queue.holds,
       CASE WHEN alive.pid IS NOT NULL AND alive.pid IS DISTINCT FROM leader.pid THEN blocked.waits_for END AS waits_for
FROM (
    SELECT count(*) FILTER (WHERE t.status = 'pending') AS backlog,
           clock_timestamp() - min(t.created_at) FILTER (WHERE t.status = 'pending') AS oldest_pending,
           count(DISTINCT t.groupid) FILTER (WHERE t.status = 'holding') AS holds
    FROM @mpp.mpp_tasks AS t
    WHERE t.finished_at IS NULL
) AS queue
CROSS JOIN (
    SELECT p.pid, (SELECT l.controller FROM @mpp.mpp_leadership AS l WHERE l.backend_pid = p.pid) AS controller
    FROM (SELECT @mpp.mpp_leader_pid() AS pid OFFSET 0) AS p
) AS leader
CROSS JOIN (
    SELECT string_agg(format('%s: pid %s, role %s, application %s', b.holds, b.pid, b.role, b.application), '; ') AS waits_for
    FROM @mpp.mpp_leadership_blockers() AS b
    WHERE b.kind <> 'row' OR @mpp.mpp_leader_pid() IS NULL
) AS blocked
LEFT JOIN @mpp.mpp_controllers AS c ON true
LEFT JOIN LATERAL (
    SELECT c.backend_pid AS pid
    WHERE NOT EXISTS (
        SELECT FROM @mpp.mpp_controllers AS newer
        WHERE newer.backend_pid = c.backend_pid AND newer.heartbeat_at > c.heartbeat_at
    )
) AS mark ON true
LEFT JOIN pg_stat_get_activity(mark.pid) AS alive
    ON mark.pid IS NOT NULL
   AND alive.datid = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
   AND alive.application_name = 'mpp-controller control';
COMMENT ON VIEW @mpp.mpp_status IS
    'Controllers (active, standby, gone) and the backlog. One row with state none where no controller has ever registered. waits_for names the sessions that keep a standby from becoming active.';

GRANT SELECT ON @mpp.mpp_queue, @mpp.mpp_holds, @mpp.mpp_status TO mpp_operator, mpp_controller;

    $sql$, '@mpp.', home || '.'), '@home', quote_literal(home));
END
$migration$;

SELECT set_config('search_path', current_setting('mpp.bookkeeping_path'), true);
