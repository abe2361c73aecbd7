-- Several Citus databases on the same nodes: a failover is one for all of them, so a report into one
-- is a report into each. The others are its siblings (MPP_DATABASES).
SELECT set_config('search_path', current_setting('mpp.objects_path'), true);

CREATE TABLE mpp_siblings (
    database name PRIMARY KEY
);
COMMENT ON TABLE mpp_siblings IS
    'The other databases on the same nodes that get every report into this one. The active controller keeps it as MPP_DATABASES says.';

-- What a sibling has yet to be told. A row is written by trigger in the commit of the report, so a
-- crash loses none, and deleted once the sibling has it.
CREATE TABLE mpp_outbox (
    id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    task_id  bigint NOT NULL,
    database name   NOT NULL REFERENCES mpp_siblings ON DELETE CASCADE
);
CREATE INDEX mpp_outbox_database ON mpp_outbox (database, id);
COMMENT ON TABLE mpp_outbox IS
    'Reports, and ends of reports, that a sibling database has yet to be told of. Empty when all is told.';
COMMENT ON COLUMN mpp_outbox.task_id IS 'The task in mpp_tasks; what to tell is read from it.';

ALTER TABLE mpp_tasks
    ADD COLUMN origin_database name,
    ADD COLUMN origin_id bigint,
    ADD CONSTRAINT mpp_tasks_origin_check CHECK ((origin_database IS NULL) = (origin_id IS NULL));
-- Told twice is told once. A database that was made anew counts its tasks from 1 again, so an id alone
-- does not name a report; with the time at which it was made it does.
CREATE UNIQUE INDEX mpp_tasks_origin ON mpp_tasks (origin_id, origin_database, created_at) WHERE origin_id IS NOT NULL;
COMMENT ON COLUMN mpp_tasks.origin_database IS
    'The sibling database in which the report was made; NULL for one that was made here.';
COMMENT ON COLUMN mpp_tasks.origin_id IS 'Its task there.';

-- Locks: FOR KEY SHARE on the rows of mpp_siblings, until the reporting transaction ends.
CREATE FUNCTION mpp_tasks_outbox() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path FROM CURRENT
AS $$
BEGIN
    INSERT INTO mpp_outbox (task_id, database)
    SELECT NEW.id, s.database FROM mpp_siblings AS s;
    -- A report wakes the controller by itself. Its end does not, and traffic may wait for it.
    IF FOUND AND TG_OP = 'UPDATE' THEN
        PERFORM pg_notify('mpp_tasks', '');
    END IF;
    RETURN NULL;
END
$$;

CREATE TRIGGER mpp_tasks_2_outbox_report AFTER INSERT ON mpp_tasks
    FOR EACH ROW WHEN (NEW.source = 'client' AND NEW.origin_id IS NULL)
    EXECUTE FUNCTION mpp_tasks_outbox();
-- A copy whose original came to nothing would keep traffic waiting for nothing. What superseded an
-- original is told by itself.
CREATE TRIGGER mpp_tasks_2_outbox_end AFTER UPDATE OF status ON mpp_tasks
    FOR EACH ROW WHEN (
        NEW.source = 'client' AND NEW.origin_id IS NULL AND OLD.finished_at IS NULL
        AND NEW.status IN ('cancelled', 'rolled_back', 'failed', 'expired', 'discarded'))
    EXECUTE FUNCTION mpp_tasks_outbox();

-- Has this database follow a report that was made in another: makes its copy, or ends that when the
-- original came to nothing. Called any number of times, it does the same as once. Siblings are
-- databases of one server, so their clocks are one.
--
-- False when somebody has an uncommitted report for the group: it is not waited for.
--
-- Locks: the turn of the group's reporters, advisory (1297109065, groupid), and the row of a copy that is
-- ended, until the end of the call. A commit that has the row is waited for.
CREATE FUNCTION mpp_follow(origin name, report jsonb) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path FROM CURRENT
AS $$
DECLARE
    original constant mpp_tasks := jsonb_populate_record(NULL::mpp_tasks, report);
    is_fact  constant boolean := original.event = 'after_promote';
    came_to  constant text := format('task %s of database %s was %s', original.id, origin, original.status);
    copy     mpp_tasks;
BEGIN
    IF NOT pg_try_advisory_xact_lock(1297109065, original.groupid) THEN
        RETURN false;
    END IF;
    SELECT t.* INTO copy
    FROM mpp_tasks AS t
    WHERE t.origin_id = original.id AND t.origin_database = origin AND t.created_at = original.created_at;

    IF original.finished_at IS NULL OR (is_fact AND original.status IN ('done', 'failed')) THEN
        IF copy.id IS NOT NULL
            OR (NOT is_fact AND original.created_at + original.timeout <= clock_timestamp())
            -- The newest report wins, whichever database it was made in.
            OR EXISTS (
                SELECT
                FROM mpp_tasks AS t
                WHERE t.groupid = original.groupid
                  AND t.created_at > original.created_at
                  AND t.source = 'client'
                  AND (t.finished_at IS NULL OR (t.event = 'after_promote' AND t.status = 'done'))
                  AND mpp_supersedes(t.event, t.source, original.event, 'client'))
        THEN
            RETURN true;
        END IF;
        INSERT INTO mpp_tasks (event, groupid, nodename, nodeport, secondaries, timeout, cooldown, pause,
                               origin_database, origin_id)
        VALUES (original.event, original.groupid, original.nodename, original.nodeport, original.secondaries,
                original.timeout, original.cooldown, original.pause, origin, original.id)
        RETURNING id INTO copy.id;
        UPDATE mpp_tasks AS t SET created_at = original.created_at WHERE t.id = copy.id;
    -- As the trigger above has it: a report that is told again once it is done has come to something, and
    -- its copy waits for the fact that is told next.
    ELSIF original.status IN ('cancelled', 'rolled_back', 'failed', 'expired', 'discarded') THEN
        -- By status alone: the controller that holds for it looks when it is woken.
        UPDATE mpp_tasks AS t
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
END
$$;
COMMENT ON FUNCTION mpp_follow IS
    'Has this database follow a report made in a sibling database, given as its row of mpp_tasks. For controllers (MPP_DATABASES).';

REVOKE ALL ON FUNCTION mpp_follow, mpp_tasks_outbox FROM PUBLIC;
GRANT EXECUTE ON FUNCTION mpp_follow TO mpp_controller;
GRANT SELECT ON mpp_siblings, mpp_outbox TO mpp_operator;
GRANT SELECT, INSERT, DELETE ON mpp_siblings TO mpp_controller;
GRANT SELECT, DELETE ON mpp_outbox TO mpp_controller;

SELECT set_config('search_path', current_setting('mpp.bookkeeping_path'), true);
