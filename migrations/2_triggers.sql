-- What happens on INSERT and UPDATE of the control table, so that it holds whoever writes.
SELECT set_config('search_path', current_setting('mpp.objects_path'), true);

-- Checks a report where it enters and numbers it.
--
-- An identity value is drawn before any trigger runs and two sessions may commit in the other
-- order, so "the newest report wins" would follow the wrong one. A transaction-level lock for the
-- group makes its reporters take turns; whoever finds that numbers were drawn since it drew its own
-- draws again. last_value needs no snapshot, so that also holds under REPEATABLE READ.
--
-- Lock: advisory (1297109065, groupid), until the reporting transaction ends. Others who report for
-- the same group wait for at most 10 seconds and then get a clear error instead of hanging.
CREATE FUNCTION mpp_tasks_before_insert() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path FROM CURRENT
SET lock_timeout = '10s'
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
    PERFORM mpp_check_address(NEW.nodename, NEW.nodeport, 'the node');
    PERFORM mpp_check_secondaries(NEW.secondaries, NEW.nodename, NEW.nodeport);

    NEW.timeout := coalesce(NEW.timeout, CASE NEW.event WHEN 'suspect' THEN '10s' ELSE '30s' END::interval);
    IF NEW.timeout <= '0' OR NEW.timeout > '1 day' THEN
        RAISE EXCEPTION 'timeout % is out of range: it must be more than 0 and at most 1 day', NEW.timeout
            USING ERRCODE = 'invalid_parameter_value', COLUMN = 'timeout';
    END IF;
    -- With all of its time for a cooldown, a hold would be over before it may end anybody's session.
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

    BEGIN
        PERFORM pg_advisory_xact_lock(1297109065, NEW.groupid);
    EXCEPTION WHEN lock_not_available THEN
        RAISE EXCEPTION 'another transaction has an uncommitted report for group %', NEW.groupid
            USING ERRCODE = 'lock_not_available',
                  DETAIL = format('Held by the session with pid %s.', (
                      SELECT string_agg(l.pid::text, ', ')
                      FROM pg_locks AS l
                      WHERE l.locktype = 'advisory' AND l.classid = 1297109065 AND l.objid = NEW.groupid::oid
                        AND l.database = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
                        AND l.granted)),
                  HINT = 'Report again, and commit right after a report.';
    END;
    IF NEW.id <> (SELECT s.last_value FROM mpp_tasks_id_seq AS s) THEN
        NEW.id := nextval('mpp_tasks_id_seq');
    END IF;
    NEW.created_by := session_user;
    NEW.created_at := clock_timestamp();
    RETURN NEW;
END
$$;

CREATE FUNCTION mpp_check_address(nodename text, nodeport integer, what text) RETURNS void
LANGUAGE plpgsql IMMUTABLE
SET search_path FROM CURRENT
AS $$
BEGIN
    IF nodename IS NULL OR nodename = '' THEN
        RAISE EXCEPTION 'the host of % is empty', what
            USING ERRCODE = 'invalid_parameter_value', COLUMN = 'nodename',
                  HINT = 'Give the host as pg_dist_node is to have it.';
    END IF;
    IF nodename ~ '[[:space:][:cntrl:]]' OR octet_length(nodename) > 255 THEN
        RAISE EXCEPTION 'the host of % is not a host: %', what, quote_literal(left(nodename, 60))
            USING ERRCODE = 'invalid_parameter_value', COLUMN = 'nodename',
                  HINT = 'A host has no blanks or control characters and at most 255 bytes.';
    END IF;
    IF nodeport IS NULL OR nodeport NOT BETWEEN 1 AND 65535 THEN
        RAISE EXCEPTION 'the port of % is %, outside 1-65535', what, coalesce(nodeport::text, 'NULL')
            USING ERRCODE = 'invalid_parameter_value', COLUMN = 'nodeport';
    END IF;
END
$$;

CREATE FUNCTION mpp_check_secondaries(secondaries text[], nodename text, nodeport integer) RETURNS void
LANGUAGE plpgsql IMMUTABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    entry   text;
    parts   text[];
    address text;
    seen    text[] := '{}';
BEGIN
    IF array_ndims(secondaries) > 1 THEN
        RAISE EXCEPTION 'the secondaries are a table of % dimensions, not a list', array_ndims(secondaries)
            USING ERRCODE = 'invalid_parameter_value', COLUMN = 'secondaries',
                  HINT = 'Write ARRAY[''worker-2:5432'', ''worker-3:5432''].';
    END IF;
    FOREACH entry IN ARRAY coalesce(secondaries, '{}'::text[]) LOOP
        parts := regexp_match(entry, '^(?:\[([^\[\]]+)\]|([^\[\]:]+)):([0-9]{1,5})$');
        IF parts IS NULL THEN
            RAISE EXCEPTION 'secondary % is not host:port', quote_nullable(left(entry, 60))
                USING ERRCODE = 'invalid_parameter_value', COLUMN = 'secondaries',
                      HINT = 'Write worker-2:5432, or [::1]:5432 for an IPv6 address.';
        END IF;
        PERFORM mpp_check_address(coalesce(parts[1], parts[2]), parts[3]::integer, format('secondary %L', entry));
        IF coalesce(parts[1], parts[2]) = nodename AND parts[3]::integer = nodeport THEN
            RAISE EXCEPTION 'secondary % is the node itself', quote_literal(entry)
                USING ERRCODE = 'invalid_parameter_value', COLUMN = 'secondaries',
                      HINT = 'List the other nodes of the group.';
        END IF;
        address := format('%s:%s', coalesce(parts[1], parts[2]), parts[3]::integer);
        IF address = ANY (seen) THEN
            RAISE EXCEPTION 'secondary % is listed twice', quote_literal(entry)
                USING ERRCODE = 'invalid_parameter_value', COLUMN = 'secondaries',
                      HINT = 'List every other node of the group once.';
        END IF;
        seen := seen || address;
    END LOOP;
END
$$;

-- The newest report wins. A report of a client supersedes the group's older pending ones; a suspect,
-- or a task that the sync or the probe made, supersedes nothing of a client's. An after_promote is a
-- fact, so only a newer fact supersedes it; the others run after it, and its retry becomes due now.
-- A fact of the sync or the probe gives way at once to one of a client that is pending: it was seen
-- before that one runs, and would undo it.
--
-- Locks: the rows that it supersedes. Whoever has one (an uncommitted mpp_cancel) is waited for at
-- most 10 seconds; the report then fails instead of hanging.
CREATE FUNCTION mpp_supersedes(new_event text, new_source text, old_event text, old_source text) RETURNS boolean
LANGUAGE sql IMMUTABLE
RETURN ((new_source = 'client' AND new_event <> 'suspect') OR old_source <> 'client')
   AND (old_event <> 'after_promote' OR new_event = 'after_promote');

CREATE FUNCTION mpp_tasks_after_insert() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path FROM CURRENT
SET lock_timeout = '10s'
AS $$
BEGIN
    UPDATE mpp_tasks AS t
    SET status = 'superseded',
        reason = format('superseded by task %s, %s of %s:%s', NEW.id, NEW.event, NEW.nodename, NEW.nodeport)
    WHERE t.groupid = NEW.groupid
      AND t.id < NEW.id
      AND t.status = 'pending'
      AND mpp_supersedes(NEW.event, NEW.source, t.event, t.source);

    UPDATE mpp_tasks AS t
    SET not_before = NULL
    WHERE t.groupid = NEW.groupid
      AND t.id < NEW.id
      AND t.status = 'pending'
      AND t.not_before IS NOT NULL;

    IF NEW.event = 'after_promote' AND NEW.source <> 'client' THEN
        UPDATE mpp_tasks AS t
        SET status = 'superseded',
            reason = format('a client had reported task %s, which has yet to run', c.id)
        FROM (
            SELECT max(p.id) AS id
            FROM mpp_tasks AS p
            WHERE p.groupid = NEW.groupid AND p.id < NEW.id AND p.status = 'pending'
              AND p.event = 'after_promote' AND p.source = 'client'
        ) AS c
        WHERE t.id = NEW.id AND c.id IS NOT NULL;
    END IF;
    RETURN NULL;
END
$$;

-- The newest report that has come since and supersedes this task, NULL when there is none. One that
-- has run already is none: the tasks of a lost hold go back to the queue together.
CREATE FUNCTION mpp_superseded_by(task mpp_tasks) RETURNS bigint
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$
    SELECT max(n.id)
    FROM mpp_tasks AS n
    WHERE n.finished_at IS NULL
      AND n.groupid = task.groupid
      AND n.id > task.id
      AND n.status = 'pending'
      AND n.attempt = 0
      AND mpp_supersedes(n.event, n.source, task.event, task.source)
$$;

-- An end is final, and every end has its time. A task that comes back to the queue finds what was
-- reported while it ran: a newer report that would have superseded it does so now.
CREATE FUNCTION mpp_tasks_before_update() RETURNS trigger
LANGUAGE plpgsql
SET search_path FROM CURRENT
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
        newer := mpp_superseded_by(NEW);
        IF newer IS NOT NULL THEN
            NEW.status := 'superseded';
            NEW.reason := format('superseded by task %s', newer);
        END IF;
    END IF;
    IF NEW.status NOT IN ('pending', 'claimed', 'holding') THEN
        NEW.finished_at := clock_timestamp();
    END IF;
    RETURN NEW;
END
$$;

-- One row of the log for each change of status, in the same commit, and an acknowledgement where
-- somebody may wait for it: holding, or any end. Each notification has a price, so no others are sent.
-- The controller hands the rows of pg_dist_node over in settings that end with its transaction.
CREATE FUNCTION mpp_tasks_log() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path FROM CURRENT
AS $$
BEGIN
    INSERT INTO mpp_task_log (task_id, groupid, event, status, reason, attempt, controller, node_before, node_after)
    VALUES (NEW.id, NEW.groupid, NEW.event, NEW.status, NEW.reason, NEW.attempt,
            CASE WHEN TG_OP = 'UPDATE' THEN NEW.claimed_by END,
            CASE WHEN TG_OP = 'UPDATE' THEN nullif(current_setting('mpp.node_before', true), '')::jsonb END,
            CASE WHEN TG_OP = 'UPDATE' THEN nullif(current_setting('mpp.node_after', true), '')::jsonb END);
    IF NEW.status NOT IN ('pending', 'claimed') THEN
        PERFORM pg_notify('mpp_task_status', json_build_object(
            'id', NEW.id, 'groupid', NEW.groupid, 'event', NEW.event, 'status', NEW.status)::text);
    END IF;
    RETURN NULL;
END
$$;

-- The payload is constant on purpose: a wake-up says "look", and PostgreSQL folds equal ones of a
-- transaction into one.
CREATE FUNCTION mpp_tasks_notify() RETURNS trigger
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
BEGIN
    PERFORM pg_notify('mpp_tasks', '');
    RETURN NULL;
END
$$;

CREATE FUNCTION mpp_task_log_append_only() RETURNS trigger
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
BEGIN
    RAISE EXCEPTION 'mpp_task_log is append-only'
        USING ERRCODE = 'object_not_in_prerequisite_state';
END
$$;

-- Triggers of one kind fire in the order of their names: a task is logged before it supersedes.
CREATE TRIGGER mpp_tasks_1_check BEFORE INSERT ON mpp_tasks
    FOR EACH ROW EXECUTE FUNCTION mpp_tasks_before_insert();
CREATE TRIGGER mpp_tasks_1_final BEFORE UPDATE ON mpp_tasks
    FOR EACH ROW EXECUTE FUNCTION mpp_tasks_before_update();
CREATE TRIGGER mpp_tasks_2_log_insert AFTER INSERT ON mpp_tasks
    FOR EACH ROW EXECUTE FUNCTION mpp_tasks_log();
CREATE TRIGGER mpp_tasks_2_log_update AFTER UPDATE ON mpp_tasks
    FOR EACH ROW WHEN (OLD.status IS DISTINCT FROM NEW.status OR OLD.attempt <> NEW.attempt)
    EXECUTE FUNCTION mpp_tasks_log();
CREATE TRIGGER mpp_tasks_3_supersede AFTER INSERT ON mpp_tasks
    FOR EACH ROW EXECUTE FUNCTION mpp_tasks_after_insert();
CREATE TRIGGER mpp_tasks_4_notify AFTER INSERT ON mpp_tasks
    FOR EACH STATEMENT EXECUTE FUNCTION mpp_tasks_notify();
CREATE TRIGGER mpp_task_log_append_only BEFORE UPDATE OR TRUNCATE ON mpp_task_log
    FOR EACH STATEMENT EXECUTE FUNCTION mpp_task_log_append_only();

SELECT set_config('search_path', current_setting('mpp.bookkeeping_path'), true);
