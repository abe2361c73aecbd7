-- The controllers, and which of them leads. The record is a row that GRANT protects; that the recorded session is alive is
-- shown by a lock on a number that is random and new each time, so that a role without rights cannot take it first. A lock
-- counts only where the session that has it belongs to a member of mpp_controller.
SELECT set_config('search_path', current_setting('mpp.objects_path'), true);

DO $migration$
DECLARE
    home constant text := pg_catalog.quote_ident(pg_catalog.current_schema()::text);
BEGIN
    PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    EXECUTE replace(replace($sql$

-- One row a controller process. That it is alive is shown by its session, not by a clock.
CREATE TABLE @mpp.mpp_controllers (
    id           text        PRIMARY KEY,
    host         text        NOT NULL,
    pid          integer     NOT NULL,
    backend_pid  integer     NOT NULL,
    version      text        NOT NULL,
    strategy     text,
    max_holds    integer,
    started_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    heartbeat_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    rebuild_at   timestamptz,
    member_ttl   interval,
    verify       boolean
);
COMMENT ON TABLE @mpp.mpp_controllers IS 'The controller processes that have registered here; read the view mpp_status.';
COMMENT ON COLUMN @mpp.mpp_controllers.backend_pid IS 'pid of the server process of its control session; it is active while mpp_leader_pid() is that.';
COMMENT ON COLUMN @mpp.mpp_controllers.max_holds IS 'Groups that may be held at once now: MPP_MAX_HOLDS, or 1 where groups share shards or the strategy allows no more; NULL is no limit.';
COMMENT ON COLUMN @mpp.mpp_controllers.rebuild_at IS 'Set by mpp_rebuild_cache(): what it knows of the server is to be read again.';
COMMENT ON COLUMN @mpp.mpp_controllers.member_ttl IS 'MPP_MEMBER_TTL of this controller, written when it becomes active.';
COMMENT ON COLUMN @mpp.mpp_controllers.verify IS
    'False where MPP_VERIFY is off: this controller believes reports without asking the node.';

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

-- 1297154048 is 0x4D510000; the lower half tells the schemas of one database apart.
CREATE FUNCTION @mpp.mpp_leader_lock_class() RETURNS integer
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT 1297154048 + (@home::regnamespace::oid::bigint & 65535)::integer
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

-- Locks: none that is waited for; a row that another session has locked is passed over.
CREATE FUNCTION @mpp.mpp_rebuild_cache() RETURNS void
LANGUAGE sql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
    UPDATE @mpp.mpp_controllers AS c
    SET rebuild_at = clock_timestamp()
    FROM (SELECT o.id FROM @mpp.mpp_controllers AS o FOR UPDATE SKIP LOCKED) AS free
    WHERE c.id = free.id;
    SELECT pg_notify('mpp_tasks', '');
$$;
COMMENT ON FUNCTION @mpp.mpp_rebuild_cache IS
    'Before its next task the controller reads again what it knows of the server. The rows of pg_dist_node it reads for every task in any case.';

REVOKE ALL ON @mpp.mpp_leadership FROM PUBLIC;
REVOKE ALL ON FUNCTION
    @mpp.mpp_leader_lock_class, @mpp.mpp_is_controller_session, @mpp.mpp_has_leader_lock, @mpp.mpp_older_leader_pid,
    @mpp.mpp_leader_pid, @mpp.mpp_leadership_blockers, @mpp.mpp_rebuild_cache
FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
    @mpp.mpp_leader_lock_class, @mpp.mpp_is_controller_session, @mpp.mpp_has_leader_lock, @mpp.mpp_older_leader_pid,
    @mpp.mpp_leader_pid, @mpp.mpp_leadership_blockers
TO mpp_operator, mpp_controller;
GRANT EXECUTE ON FUNCTION @mpp.mpp_rebuild_cache TO mpp_operator;
GRANT SELECT ON @mpp.mpp_controllers, @mpp.mpp_leadership TO mpp_operator;
GRANT SELECT, INSERT, UPDATE, DELETE ON @mpp.mpp_controllers TO mpp_controller;
GRANT SELECT, INSERT, UPDATE ON @mpp.mpp_leadership TO mpp_controller;

    $sql$, '@mpp.', home || '.'), '@home', quote_literal(home));
END
$migration$;

SELECT set_config('search_path', current_setting('mpp.bookkeeping_path'), true);
