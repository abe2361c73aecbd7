-- Who may do what. Roles belong to the whole server, so they are made only where they are missing.
SELECT set_config('search_path', current_setting('mpp.objects_path'), true);

DO $do$
DECLARE
    role_name text;
BEGIN
    FOREACH role_name IN ARRAY ARRAY['mpp_client', 'mpp_operator', 'mpp_controller'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role_name) THEN
            BEGIN
                EXECUTE format('CREATE ROLE %I NOLOGIN', role_name);
            EXCEPTION
                WHEN duplicate_object OR unique_violation THEN
                    NULL; -- another database's migration was faster
                WHEN insufficient_privilege THEN
                    RAISE EXCEPTION 'there is no role %, and % may not make it; migrate as a role with CREATEROLE, or let one run CREATE ROLE % first',
                        role_name, current_user, role_name
                        USING ERRCODE = 'insufficient_privilege';
            END;
        END IF;
    END LOOP;
    EXECUTE format('GRANT USAGE ON SCHEMA %I TO mpp_client, mpp_operator, mpp_controller', current_schema());
END
$do$;

REVOKE ALL ON FUNCTION
    mpp_submit, mpp_task_status, mpp_cancel, mpp_release, mpp_rebuild_cache, mpp_ignore_replication_slot,
    mpp_check_address, mpp_check_secondaries, mpp_supersedes, mpp_superseded_by, mpp_tasks_before_insert, mpp_tasks_after_insert,
    mpp_tasks_before_update, mpp_tasks_log, mpp_tasks_notify, mpp_task_log_append_only
FROM PUBLIC;

REVOKE ALL ON PROCEDURE mpp_wait, mpp_request FROM PUBLIC;

GRANT INSERT (event, groupid, nodename, nodeport, secondaries, timeout, cooldown, pause, source)
    ON mpp_tasks TO mpp_client, mpp_operator;
GRANT EXECUTE ON FUNCTION mpp_submit, mpp_task_status, mpp_ignore_replication_slot TO mpp_client, mpp_operator;
GRANT EXECUTE ON PROCEDURE mpp_wait, mpp_request TO mpp_client, mpp_operator;

GRANT SELECT ON mpp_tasks, mpp_task_log, mpp_controllers, mpp_queue, mpp_holds, mpp_status TO mpp_operator;
GRANT EXECUTE ON FUNCTION mpp_cancel, mpp_release, mpp_rebuild_cache TO mpp_operator;

GRANT SELECT, INSERT, DELETE,
      UPDATE (status, reason, nodeid, attempt, claimed_by, not_before, claimed_at, held_at, finished_at, deadline)
    ON mpp_tasks TO mpp_controller;
GRANT SELECT, DELETE ON mpp_task_log TO mpp_controller;
GRANT SELECT, INSERT, UPDATE, DELETE ON mpp_controllers TO mpp_controller;
GRANT SELECT ON mpp_queue, mpp_holds, mpp_status TO mpp_controller;
GRANT EXECUTE ON FUNCTION mpp_task_status, mpp_ignore_replication_slot, mpp_supersedes, mpp_superseded_by
    TO mpp_controller;

SELECT set_config('search_path', current_setting('mpp.bookkeeping_path'), true);

-- A controller asks here whether it knows this version of the contract.
DO $do$
BEGIN
    EXECUTE format('GRANT USAGE ON SCHEMA %I TO mpp_controller', current_schema());
END
$do$;
GRANT SELECT ON migrations TO mpp_controller;
