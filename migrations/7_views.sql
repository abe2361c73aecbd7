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

-- The address of the primary among rows of mpp_task_log.
CREATE FUNCTION @mpp.mpp_primary_of(nodes jsonb) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE WHEN n.host LIKE '%:%' THEN format('[%s]:%s', n.host, n.port) ELSE format('%s:%s', n.host, n.port) END
    FROM (
        SELECT e.node ->> 'nodename' AS host, e.node ->> 'nodeport' AS port
        FROM jsonb_array_elements(nodes) AS e (node)
        WHERE e.node ->> 'noderole' = 'primary'
        LIMIT 1
    ) AS n
$$;
COMMENT ON FUNCTION @mpp.mpp_primary_of IS
    'host:port of the primary among the rows in node_before or node_after of mpp_task_log; NULL when there is none.';

-- Rows read: the index mpp_task_log_ended, and for each of its rows the tasks by their key. A hold whose controller died,
-- or that was released, has no summary: of its tasks, which ended in one transaction, the first stands for all.
CREATE VIEW @mpp.mpp_switchovers AS
WITH entry AS (
    SELECT l.id, l.groupid, l.task_id, l.status, l.reason, l.controller, l.logged_at, l.node_before, l.node_after, l.ended,
           CASE WHEN l.ended IS NOT NULL
               THEN ARRAY(SELECT e.id::bigint FROM jsonb_array_elements_text(l.ended -> 'tasks') AS e (id))
               ELSE ARRAY(
                   SELECT o.task_id
                   FROM @mpp.mpp_task_log AS o
                   WHERE o.id >= l.id AND o.id < l.id + 100
                     AND o.groupid = l.groupid AND o.status = 'rolled_back' AND o.xmin = l.xmin
                   ORDER BY o.task_id)
           END AS tasks
    FROM @mpp.mpp_task_log AS l
    WHERE (l.ended IS NOT NULL OR l.status = 'rolled_back')
      AND NOT (l.ended IS NULL AND EXISTS (
          SELECT
          FROM @mpp.mpp_task_log AS o
          WHERE o.id < l.id AND o.id > l.id - 100
            AND o.groupid = l.groupid AND o.status = 'rolled_back' AND o.xmin = l.xmin))
)
SELECT e.id,
       e.groupid,
       CASE WHEN e.status = 'rolled_back' THEN 'rolled back'
            WHEN p.old IS NULL THEN 'registration'
            WHEN p.new = p.old THEN CASE WHEN t.is_planned THEN 'restart' ELSE 'interruption' END
            WHEN t.is_planned THEN 'switchover'
            ELSE 'failover'
       END AS kind,
       p.old AS old_primary,
       p.new AS new_primary,
       t.reported_at,
       t.held_at,
       t.promoted_at,
       e.logged_at AS ended_at,
       t.held_at - t.reported_at AS opening,
       e.logged_at - t.held_at AS held,
       e.logged_at - t.promoted_at AS committing,
       (e.ended ->> 'longestWaitMs')::float8 * interval '1 ms' AS longest_wait,
       (e.ended ->> 'sessionsWaiting')::integer AS sessions_waiting,
       (e.ended ->> 'terminated')::integer AS sessions_terminated,
       (e.ended ->> 'cancelled')::integer AS statements_cancelled,
       e.ended ->> 'pause' AS pause,
       t.source,
       t.reported_by,
       e.controller,
       e.tasks,
       e.reason
FROM entry AS e
CROSS JOIN LATERAL (
    SELECT bool_or(k.event = 'before_demote') AS is_planned,
           min(k.created_at) AS reported_at,
           min(k.held_at) AS held_at,
           max(k.created_at) FILTER (WHERE k.id = e.task_id AND k.event = 'after_promote') AS promoted_at,
           (array_agg(k.source ORDER BY k.id))[1] AS source,
           (array_agg(k.created_by ORDER BY k.id))[1] AS reported_by,
           max(format(CASE WHEN k.nodename LIKE '%:%' THEN '[%s]:%s' ELSE '%s:%s' END, k.nodename, k.nodeport))
               FILTER (WHERE k.id = e.task_id) AS node
    FROM @mpp.mpp_tasks AS k
    WHERE k.id = ANY (e.tasks)
) AS t
CROSS JOIN LATERAL (
    SELECT CASE WHEN e.node_before IS NULL THEN t.node ELSE @mpp.mpp_primary_of(e.node_before) END AS old,
           CASE WHEN e.node_after IS NOT NULL THEN @mpp.mpp_primary_of(e.node_after)
                WHEN e.status = 'done' THEN t.node
           END AS new
) AS p;
COMMENT ON VIEW @mpp.mpp_switchovers IS
    'What became of the primaries, one row for each switchover, failover, restart, registration and hold that was rolled back. Read it ORDER BY id DESC.';
COMMENT ON COLUMN @mpp.mpp_switchovers.id IS 'The entry of mpp_task_log that ended it; in the order of their commits within a group.';
COMMENT ON COLUMN @mpp.mpp_switchovers.groupid IS 'Group in pg_dist_node; 0 is the coordinator.';
COMMENT ON COLUMN @mpp.mpp_switchovers.kind IS 'switchover (planned by before_demote), failover, restart (planned, the same primary), interruption (not planned, the same primary), registration (the first primary of the group), or rolled back (a hold that ended without a change).';
COMMENT ON COLUMN @mpp.mpp_switchovers.old_primary IS 'host:port of the primary before.';
COMMENT ON COLUMN @mpp.mpp_switchovers.new_primary IS 'host:port of the primary after; NULL when it was rolled back.';
COMMENT ON COLUMN @mpp.mpp_switchovers.reported_at IS 'When its first task was reported.';
COMMENT ON COLUMN @mpp.mpp_switchovers.held_at IS 'When the traffic of the group began to wait; NULL when there was no hold.';
COMMENT ON COLUMN @mpp.mpp_switchovers.promoted_at IS 'When after_promote was reported.';
COMMENT ON COLUMN @mpp.mpp_switchovers.ended_at IS 'When it was committed or rolled back.';
COMMENT ON COLUMN @mpp.mpp_switchovers.opening IS 'From the first report until the traffic waited.';
COMMENT ON COLUMN @mpp.mpp_switchovers.held IS 'How long the traffic waited at most.';
COMMENT ON COLUMN @mpp.mpp_switchovers.committing IS 'From after_promote until the commit.';
COMMENT ON COLUMN @mpp.mpp_switchovers.longest_wait IS 'How long the statement of a client had been running that waited longest, on all nodes of the hold, right before the commit. NULL when it was not seen.';
COMMENT ON COLUMN @mpp.mpp_switchovers.sessions_waiting IS 'How many sessions of clients waited then.';
COMMENT ON COLUMN @mpp.mpp_switchovers.sessions_terminated IS 'How many sessions the controller terminated because they blocked it past the cooldown.';
COMMENT ON COLUMN @mpp.mpp_switchovers.statements_cancelled IS 'How many maintenance commands, and statements that waited for the hold and blocked its commit, the controller cancelled.';
COMMENT ON COLUMN @mpp.mpp_switchovers.pause IS 'What waited: writes, all or none.';
COMMENT ON COLUMN @mpp.mpp_switchovers.source IS 'Who made the first task: client, sync or probe.';
COMMENT ON COLUMN @mpp.mpp_switchovers.reported_by IS 'Login role of the first task.';
COMMENT ON COLUMN @mpp.mpp_switchovers.controller IS 'The controller that ended it; NULL for mpp_release.';
COMMENT ON COLUMN @mpp.mpp_switchovers.tasks IS 'Its tasks.';
COMMENT ON COLUMN @mpp.mpp_switchovers.reason IS 'Why it was rolled back, or what else is to be said.';

-- The controller writes them down, because only it knows those of other nodes, and for how long each has blocked it.
CREATE VIEW @mpp.mpp_blockers AS
SELECT t.groupid, b.server, b.pid, b.usename, b.application_name, b.state, b.since, b.blocks, b.ends_at, b.described, t.id AS task
FROM @mpp.mpp_tasks AS t
CROSS JOIN LATERAL jsonb_to_recordset(t.blockers) AS b (
    server text, pid integer, usename text, application_name text, state text, since timestamptz, blocks text,
    ends_at timestamptz, described text)
WHERE t.finished_at IS NULL AND t.status = 'claimed';
COMMENT ON VIEW @mpp.mpp_blockers IS
    'Sessions that have blocked a hold, or the change of pg_dist_node, for more than a second, on all nodes. No rows: nothing blocks.';
COMMENT ON COLUMN @mpp.mpp_blockers.groupid IS 'Group of the hold or the change.';
COMMENT ON COLUMN @mpp.mpp_blockers.server IS 'host:port of the node where it is; NULL for this server.';
COMMENT ON COLUMN @mpp.mpp_blockers.pid IS 'Its process there; NULL for a prepared transaction.';
COMMENT ON COLUMN @mpp.mpp_blockers.usename IS 'Its role.';
COMMENT ON COLUMN @mpp.mpp_blockers.application_name IS 'Its application_name.';
COMMENT ON COLUMN @mpp.mpp_blockers.state IS 'As in pg_stat_activity, when it was seen; NULL where the controller may not see it.';
COMMENT ON COLUMN @mpp.mpp_blockers.since IS 'When its transaction began; NULL where the controller may not see it.';
COMMENT ON COLUMN @mpp.mpp_blockers.blocks IS 'hold: the locks of a hold. change: the change of pg_dist_node.';
COMMENT ON COLUMN @mpp.mpp_blockers.ends_at IS 'When the controller terminates it if it still blocks then; NULL: it is waited for.';
COMMENT ON COLUMN @mpp.mpp_blockers.described IS 'The same in a sentence.';
COMMENT ON COLUMN @mpp.mpp_blockers.task IS 'The task that waits.';

REVOKE ALL ON FUNCTION @mpp.mpp_primary_of FROM PUBLIC;
GRANT EXECUTE ON FUNCTION @mpp.mpp_primary_of TO mpp_operator, mpp_controller;
GRANT SELECT ON @mpp.mpp_queue, @mpp.mpp_holds, @mpp.mpp_status, @mpp.mpp_switchovers, @mpp.mpp_blockers TO mpp_operator, mpp_controller;

    $sql$, '@mpp.', home || '.'), '@home', quote_literal(home));
END
$migration$;

SELECT set_config('search_path', current_setting('mpp.bookkeeping_path'), true);
