-- Several Citus databases on the same nodes: a failover is one for all of them, so a report into one is a report into
-- each. To which others reports are forwarded is MPP_DATABASES.
SELECT set_config('search_path', current_setting('mpp.objects_path'), true);

DO $migration$
DECLARE
    home constant text := pg_catalog.quote_ident(pg_catalog.current_schema()::text);
BEGIN
    PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    EXECUTE replace(replace($sql$

CREATE TABLE @mpp.mpp_databases (
    database name PRIMARY KEY
);
COMMENT ON TABLE @mpp.mpp_databases IS
    'The other databases on the same nodes that get every report into this one. The active controller keeps it as MPP_DATABASES says.';

-- What is to be forwarded. A row is written by trigger in the commit of the report, so a crash loses none, and
-- deleted once the other database has it.
CREATE TABLE @mpp.mpp_outbox (
    id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    task_id  bigint NOT NULL,
    database name   NOT NULL REFERENCES @mpp.mpp_databases ON DELETE CASCADE
);
COMMENT ON TABLE @mpp.mpp_outbox IS
    'Reports, and ends of reports, that are to be forwarded to another database. Empty when all are.';
COMMENT ON COLUMN @mpp.mpp_outbox.task_id IS 'The task in mpp_tasks; what is forwarded is read from it.';

CREATE INDEX mpp_outbox_database ON @mpp.mpp_outbox (database, id);

CREATE FUNCTION @mpp.mpp_tasks_outbox() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    INSERT INTO @mpp.mpp_outbox (task_id, database)
    SELECT NEW.id, s.database FROM @mpp.mpp_databases AS s;
    -- A report wakes the controller by itself. Its end does not, and traffic may wait for it.
    IF FOUND AND TG_OP = 'UPDATE' THEN
        PERFORM pg_notify('mpp_tasks', '');
    END IF;
    RETURN NULL;
END
$$;

CREATE TRIGGER mpp_tasks_2_outbox_report AFTER INSERT ON @mpp.mpp_tasks
    FOR EACH ROW WHEN (NEW.source = 'client' AND NEW.origin_id IS NULL)
    EXECUTE FUNCTION @mpp.mpp_tasks_outbox();
-- A copy whose original came to nothing would keep traffic waiting for nothing. What superseded an
-- original is forwarded by itself.
CREATE TRIGGER mpp_tasks_2_outbox_end AFTER UPDATE OF status ON @mpp.mpp_tasks
    FOR EACH ROW WHEN (
        NEW.source = 'client' AND NEW.origin_id IS NULL AND OLD.finished_at IS NULL
        AND NEW.status IN ('cancelled', 'rolled_back', 'failed', 'expired', 'discarded'))
    EXECUTE FUNCTION @mpp.mpp_tasks_outbox();

-- Locks: the row of a copy that is ended, until the end of the call; one that another session has locked
-- is not waited for. False then, and the report is forwarded again.
CREATE FUNCTION @mpp.mpp_follow(origin name, report jsonb) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '500ms'
AS $$
DECLARE
    original         constant @mpp.mpp_tasks := jsonb_populate_record(NULL::@mpp.mpp_tasks, report);
    is_after_promote constant boolean := original.event = 'after_promote';
    came_to          constant text := format('task %s of database %s was %s'::text, original.id, origin, original.status);
    copy             @mpp.mpp_tasks;
BEGIN
    SELECT t.* INTO copy
    FROM @mpp.mpp_tasks AS t
    WHERE t.origin_id = original.id AND t.origin_database = origin AND t.created_at = original.created_at;

    IF original.finished_at IS NULL OR (is_after_promote AND original.status IN ('done', 'failed')) THEN
        IF copy.id IS NOT NULL
            OR (NOT is_after_promote AND original.created_at + original.timeout <= clock_timestamp())
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
    -- A report that is forwarded again once it is done has come to something, and its copy waits for the
    -- after_promote that is forwarded next.
    ELSIF original.status IN ('cancelled', 'rolled_back', 'failed', 'expired', 'discarded') THEN
        -- By status alone: the controller that holds for it looks when it is woken.
        UPDATE @mpp.mpp_tasks AS t
        SET status = CASE WHEN t.status = 'pending' AND t.deadline IS NULL THEN 'cancelled' ELSE 'rolled_back' END,
            reason = came_to
        WHERE t.id = copy.id
          AND t.finished_at IS NULL
          AND (NOT is_after_promote OR (t.status = 'pending' AND original.status = 'cancelled'));
        IF FOUND THEN
            PERFORM pg_notify('mpp_tasks', '');
        END IF;
    END IF;
    RETURN true;
EXCEPTION WHEN lock_not_available THEN
    RETURN false;
END
$$;
COMMENT ON FUNCTION @mpp.mpp_follow IS
    'Has this database follow a report made in another database, given as its row of mpp_tasks. For controllers (MPP_DATABASES).';

REVOKE ALL ON FUNCTION @mpp.mpp_follow, @mpp.mpp_tasks_outbox FROM PUBLIC;
GRANT EXECUTE ON FUNCTION @mpp.mpp_follow TO mpp_controller;
GRANT SELECT ON @mpp.mpp_databases, @mpp.mpp_outbox TO mpp_operator;
GRANT SELECT, INSERT, DELETE ON @mpp.mpp_databases TO mpp_controller;
GRANT SELECT, DELETE ON @mpp.mpp_outbox TO mpp_controller;

    $sql$, '@mpp.', home || '.'), '@home', quote_literal(home));
END
$migration$;

SELECT set_config('search_path', current_setting('mpp.bookkeeping_path'), true);
