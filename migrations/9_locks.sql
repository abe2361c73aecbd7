-- A report locks nothing but its own row: the controller decides which older task it supersedes. What
-- decides who works on a group is the lock of a row that GRANT protects. What is open is found by
-- indexes that have what is open alone.
--
-- From here on functions find nothing but PostgreSQL's own without a schema, because a role that may
-- create objects in this schema could make a function that fits a call better. So statements of these
-- files are text in which @mpp. becomes this schema.
SELECT set_config('search_path', current_setting('mpp.objects_path'), true);

DO $migration$
DECLARE
    mpp constant text := pg_catalog.quote_ident(pg_catalog.current_schema()::text) OPERATOR(pg_catalog.||) '.'::text;
BEGIN
    PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    EXECUTE pg_catalog.replace($sql$

-- One row a group that ever had a task. A session that works on the group has the row FOR UPDATE until
-- its transaction ends, so the lock is free the moment PostgreSQL sees that session end.
CREATE TABLE @mpp.mpp_groups (
    groupid integer PRIMARY KEY CHECK (groupid >= 0)
);
COMMENT ON TABLE @mpp.mpp_groups IS
    'A row for each group that ever had a task. The session that works on a group locks its row, and so keeps others from it.';
COMMENT ON COLUMN @mpp.mpp_groups.groupid IS 'Group in pg_dist_node; 0 is the coordinator.';
INSERT INTO @mpp.mpp_groups (groupid)
SELECT DISTINCT t.groupid FROM @mpp.mpp_tasks AS t WHERE t.finished_at IS NULL;

-- The locker of a row is its xmax, and each transaction that writes holds the lock of its own id.
CREATE VIEW @mpp.mpp_group_sessions AS
SELECT g.groupid, l.pid
FROM @mpp.mpp_groups AS g
JOIN pg_locks AS l ON l.locktype = 'transactionid' AND l.transactionid = g.xmax AND l.granted;
COMMENT ON VIEW @mpp.mpp_group_sessions IS
    'The server process that works on a group now, by the lock of its row in mpp_groups.';

ALTER TABLE @mpp.mpp_tasks
    ADD COLUMN expires_at timestamptz,
    ADD COLUMN note text;
COMMENT ON COLUMN @mpp.mpp_tasks.expires_at IS
    'When a before_ task or suspect expires that has not been acknowledged: its timeout after created_at.';
COMMENT ON COLUMN @mpp.mpp_tasks.note IS
    'One sentence when a value of the report was changed as it came in. It is a part of every later reason.';
UPDATE @mpp.mpp_tasks SET expires_at = created_at + timeout WHERE finished_at IS NULL;

-- Each finds a part of what is open, or the newest of what is done, beside any history.
CREATE INDEX mpp_tasks_pending ON @mpp.mpp_tasks (id) WHERE status = 'pending';
CREATE INDEX mpp_tasks_running ON @mpp.mpp_tasks (groupid) WHERE status IN ('claimed', 'holding');
CREATE INDEX mpp_tasks_expiry ON @mpp.mpp_tasks (coalesce(deadline, expires_at))
    WHERE status = 'pending' AND event <> 'after_promote';
CREATE INDEX mpp_tasks_done ON @mpp.mpp_tasks (groupid, id)
    WHERE status = 'done' AND source = 'client' AND event <> 'suspect';
CREATE INDEX mpp_tasks_done_facts ON @mpp.mpp_tasks (groupid, id)
    WHERE status = 'done' AND source = 'client' AND event = 'after_promote';

-- Checks a report where it enters. Takes no lock and reads no other row.
CREATE OR REPLACE FUNCTION @mpp.mpp_tasks_before_insert() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF NEW.event IS NULL OR NEW.event NOT IN ('before_demote', 'before_promote', 'after_promote', 'suspect') THEN
        RAISE EXCEPTION 'unknown event %', quote_nullable(left(NEW.event, 60))
            USING ERRCODE = 'invalid_parameter_value', COLUMN = 'event',
                  HINT = 'Use before_demote, before_promote, after_promote or suspect.';
    END IF;
    IF NEW.groupid IS NULL OR NEW.groupid < 0 THEN
        RAISE EXCEPTION 'group % is not a group: group ids start at 0, the coordinator', coalesce(NEW.groupid::text, 'NULL')
            USING ERRCODE = 'invalid_parameter_value', COLUMN = 'groupid',
                  HINT = 'SELECT DISTINCT groupid FROM pg_dist_node shows the groups.';
    END IF;
    PERFORM @mpp.mpp_check_address(NEW.nodename, NEW.nodeport, 'the node'::text);
    PERFORM @mpp.mpp_check_secondaries(NEW.secondaries, NEW.nodename, NEW.nodeport);

    -- Months are compared as 30 days and added as what they are: a sum of both signs would pass any limit.
    IF extract(year FROM NEW.timeout) <> 0 OR extract(month FROM NEW.timeout) <> 0
        OR extract(year FROM NEW.cooldown) <> 0 OR extract(month FROM NEW.cooldown) <> 0
    THEN
        RAISE EXCEPTION 'timeout and cooldown have no months or years: % and %', NEW.timeout, NEW.cooldown
            USING ERRCODE = 'invalid_parameter_value', COLUMN = 'timeout',
                  HINT = 'Give seconds, minutes or hours, at most 1 day.';
    END IF;
    NEW.timeout := make_interval(secs => extract(epoch FROM NEW.timeout)::double precision);
    NEW.cooldown := make_interval(secs => extract(epoch FROM NEW.cooldown)::double precision);
    NEW.timeout := coalesce(NEW.timeout, CASE NEW.event WHEN 'suspect' THEN '10s' ELSE '30s' END::interval);
    IF NEW.timeout <= '0' OR NEW.timeout > '1 day' THEN
        RAISE EXCEPTION 'timeout % is out of range: it must be more than 0 and at most 1 day', NEW.timeout
            USING ERRCODE = 'invalid_parameter_value', COLUMN = 'timeout';
    END IF;
    -- With all of its time for a cooldown, a hold would be over before it may terminate a session.
    NEW.cooldown := coalesce(NEW.cooldown, least('10s'::interval, NEW.timeout / 2));
    IF NEW.cooldown < '0' OR NEW.cooldown > '1 day' THEN
        RAISE EXCEPTION 'cooldown % is out of range: it must be at least 0 and at most 1 day', NEW.cooldown
            USING ERRCODE = 'invalid_parameter_value', COLUMN = 'cooldown';
    END IF;
    IF NEW.pause NOT IN ('writes', 'all', 'none') THEN
        RAISE EXCEPTION 'unknown pause %', quote_literal(left(NEW.pause, 60))
            USING ERRCODE = 'invalid_parameter_value', COLUMN = 'pause',
                  HINT = 'Use writes, all, none, or NULL for the setting of the controller.';
    END IF;
    IF NEW.source IS NULL OR NEW.source NOT IN ('client', 'sync', 'probe') THEN
        RAISE EXCEPTION 'unknown source %', quote_nullable(left(NEW.source, 60))
            USING ERRCODE = 'invalid_parameter_value', COLUMN = 'source',
                  HINT = 'Leave it out: a client is the default.';
    END IF;
    IF NEW.status IS DISTINCT FROM 'pending' THEN
        RAISE EXCEPTION 'a new task is pending, not %', quote_nullable(left(NEW.status, 60))
            USING ERRCODE = 'invalid_parameter_value', COLUMN = 'status',
                  HINT = 'Leave status out: the controller writes it.';
    END IF;
    NEW.created_by := session_user;
    NEW.created_at := clock_timestamp();
    NEW.note := NULL;
    RETURN NEW;
END
$$;

-- After every trigger that may change the timeout, by its name.
CREATE FUNCTION @mpp.mpp_tasks_expiry() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    NEW.expires_at := NEW.created_at + NEW.timeout;
    RETURN NEW;
END
$$;
CREATE TRIGGER mpp_tasks_9_expiry BEFORE INSERT ON @mpp.mpp_tasks
    FOR EACH ROW EXECUTE FUNCTION @mpp.mpp_tasks_expiry();

-- Ends the pending tasks of a group that a newer one supersedes (mpp_supersedes), and says how many.
--
-- A task is also superseded by a newer one that is done: an identity value is drawn at the INSERT, so a
-- transaction that stayed open commits an older task after a newer one has run. Only a task that never
-- ran is; the tasks of a lost hold go back to the queue together.
--
-- Locks: the rows that it ends. One that another session has locked is passed over; the controller asks
-- again before it claims. Rows read: what is open of the group, and what is done since its oldest.
CREATE FUNCTION @mpp.mpp_supersede(of_group integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    ended integer;
BEGIN
    WITH pending AS MATERIALIZED (
        SELECT t.id, t.event = 'after_promote' AS is_fact, t.source = 'client' AS is_client, t.event, t.attempt
        FROM @mpp.mpp_tasks AS t
        WHERE t.finished_at IS NULL AND t.groupid = of_group AND t.status = 'pending'
    ), newest AS MATERIALIZED (
        SELECT max(p.id) FILTER (WHERE p.attempt = 0) AS any_report,
               max(p.id) FILTER (WHERE p.attempt = 0 AND p.is_fact) AS any_fact,
               max(p.id) FILTER (WHERE p.attempt = 0 AND p.is_client AND p.event <> 'suspect') AS report,
               max(p.id) FILTER (WHERE p.attempt = 0 AND p.is_client AND p.is_fact) AS fact,
               -- One that was tried so often names a node that is no primary yet, and keeps no other from it.
               max(p.id) FILTER (WHERE p.is_client AND p.is_fact AND p.attempt < 5) AS open_fact,
               min(p.id) FILTER (WHERE p.attempt = 0) AS oldest
        FROM pending AS p
    ), done AS MATERIALIZED (
        SELECT (SELECT max(d.id) FROM @mpp.mpp_tasks AS d
                WHERE d.groupid = of_group AND d.id > n.oldest
                  AND d.status = 'done' AND d.source = 'client' AND d.event <> 'suspect') AS report,
               (SELECT max(d.id) FROM @mpp.mpp_tasks AS d
                WHERE d.groupid = of_group AND d.id > n.oldest
                  AND d.status = 'done' AND d.source = 'client' AND d.event = 'after_promote') AS fact
        FROM newest AS n
    ), judged AS (
        SELECT p.id,
               CASE WHEN p.is_client AND p.is_fact THEN n.fact
                    WHEN p.is_client THEN n.report
                    WHEN p.is_fact THEN n.any_fact
                    ELSE n.any_report
               END AS newer,
               CASE WHEN p.attempt > 0 THEN NULL
                    WHEN p.is_fact THEN d.fact
                    ELSE d.report
               END AS done,
               -- A fact that was seen before one of a client runs would undo that one.
               CASE WHEN p.is_fact AND NOT p.is_client THEN n.open_fact END AS gives_way_to
        FROM pending AS p
        CROSS JOIN newest AS n
        CROSS JOIN done AS d
    ), superseded AS MATERIALIZED (
        SELECT j.id,
               CASE WHEN greatest(j.newer, j.done) > j.id THEN greatest(j.newer, j.done)
                    ELSE j.gives_way_to
               END AS by_task
        FROM judged AS j
        WHERE greatest(j.newer, j.done) > j.id OR j.gives_way_to IS NOT NULL
    ), locked AS MATERIALIZED (
        SELECT t.id, s.by_task
        FROM @mpp.mpp_tasks AS t
        JOIN superseded AS s ON s.id = t.id
        WHERE t.status = 'pending'
        FOR UPDATE OF t SKIP LOCKED
    )
    UPDATE @mpp.mpp_tasks AS t
    SET status = 'superseded',
        reason = format('superseded by task %s, %s of %s:%s'::text, n.id, n.event, n.nodename, n.nodeport)
    FROM locked AS l
    JOIN @mpp.mpp_tasks AS n ON n.id = l.by_task
    WHERE t.id = l.id;
    GET DIAGNOSTICS ended = ROW_COUNT;
    RETURN ended;
END
$$;
COMMENT ON FUNCTION @mpp.mpp_supersede IS
    'Ends the pending tasks of a group that a newer task supersedes; returns how many. For controllers and the trigger of a report.';

-- A report supersedes what it can when it commits, so that a waiter is answered without a controller.
-- Not before: an open transaction would have the older rows locked for as long as it likes.
-- A retry of an older task becomes due, so that it is tried once more before this report.
--
-- In a transaction with an old snapshot the statements could only fail; the controller does it then.
CREATE FUNCTION @mpp.mpp_tasks_at_commit() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    mark   text;
    marks  text;
    newest bigint;
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RETURN NULL;
    END IF;
    -- Once for all rows of a transaction: the first one of each group, as all of them are there by now. A
    -- client that writes this setting keeps only its own reports from being superseded before the claim.
    mark := format('%s:%s,'::text, pg_current_xact_id(), NEW.groupid);
    marks := coalesce(current_setting('mpp.superseded', true), '');
    IF position(mark IN marks) > 0 OR length(marks) > 100000 THEN
        RETURN NULL;
    END IF;
    PERFORM set_config('mpp.superseded', marks || mark, true);
    SELECT max(t.id) INTO newest FROM @mpp.mpp_tasks AS t WHERE t.finished_at IS NULL AND t.groupid = NEW.groupid;
    PERFORM @mpp.mpp_supersede(NEW.groupid);
    UPDATE @mpp.mpp_tasks AS t
    SET not_before = NULL
    FROM (
        SELECT r.id
        FROM @mpp.mpp_tasks AS r
        WHERE r.finished_at IS NULL AND r.groupid = NEW.groupid AND r.id < greatest(newest, NEW.id)
          AND r.status = 'pending' AND r.not_before IS NOT NULL
        FOR UPDATE SKIP LOCKED
    ) AS retry
    WHERE t.id = retry.id;
    RETURN NULL;
END
$$;
DROP TRIGGER mpp_tasks_3_supersede ON @mpp.mpp_tasks;
DROP FUNCTION @mpp.mpp_tasks_after_insert();
CREATE CONSTRAINT TRIGGER mpp_tasks_3_supersede AFTER INSERT ON @mpp.mpp_tasks
    DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION @mpp.mpp_tasks_at_commit();

-- The newest report that has come since and supersedes this task, NULL when there is none. One that
-- has run already is none.
CREATE OR REPLACE FUNCTION @mpp.mpp_superseded_by(task @mpp.mpp_tasks) RETURNS bigint
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT n.id
    FROM @mpp.mpp_tasks AS n
    WHERE n.finished_at IS NULL
      AND n.groupid = task.groupid
      AND n.id > task.id
      AND n.status = 'pending'
      AND n.attempt = 0
      AND @mpp.mpp_supersedes(n.event, n.source, task.event, task.source)
    ORDER BY n.id DESC
    LIMIT 1
$$;

CREATE OR REPLACE FUNCTION @mpp.mpp_tasks_before_update() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    newer bigint;
BEGIN
    IF OLD.finished_at IS NOT NULL THEN
        RAISE EXCEPTION 'task % has ended as %: an end is final', OLD.id, OLD.status
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  HINT = 'Report again with a new task.';
    END IF;
    IF NEW.status = 'pending' AND OLD.status <> 'pending' THEN
        newer := @mpp.mpp_superseded_by(NEW);
        IF newer IS NOT NULL THEN
            NEW.status := 'superseded';
            NEW.reason := format('superseded by task %s'::text, newer);
        END IF;
    END IF;
    -- What was changed in the report is said with everything that is said of it later.
    IF NEW.note IS NOT NULL AND NEW.reason IS DISTINCT FROM OLD.reason
        AND position(NEW.note IN coalesce(NEW.reason, '')) = 0
    THEN
        NEW.reason := concat_ws('; ', NEW.note, NEW.reason);
    END IF;
    IF NEW.status NOT IN ('pending', 'claimed', 'holding') THEN
        NEW.finished_at := clock_timestamp();
    END IF;
    RETURN NEW;
END
$$;

CREATE OR REPLACE FUNCTION @mpp.mpp_tasks_notify() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    -- A queue that is full would refuse the report; the controller also looks by itself.
    IF pg_notification_queue_usage() < 0.9 THEN
        PERFORM pg_notify('mpp_tasks', '');
    END IF;
    RETURN NULL;
END
$$;

CREATE OR REPLACE FUNCTION @mpp.mpp_task_log_append_only() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RAISE EXCEPTION 'mpp_task_log is append-only'
        USING ERRCODE = 'object_not_in_prerequisite_state';
END
$$;

-- The session that has locked the row of a task.
CREATE FUNCTION @mpp.mpp_lockers(of_task bigint) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce(string_agg(DISTINCT l.pid::text, ', '), 'unknown')
    FROM pg_locks AS l
    WHERE l.granted AND l.pid <> pg_backend_pid() AND l.locktype = 'transactionid'
      AND l.transactionid = (SELECT t.xmax FROM @mpp.mpp_tasks AS t WHERE t.id = of_task)
$$;

-- The sessions that have locked one of our tables against a report, or wait for such a lock, so that all others
-- wait behind them. Reads none of these tables.
CREATE FUNCTION @mpp.mpp_table_lockers() RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce(
        string_agg(DISTINCT format('%s by the session with pid %s'::text, c.relname, coalesce(l.pid::text, 'unknown: a prepared transaction')), ', '),
        'a table that is free again')
    FROM pg_locks AS l
    JOIN pg_class AS c ON c.oid = l.relation
    WHERE l.locktype = 'relation' AND l.pid IS DISTINCT FROM pg_backend_pid()
      AND l.database = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
      AND c.relnamespace = (SELECT y.typnamespace FROM pg_type AS y WHERE y.oid = pg_typeof(NULL::@mpp.mpp_tasks))
      AND c.relname ~ '^mpp_'
      AND l.mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
$$;

-- A hook has said that a node has changed: the controller compares at once.
CREATE TRIGGER mpp_members_2_notify AFTER INSERT OR UPDATE ON @mpp.mpp_members
    FOR EACH ROW WHEN (NEW.source = 'table' AND NEW.since = NEW.reported_at)
    EXECUTE FUNCTION @mpp.mpp_tasks_notify();

-- Locks: none but its own row. It waits only for a session that has locked the whole table.
CREATE OR REPLACE FUNCTION @mpp.mpp_submit(
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

CREATE OR REPLACE FUNCTION @mpp.mpp_task_status(id bigint, OUT status text, OUT reason text)
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT t.status, t.reason FROM @mpp.mpp_tasks AS t WHERE t.id = $1
$$;

-- Locks: the row of the task, until the operator's transaction ends. The controller passes over it.
CREATE OR REPLACE FUNCTION @mpp.mpp_cancel(id bigint) RETURNS text
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
CREATE OR REPLACE FUNCTION @mpp.mpp_release(groupid integer) RETURNS boolean
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

-- Locks: none that is waited for; a row that another session has locked is passed over.
CREATE OR REPLACE FUNCTION @mpp.mpp_rebuild_cache() RETURNS void
LANGUAGE sql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
    UPDATE @mpp.mpp_controllers AS c
    SET rebuild_at = clock_timestamp()
    FROM (SELECT o.id FROM @mpp.mpp_controllers AS o FOR UPDATE SKIP LOCKED) AS free
    WHERE c.id = free.id;
    SELECT pg_notify('mpp_tasks', '');
$$;

CREATE OR REPLACE FUNCTION @mpp.mpp_ignore_replication_slot(name text, type text, database text, plugin text) RETURNS boolean
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

CREATE OR REPLACE FUNCTION @mpp.mpp_tasks_outbox() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    INSERT INTO @mpp.mpp_outbox (task_id, database)
    SELECT NEW.id, s.database FROM @mpp.mpp_siblings AS s;
    -- A report wakes the controller by itself. Its end does not, and traffic may wait for it.
    IF FOUND AND TG_OP = 'UPDATE' THEN
        PERFORM pg_notify('mpp_tasks', '');
    END IF;
    RETURN NULL;
END
$$;

-- Locks: the row of a copy that is ended, until the end of the call; one that another session has locked
-- is not waited for. False then, and the report is told again.
CREATE OR REPLACE FUNCTION @mpp.mpp_follow(origin name, report jsonb) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '500ms'
AS $$
DECLARE
    original constant @mpp.mpp_tasks := jsonb_populate_record(NULL::@mpp.mpp_tasks, report);
    is_fact  constant boolean := original.event = 'after_promote';
    came_to  constant text := format('task %s of database %s was %s'::text, original.id, origin, original.status);
    copy     @mpp.mpp_tasks;
BEGIN
    SELECT t.* INTO copy
    FROM @mpp.mpp_tasks AS t
    WHERE t.origin_id = original.id AND t.origin_database = origin AND t.created_at = original.created_at;

    IF original.finished_at IS NULL OR (is_fact AND original.status IN ('done', 'failed')) THEN
        IF copy.id IS NOT NULL
            OR (NOT is_fact AND original.created_at + original.timeout <= clock_timestamp())
            -- The newest report wins, in any of the databases.
            OR EXISTS (
                SELECT
                FROM @mpp.mpp_tasks AS t
                WHERE t.finished_at IS NULL
                  AND t.groupid = original.groupid
                  AND t.created_at > original.created_at
                  AND t.source = 'client'
                  AND @mpp.mpp_supersedes(t.event, t.source, original.event, 'client'::text))
            OR EXISTS (
                SELECT
                FROM (
                    SELECT d.created_at
                    FROM @mpp.mpp_tasks AS d
                    WHERE d.groupid = original.groupid
                      AND d.status = 'done' AND d.source = 'client' AND d.event = 'after_promote'
                    ORDER BY d.id DESC
                    LIMIT 1
                ) AS newest
                WHERE newest.created_at > original.created_at)
        THEN
            RETURN true;
        END IF;
        INSERT INTO @mpp.mpp_tasks (event, groupid, nodename, nodeport, secondaries, timeout, cooldown, pause,
                                    origin_database, origin_id)
        VALUES (original.event, original.groupid, original.nodename, original.nodeport, original.secondaries,
                original.timeout, original.cooldown, original.pause, origin, original.id)
        RETURNING id INTO copy.id;
        UPDATE @mpp.mpp_tasks AS t
        SET created_at = original.created_at,
            expires_at = original.created_at + t.timeout
        WHERE t.id = copy.id;
    -- A report that is told again once it is done has come to something, and its copy waits for the fact
    -- that is told next.
    ELSIF original.status IN ('cancelled', 'rolled_back', 'failed', 'expired', 'discarded') THEN
        -- By status alone: the controller that holds for it looks when it is woken.
        UPDATE @mpp.mpp_tasks AS t
        SET status = CASE WHEN t.status = 'pending' AND t.deadline IS NULL THEN 'cancelled' ELSE 'rolled_back' END,
            reason = came_to
        WHERE t.id = copy.id
          AND t.finished_at IS NULL
          AND (NOT is_fact OR (t.status = 'pending' AND original.status = 'cancelled'));
        IF FOUND THEN
            PERFORM pg_notify('mpp_tasks', '');
        END IF;
    END IF;
    RETURN true;
EXCEPTION WHEN lock_not_available THEN
    RETURN false;
END
$$;

CREATE OR REPLACE VIEW @mpp.mpp_holds AS
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

REVOKE ALL ON FUNCTION @mpp.mpp_supersede, @mpp.mpp_tasks_at_commit, @mpp.mpp_tasks_expiry, @mpp.mpp_lockers, @mpp.mpp_table_lockers,
    @mpp.mpp_release_tasks, @mpp.mpp_end_group_session FROM PUBLIC;
GRANT EXECUTE ON FUNCTION @mpp.mpp_supersede TO mpp_controller;
GRANT SELECT ON @mpp.mpp_groups, @mpp.mpp_group_sessions TO mpp_operator;
GRANT SELECT, INSERT, UPDATE ON @mpp.mpp_groups TO mpp_controller;
GRANT SELECT ON @mpp.mpp_group_sessions TO mpp_controller;

    $sql$, '@mpp.', mpp);
END
$migration$;

SELECT set_config('search_path', current_setting('mpp.bookkeeping_path'), true);
