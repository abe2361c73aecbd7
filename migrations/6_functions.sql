-- What clients and operators call.
SELECT set_config('search_path', current_setting('mpp.objects_path'), true);

DO $migration$
DECLARE
    home constant text := pg_catalog.quote_ident(pg_catalog.current_schema()::text);
BEGIN
    PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    EXECUTE replace(replace($sql$

-- Locks: none but its own row. It waits only for a session that has locked the whole table.
CREATE FUNCTION @mpp.mpp_submit(
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
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '10s'
AS $$
#variable_conflict use_column
DECLARE
    new_id bigint;
BEGIN
    INSERT INTO @mpp.mpp_tasks (event, groupid, nodename, nodeport, secondaries, timeout, cooldown, pause, source)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
    RETURNING id INTO new_id;
    RETURN new_id;
EXCEPTION WHEN lock_not_available THEN
    RAISE EXCEPTION 'nothing was reported: another session has locked a table of mpp-controller'
        USING ERRCODE = 'lock_not_available',
              DETAIL = format('Locked: %s.'::text, @mpp.mpp_table_lockers()),
              HINT = 'Report again, once that session has ended its transaction.';
END
$$;
COMMENT ON FUNCTION @mpp.mpp_submit IS
    'Reports a change of a worker group: the INSERT into mpp_tasks as a function, for clients that may not touch the table. Returns the id of the task.';

CREATE FUNCTION @mpp.mpp_task_status(id bigint, OUT status text, OUT reason text)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    may_see boolean;
BEGIN
    SELECT t.status, t.reason, t.created_by = session_user OR has_table_privilege(session_user, t.tableoid, 'SELECT')
    INTO status, reason, may_see
    FROM @mpp.mpp_tasks AS t
    WHERE t.id = $1;
    IF NOT may_see THEN
        RAISE EXCEPTION 'task % was reported by another role', $1
            USING ERRCODE = 'insufficient_privilege',
                  HINT = 'A client sees its own tasks; a member of mpp_operator sees all.';
    END IF;
END
$$;
COMMENT ON FUNCTION @mpp.mpp_task_status IS
    'Status and reason of one task of this login role, of any task for a role that may read mpp_tasks; NULL when there is none of that id.';

-- A procedure that commits may not be SECURITY DEFINER and may not pin its search_path, so these two
-- name the schema in every call, with exact types, so that no overload on the caller's path fits better.
-- They commit between looks, so that a waiter pins no snapshot.
CREATE PROCEDURE @mpp.mpp_wait(
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
        status := (@mpp.mpp_task_status(id)).status;
        IF status IS NULL THEN
            RAISE EXCEPTION 'there is no task %', id
                USING ERRCODE = 'no_data_found', HINT = 'It may have been pruned (MPP_RETENTION).';
        END IF;
        EXIT WHEN status NOT IN ('pending', 'claimed') OR pg_catalog.clock_timestamp() >= until;
        COMMIT;
        PERFORM pg_catalog.pg_sleep(pause);
        pause := least(pause * 1.5::double precision, 0.05::double precision);
    END LOOP;
END
$$;
COMMENT ON PROCEDURE @mpp.mpp_wait IS
    'Waits until the task is acknowledged: holding, or any end. After timeout it returns the status as it is, pending or claimed. Not inside a transaction block.';

CREATE PROCEDURE @mpp.mpp_request(
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
    id := @mpp.mpp_submit(event, groupid, nodename, nodeport, secondaries, timeout, cooldown, pause, 'client'::text);
    COMMIT;
    CALL @mpp.mpp_wait(id, coalesce(timeout, CASE event WHEN 'suspect' THEN '10s' ELSE '30s' END::interval), status);
END
$$;
COMMENT ON PROCEDURE @mpp.mpp_request IS
    'Submits a task, commits it and waits for its acknowledgement, at most for its timeout. Not inside a transaction block.';

-- The outer SELECT is needed: PostgreSQL takes a view that is a bare UNION ALL apart and forgets that it is a
-- security barrier, so that a cheap function in WHERE would see the rows of all roles.
CREATE VIEW @mpp.mpp_my_tasks WITH (security_barrier) AS
SELECT mine.id, mine.event, mine.groupid, mine.nodename, mine.nodeport, mine.status, mine.reason,
       mine.created_at, mine.held_at, mine.deadline, mine.finished_at
FROM (
    SELECT t.*
    FROM @mpp.mpp_tasks AS t
    WHERE t.created_by = session_user AND t.finished_at IS NULL
    UNION ALL
    (SELECT t.*
     FROM @mpp.mpp_tasks AS t
     WHERE t.created_by = session_user AND t.finished_at IS NOT NULL
     ORDER BY t.id DESC
     LIMIT 1000)
) AS mine;
COMMENT ON VIEW @mpp.mpp_my_tasks IS
    'The tasks that this login role has reported: all that have not ended, and the last 1000 that have. mpp_task_status(id) finds older ones.';

-- Locks: the row of the task, until the operator's transaction ends. The controller passes over it.
CREATE FUNCTION @mpp.mpp_cancel(id bigint) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '10s'
AS $$
DECLARE
    was text;
BEGIN
    BEGIN
        SELECT t.status INTO was FROM @mpp.mpp_tasks AS t WHERE t.id = $1 FOR UPDATE;
    EXCEPTION WHEN lock_not_available THEN
        RAISE EXCEPTION 'task % was not cancelled: another session has locked it', $1
            USING ERRCODE = 'lock_not_available',
                  DETAIL = format('Locked by the session with pid %s.'::text, @mpp.mpp_lockers($1)),
                  HINT = 'Cancel it again, once that session has ended its transaction.';
    END;
    IF was = 'pending' THEN
        UPDATE @mpp.mpp_tasks AS t
        SET status = 'cancelled', reason = format('cancelled by %s'::text, session_user)
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
COMMENT ON FUNCTION @mpp.mpp_cancel IS 'Cancels a pending task. An error when it is running or has ended.';

-- Where the owner of this function may not end the session, the controller sees the new status.
CREATE FUNCTION @mpp.mpp_end_group_session(of_group integer) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM pg_terminate_backend(s.pid) FROM @mpp.mpp_group_sessions AS s WHERE s.groupid = of_group;
EXCEPTION WHEN insufficient_privilege THEN
    NULL;
END
$$;

-- Ends the tasks of a group's hold. Those that a commit or an operator has locked are waited for.
CREATE FUNCTION @mpp.mpp_release_tasks(of_group integer) RETURNS boolean
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    WITH ended AS (
        UPDATE @mpp.mpp_tasks AS t
        SET status = 'rolled_back', reason = format('released by %s'::text, session_user)
        WHERE t.finished_at IS NULL
          AND t.groupid = of_group
          AND (t.status = 'holding'
               OR (t.event <> 'after_promote'
                   -- Being taken, or lost and about to be taken again.
                   AND (t.status = 'claimed' OR (t.status = 'pending' AND t.deadline IS NOT NULL))))
        RETURNING 1
    )
    SELECT EXISTS (SELECT FROM ended)
$$;

-- The status first, the session second: a controller that finds its session ended finds the task ended,
-- as soon as the operator's transaction is committed.
--
-- Locks: the rows of the group's hold, until the operator's transaction ends. A commit of the group has
-- them as well: it is waited for, and its session is ended when it takes long, because it may itself
-- wait for others. Another operator's transaction is waited for, 10 seconds at most.
CREATE FUNCTION @mpp.mpp_release(groupid integer) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '1s'
AS $$
DECLARE
    held boolean;
BEGIN
    BEGIN
        held := @mpp.mpp_release_tasks($1);
    EXCEPTION WHEN lock_not_available THEN
        PERFORM @mpp.mpp_end_group_session($1);
        PERFORM set_config('lock_timeout', '10s', true);
        BEGIN
            held := @mpp.mpp_release_tasks($1);
        EXCEPTION WHEN lock_not_available THEN
            RAISE EXCEPTION 'group % was not released: another session has locked its tasks', $1
                USING ERRCODE = 'lock_not_available',
                      DETAIL = format('Locked by the session with pid %s.'::text, (
                          SELECT string_agg(DISTINCT @mpp.mpp_lockers(t.id), ', ')
                          FROM @mpp.mpp_tasks AS t
                          WHERE t.finished_at IS NULL AND t.groupid = $1 AND t.status <> 'pending')),
                      HINT = 'Release it again, once that session has ended its transaction.';
        END;
    END;
    IF held THEN
        PERFORM @mpp.mpp_end_group_session($1);
    END IF;
    PERFORM pg_notify('mpp_tasks', '');
    RETURN held;
END
$$;
COMMENT ON FUNCTION @mpp.mpp_release IS
    'Ends the hold of a group by rollback: its traffic goes on to the node that pg_dist_node names. True when there was a hold.';

CREATE FUNCTION @mpp.mpp_ignore_replication_slot(name text, type text, database text, plugin text) RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce(
        NOT pg_is_in_recovery()
        AND $2 = 'logical'
        AND $3 = current_database()
        AND (($1 ~ '^citus_shard_move_slot(_[1-9][0-9]*){2,3}$' AND $4 = 'pgoutput')
             OR ($1 ~ '^citus_shard_split_slot(_[1-9][0-9]*){2,3}$' AND $4 = 'citus')),
        false)
$$;
COMMENT ON FUNCTION @mpp.mpp_ignore_replication_slot IS
    'True for a replication slot that Citus itself made to move or split a shard, on a primary, in this database: an HA manager must leave it alone.';

REVOKE ALL ON FUNCTION
    @mpp.mpp_submit, @mpp.mpp_task_status, @mpp.mpp_cancel, @mpp.mpp_end_group_session, @mpp.mpp_release_tasks,
    @mpp.mpp_release, @mpp.mpp_ignore_replication_slot
FROM PUBLIC;
REVOKE ALL ON PROCEDURE @mpp.mpp_wait, @mpp.mpp_request FROM PUBLIC;
GRANT EXECUTE ON FUNCTION @mpp.mpp_submit, @mpp.mpp_task_status, @mpp.mpp_ignore_replication_slot
    TO mpp_client, mpp_operator, mpp_controller;
GRANT EXECUTE ON PROCEDURE @mpp.mpp_wait, @mpp.mpp_request TO mpp_client, mpp_operator;
GRANT EXECUTE ON FUNCTION @mpp.mpp_cancel, @mpp.mpp_release TO mpp_operator;
GRANT SELECT ON @mpp.mpp_my_tasks TO mpp_client, mpp_operator, mpp_controller;

    $sql$, '@mpp.', home || '.'), '@home', quote_literal(home));
END
$migration$;

SELECT set_config('search_path', current_setting('mpp.bookkeeping_path'), true);
