-- Which controller leads. The record is a row that GRANT protects; that the recorded session is alive is
-- told by a lock on a number that is random and new each time, so that a role without rights cannot take
-- it first. A lock counts only where the session that has it belongs to a member of mpp_controller.
SELECT set_config('search_path', current_setting('mpp.objects_path'), true);

DO $migration$
DECLARE
    mpp constant text := pg_catalog.quote_ident(pg_catalog.current_schema()::text) OPERATOR(pg_catalog.||) '.'::text;
    mpp_name constant text := quote_literal(quote_ident(current_schema()));
BEGIN
    PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    EXECUTE replace(replace($sql$

CREATE TABLE @mpp.mpp_leadership (
    one         boolean     PRIMARY KEY DEFAULT true CHECK (one),
    controller  text,
    backend_pid integer,
    key         integer,
    since       timestamptz
);
COMMENT ON TABLE @mpp.mpp_leadership IS 'The controller that leads: one row, written by controllers only; read the view mpp_status.';
COMMENT ON COLUMN @mpp.mpp_leadership.one IS 'Always true: there is one row.';
COMMENT ON COLUMN @mpp.mpp_leadership.controller IS 'Its id in mpp_controllers; NULL when the last leader has given the leadership back.';
COMMENT ON COLUMN @mpp.mpp_leadership.backend_pid IS 'pid of the server process of its control session.';
COMMENT ON COLUMN @mpp.mpp_leadership.key IS 'A random number. While that session holds the advisory lock (mpp_leader_lock_class(), key), the controller leads.';
COMMENT ON COLUMN @mpp.mpp_leadership.since IS 'When it took the leadership.';
INSERT INTO @mpp.mpp_leadership DEFAULT VALUES;
REVOKE ALL ON @mpp.mpp_leadership FROM PUBLIC;
GRANT SELECT ON @mpp.mpp_leadership TO mpp_operator;
GRANT SELECT, INSERT, UPDATE ON @mpp.mpp_leadership TO mpp_controller;

-- 1297154048 is 0x4D510000; the lower half tells the schemas of one database apart.
CREATE FUNCTION @mpp.mpp_leader_lock_class() RETURNS integer
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT 1297154048 + (@mpp_name::regnamespace::oid::bigint & 65535)::integer
$$;
COMMENT ON FUNCTION @mpp.mpp_leader_lock_class IS
    'classid of the advisory lock of this schema''s leader; those of all schemas of a database lie between 1297154048 and 1297219583.';

-- VOLATILE: it says what is now, not what was when the statement began.
CREATE FUNCTION @mpp.mpp_is_controller_session(pid integer) RETURNS boolean
LANGUAGE sql VOLATILE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT EXISTS (
        SELECT
        FROM pg_stat_get_activity($1) AS a
        WHERE pg_has_role(a.usesysid, 'mpp_controller', 'MEMBER')
    )
$$;
COMMENT ON FUNCTION @mpp.mpp_is_controller_session IS
    'Whether a session was opened by a superuser or a member of mpp_controller.';

CREATE FUNCTION @mpp.mpp_has_leader_lock(pid integer, key integer) RETURNS boolean
LANGUAGE sql VOLATILE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT EXISTS (
        SELECT
        FROM pg_locks AS l
        WHERE l.locktype = 'advisory' AND l.objsubid = 2 AND l.granted AND l.mode = 'ExclusiveLock'
          AND l.database = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
          AND l.classid = @mpp.mpp_leader_lock_class()::oid AND l.objid = $2::oid AND l.pid = $1
    ) AND @mpp.mpp_is_controller_session($1)
$$;
COMMENT ON FUNCTION @mpp.mpp_has_leader_lock IS
    'Whether the session of a recorded leader is alive: it holds the lock on its key, and belongs to a member of mpp_controller.';

-- Controllers of versions without mpp_leadership have the lock (1297109066, 0) instead, and for each group
-- that they work on the lock (1297109064, groupid): a hold may outlive their leadership by a moment.
CREATE FUNCTION @mpp.mpp_older_leader_pid() RETURNS integer
LANGUAGE sql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT min(l.pid)
    FROM pg_locks AS l
    WHERE l.locktype = 'advisory' AND l.objsubid = 2 AND l.granted AND l.mode = 'ExclusiveLock'
      AND l.database = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
      AND ((l.classid = 1297109066 AND l.objid = 0) OR l.classid = 1297109064)
      AND @mpp.mpp_is_controller_session(l.pid)
$$;
COMMENT ON FUNCTION @mpp.mpp_older_leader_pid IS
    'pid of a session that leads, or works on a group, as versions before mpp_leadership did; or NULL.';

CREATE FUNCTION @mpp.mpp_leader_pid() RETURNS integer
LANGUAGE sql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce(
        (SELECT l.backend_pid
         FROM @mpp.mpp_leadership AS l
         WHERE @mpp.mpp_has_leader_lock(l.backend_pid, l.key)),
        @mpp.mpp_older_leader_pid())
$$;
COMMENT ON FUNCTION @mpp.mpp_leader_pid IS
    'pid of the control session of the controller that leads; NULL while none does.';

CREATE FUNCTION @mpp.mpp_leadership_blockers()
RETURNS TABLE (pid integer, role name, application text, holds text, kind text, lock_class integer)
LANGUAGE sql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
    WITH lock AS MATERIALIZED (
        SELECT l.locktype, l.relation, l.classid, l.objid, l.objsubid, l.pid, l.mode
        FROM pg_locks AS l
        WHERE l.granted AND l.pid <> pg_backend_pid()
          AND l.database = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
    ), blocker AS (
        SELECT l.pid, 'a lock of an older version of mpp-controller' AS holds, 'older' AS kind, l.classid
        FROM lock AS l
        WHERE l.pid = @mpp.mpp_older_leader_pid() AND l.locktype = 'advisory'
          AND l.classid IN (1297109066, 1297109064) AND l.objsubid = 2
        UNION ALL
        SELECT l.pid,
               format('the leadership of mpp-controller in schema %s of this database',
                   coalesce((SELECT string_agg(quote_ident(n.nspname), ' or ')
                             FROM pg_class AS c
                             JOIN pg_namespace AS n ON n.oid = c.relnamespace
                             WHERE c.relname = 'mpp_leadership' AND c.relkind = 'r'
                               AND (n.oid::bigint & 65535) = l.classid::bigint - 1297154048), 'unknown')),
               'schema', l.classid
        FROM lock AS l
        WHERE l.locktype = 'advisory' AND l.objsubid = 2 AND l.mode = 'ExclusiveLock'
          AND l.classid::bigint BETWEEN 1297154048 AND 1297219583
          AND l.classid <> @mpp.mpp_leader_lock_class()::oid
          AND @mpp.mpp_is_controller_session(l.pid)
        UNION ALL
        SELECT l.pid, format('a lock (%s) on the table mpp_leadership', string_agg(l.mode, ', ' ORDER BY l.mode)), 'row', NULL
        FROM lock AS l
        WHERE l.locktype = 'relation' AND l.relation = (SELECT t.tableoid FROM @mpp.mpp_leadership AS t LIMIT 1)
          AND l.mode NOT IN ('AccessShareLock', 'ShareUpdateExclusiveLock')
        GROUP BY l.pid
    )
    SELECT b.pid, r.rolname, coalesce(nullif(a.application_name, ''), 'unnamed'), b.holds, b.kind, b.classid::bigint::integer
    FROM blocker AS b
    LEFT JOIN LATERAL pg_stat_get_activity(b.pid) AS a ON true
    LEFT JOIN pg_roles AS r ON r.oid = a.usesysid
$$;
COMMENT ON FUNCTION @mpp.mpp_leadership_blockers IS
    'The sessions that may keep a controller from taking the leadership, and what each of them holds.';

-- The order is that of the claim in src/tasks/claim.ts; a test holds the two together. Rows read: what is
-- open, once.
CREATE OR REPLACE VIEW @mpp.mpp_queue AS
WITH running AS MATERIALIZED (
    SELECT r.groupid,
           max(r.id) FILTER (WHERE r.status = 'holding') AS newest_holding,
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
               AND (r.newest_holding > t.id OR (t.event = 'after_promote' AND t.source <> 'client')) AS frozen
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

REVOKE ALL ON FUNCTION
    @mpp.mpp_leader_lock_class, @mpp.mpp_is_controller_session, @mpp.mpp_has_leader_lock, @mpp.mpp_older_leader_pid,
    @mpp.mpp_leader_pid, @mpp.mpp_leadership_blockers
FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
    @mpp.mpp_leader_lock_class, @mpp.mpp_is_controller_session, @mpp.mpp_has_leader_lock, @mpp.mpp_older_leader_pid,
    @mpp.mpp_leader_pid, @mpp.mpp_leadership_blockers
TO mpp_operator, mpp_controller;

COMMENT ON COLUMN @mpp.mpp_controllers.backend_pid IS 'pid of the server process of its control session; it is active while mpp_leader_pid() is that.';

-- The server gives a pid again, so a pid alone says little: it is the controller's that registered it last,
-- and its session must have the name of a control session. The name is shown to every role, its start is not.
CREATE OR REPLACE VIEW @mpp.mpp_status AS
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

    $sql$, '@mpp.', mpp), '@mpp_name', mpp_name);
END
$migration$;

SELECT set_config('search_path', current_setting('mpp.bookkeeping_path'), true);
