-- What clients and operators call.
SELECT set_config('search_path', current_setting('mpp.objects_path'), true);

-- One row a controller process. Who is alive is told by its session, not by a clock.
CREATE TABLE mpp_controllers (
    id           text        PRIMARY KEY,
    host         text        NOT NULL,
    pid          integer     NOT NULL,
    backend_pid  integer     NOT NULL,
    version      text        NOT NULL,
    strategy     text,
    max_holds    integer,
    started_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    heartbeat_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    rebuild_at   timestamptz
);
COMMENT ON TABLE mpp_controllers IS 'The controller processes that have registered here; read the view mpp_status.';
COMMENT ON COLUMN mpp_controllers.backend_pid IS 'pid of the server process of its control session; it is active while that session holds the lock (1297109066, 0).';
COMMENT ON COLUMN mpp_controllers.max_holds IS 'Groups that may be held at once now: MPP_MAX_HOLDS, or 1 where groups share shards or the strategy allows no more; NULL is no limit.';
COMMENT ON COLUMN mpp_controllers.rebuild_at IS 'Set by mpp_rebuild_cache(): what it knows of the server is to be read anew.';

CREATE FUNCTION mpp_submit(
    event       text,
    groupid     integer,
    nodename    text,
    nodeport    integer  DEFAULT 5432,
    secondaries text[]   DEFAULT NULL,
    timeout     interval DEFAULT NULL,
    cooldown    interval DEFAULT NULL,
    pause       text     DEFAULT NULL,
    source      text     DEFAULT 'client'
) RETURNS bigint
LANGUAGE sql SECURITY DEFINER
SET search_path FROM CURRENT
AS $$
    INSERT INTO mpp_tasks (event, groupid, nodename, nodeport, secondaries, timeout, cooldown, pause, source)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
    RETURNING id
$$;
COMMENT ON FUNCTION mpp_submit IS
    'Reports a change of a worker group: the INSERT into mpp_tasks as a function, for clients that may not touch the table. Returns the id of the task.';

CREATE FUNCTION mpp_task_status(id bigint, OUT status text, OUT reason text)
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path FROM CURRENT
AS $$
    SELECT t.status, t.reason FROM mpp_tasks AS t WHERE t.id = $1
$$;
COMMENT ON FUNCTION mpp_task_status IS 'Status and reason of one task; NULL when there is none of that id.';

-- A procedure that commits may not be SECURITY DEFINER and may not pin its search_path, so these two
-- name the schema in every call, with exact types, so that no overload on the caller's path fits better.
-- They commit between looks, so that a waiter pins no snapshot.
DO $do$
BEGIN
    EXECUTE format($ddl$
CREATE PROCEDURE %1$I.mpp_wait(
    id           bigint,
    timeout      interval   DEFAULT '30 seconds',
    INOUT status text       DEFAULT NULL
)
LANGUAGE plpgsql
AS $$
DECLARE
    until constant timestamptz := pg_catalog.clock_timestamp() + coalesce(timeout, '30 seconds');
    pause double precision := 0.001;
BEGIN
    LOOP
        status := (%1$I.mpp_task_status(id)).status;
        IF status IS NULL THEN
            RAISE EXCEPTION 'there is no task %%', id
                USING ERRCODE = 'no_data_found', HINT = 'It may have been pruned (MPP_RETENTION).';
        END IF;
        EXIT WHEN status NOT IN ('pending', 'claimed') OR pg_catalog.clock_timestamp() >= until;
        COMMIT;
        PERFORM pg_catalog.pg_sleep(pause);
        pause := least(pause * 1.5::double precision, 0.05::double precision);
    END LOOP;
END
$$;

CREATE PROCEDURE %1$I.mpp_request(
    event        text,
    groupid      integer,
    nodename     text,
    nodeport     integer    DEFAULT 5432,
    secondaries  text[]     DEFAULT NULL,
    timeout      interval   DEFAULT NULL,
    cooldown     interval   DEFAULT NULL,
    pause        text       DEFAULT NULL,
    INOUT id     bigint     DEFAULT NULL,
    INOUT status text       DEFAULT NULL
)
LANGUAGE plpgsql
AS $$
BEGIN
    id := %1$I.mpp_submit(event, groupid, nodename, nodeport, secondaries, timeout, cooldown, pause, 'client'::text);
    COMMIT;
    CALL %1$I.mpp_wait(id, coalesce(timeout, CASE event WHEN 'suspect' THEN '10s' ELSE '30s' END::interval), status);
END
$$;
$ddl$, current_schema());
END
$do$;
COMMENT ON PROCEDURE mpp_wait IS
    'Waits until the task is acknowledged: holding, or any end. After timeout it returns the status as it is, pending or claimed. Not inside a transaction block.';
COMMENT ON PROCEDURE mpp_request IS
    'Submits a task, commits it and waits for its acknowledgement, at most for its timeout. Not inside a transaction block.';

CREATE FUNCTION mpp_cancel(id bigint) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER
SET search_path FROM CURRENT
AS $$
DECLARE
    was text;
BEGIN
    SELECT t.status INTO was FROM mpp_tasks AS t WHERE t.id = $1 FOR UPDATE;
    IF was = 'pending' THEN
        UPDATE mpp_tasks AS t
        SET status = 'cancelled', reason = format('cancelled by %s', session_user)
        WHERE t.id = $1;
        RETURN 'cancelled';
    ELSIF was IS NULL THEN
        RAISE EXCEPTION 'there is no task %', $1 USING ERRCODE = 'no_data_found';
    ELSIF was IN ('claimed', 'holding') THEN
        RAISE EXCEPTION 'task % is %, no longer pending', $1, was
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  HINT = 'SELECT mpp_release(groupid) ends the hold of its group.';
    END IF;
    RAISE EXCEPTION 'task % has ended as %: an end is final', $1, was
        USING ERRCODE = 'object_not_in_prerequisite_state';
END
$$;
COMMENT ON FUNCTION mpp_cancel IS 'Cancels a pending task. An error when it is running or has ended.';

-- The status first, the session second: whoever finds the session gone finds the task ended.
-- Locks: the rows of the group's hold, for the moment of this transaction.
CREATE FUNCTION mpp_release(groupid integer) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path FROM CURRENT
AS $$
DECLARE
    held boolean;
BEGIN
    UPDATE mpp_tasks AS t
    SET status = 'rolled_back', reason = format('released by %s', session_user)
    WHERE t.groupid = $1
      AND (t.status = 'holding'
           OR (t.event <> 'after_promote'
               -- Being taken, or lost and about to be taken again.
               AND (t.status = 'claimed' OR (t.status = 'pending' AND t.deadline IS NOT NULL))));
    held := FOUND;
    BEGIN
        PERFORM pg_terminate_backend(l.pid)
        FROM pg_locks AS l
        WHERE held
          AND l.locktype = 'advisory' AND l.classid = 1297109064 AND l.objid = $1::oid AND l.objsubid = 2
          AND l.database = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
          AND l.granted;
    EXCEPTION WHEN insufficient_privilege THEN
        -- The owner of this function may not end that session; the controller sees the new status.
        NULL;
    END;
    PERFORM pg_notify('mpp_tasks', '');
    RETURN held;
END
$$;
COMMENT ON FUNCTION mpp_release IS
    'Ends the hold of a group by rollback: its traffic goes on to the node that pg_dist_node names. True when there was a hold.';

CREATE FUNCTION mpp_rebuild_cache() RETURNS void
LANGUAGE sql SECURITY DEFINER
SET search_path FROM CURRENT
AS $$
    UPDATE mpp_controllers SET rebuild_at = clock_timestamp();
    SELECT pg_notify('mpp_tasks', '');
$$;
COMMENT ON FUNCTION mpp_rebuild_cache IS
    'Before its next task the controller reads anew what it knows of the server. The rows of pg_dist_node it reads for every task in any case.';

CREATE FUNCTION mpp_ignore_replication_slot(name text, type text, database text, plugin text) RETURNS boolean
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$
    SELECT coalesce(
        NOT pg_is_in_recovery()
        AND $2 = 'logical'
        AND $3 = current_database()
        AND (($1 ~ '^citus_shard_move_slot(_[1-9][0-9]*){2,3}$' AND $4 = 'pgoutput')
             OR ($1 ~ '^citus_shard_split_slot(_[1-9][0-9]*){2,3}$' AND $4 = 'citus')),
        false)
$$;
COMMENT ON FUNCTION mpp_ignore_replication_slot IS
    'True for a replication slot that Citus itself made to move or split a shard, on a primary, in this database: an HA manager must leave it alone.';

SELECT set_config('search_path', current_setting('mpp.bookkeeping_path'), true);
