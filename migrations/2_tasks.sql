-- The control table, its log, and what happens when a row is written.
SELECT set_config('search_path', current_setting('mpp.objects_path'), true);

DO $migration$
DECLARE
    home constant text := pg_catalog.quote_ident(pg_catalog.current_schema()::text);
BEGIN
    PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    EXECUTE replace(replace($sql$

CREATE TABLE @mpp.mpp_tasks (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    event       text        NOT NULL
        CHECK (event IN ('before_demote', 'before_promote', 'after_promote', 'suspect')),
    groupid     integer     NOT NULL CHECK (groupid >= 0),
    nodename    text        NOT NULL
        CHECK (nodename <> '' AND octet_length(nodename) <= 255 AND nodename !~ '[[:space:][:cntrl:]]'),
    nodeport    integer     NOT NULL DEFAULT 5432 CHECK (nodeport BETWEEN 1 AND 65535),
    secondaries text[],
    timeout     interval    NOT NULL CHECK (timeout > '0' AND timeout <= '1 day'),
    cooldown    interval    NOT NULL CHECK (cooldown >= '0' AND cooldown <= '1 day'),
    pause       text        CHECK (pause IN ('writes', 'all', 'none')),
    source      text        NOT NULL DEFAULT 'client' CHECK (source IN ('client', 'sync', 'probe')),
    status      text        NOT NULL DEFAULT 'pending'
        CHECK (status IN ('pending', 'claimed', 'holding', 'done', 'superseded', 'discarded',
                          'expired', 'rolled_back', 'failed', 'cancelled')),
    reason      text,
    nodeid      integer,
    attempt     integer     NOT NULL DEFAULT 0,
    claimed_by  text,
    not_before  timestamptz,
    created_by  name        NOT NULL DEFAULT session_user,
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    claimed_at  timestamptz,
    held_at     timestamptz,
    finished_at timestamptz,
    deadline    timestamptz,
    expires_at  timestamptz,
    note        text,
    blockers    jsonb,
    origin_database name,
    origin_id   bigint,
    CONSTRAINT mpp_tasks_origin_check CHECK ((origin_database IS NULL) = (origin_id IS NULL)),
    CHECK ((finished_at IS NULL) = (status IN ('pending', 'claimed', 'holding')))
);
COMMENT ON TABLE @mpp.mpp_tasks IS
    'Control table of mpp-controller: one row is one report of a change of a worker group. INSERT a row to report; the controller writes the rest.';
COMMENT ON COLUMN @mpp.mpp_tasks.id IS 'Order of arrival: drawn by the INSERT, before its commit.';
COMMENT ON COLUMN @mpp.mpp_tasks.event IS
    'before_demote: the primary is about to stop, make its traffic wait. before_promote: this node will be the primary. after_promote: this node is the primary. suspect: the primary does not answer.';
COMMENT ON COLUMN @mpp.mpp_tasks.groupid IS 'Group in pg_dist_node; 0 is the coordinator.';
COMMENT ON COLUMN @mpp.mpp_tasks.nodename IS
    'Host as pg_dist_node is to have it. before_demote and suspect name the present primary, the promote events the new one.';
COMMENT ON COLUMN @mpp.mpp_tasks.nodeport IS 'Port of that node.';
COMMENT ON COLUMN @mpp.mpp_tasks.secondaries IS
    'host:port of every other node of the group, for after_promote. NULL leaves the secondaries as they are; an empty array removes them.';
COMMENT ON COLUMN @mpp.mpp_tasks.timeout IS
    'How long the hold may last, counted from when it opens. Default 30 seconds, 10 seconds for suspect.';
COMMENT ON COLUMN @mpp.mpp_tasks.cooldown IS
    'How long a blocking session may keep running before it is terminated. Default 10 seconds, or half of timeout if that is less. With a cooldown as long as timeout no session is terminated.';
COMMENT ON COLUMN @mpp.mpp_tasks.pause IS 'What waits: writes, all or none. NULL takes the setting of the controller (MPP_PAUSE).';
COMMENT ON COLUMN @mpp.mpp_tasks.source IS 'Who made the task: client, sync (the heartbeat) or probe.';
COMMENT ON COLUMN @mpp.mpp_tasks.status IS
    'pending, claimed, holding (the traffic waits), then one of the ends done, superseded, discarded, expired, rolled_back, failed, cancelled. An end is final.';
COMMENT ON COLUMN @mpp.mpp_tasks.reason IS 'One sentence, whenever the status does not explain itself.';
COMMENT ON COLUMN @mpp.mpp_tasks.nodeid IS 'The row of pg_dist_node that the task was about.';
COMMENT ON COLUMN @mpp.mpp_tasks.attempt IS 'How often the task was claimed. A controller can only finish the attempt that it claimed.';
COMMENT ON COLUMN @mpp.mpp_tasks.claimed_by IS 'The controller that claimed it last; see mpp_status.';
COMMENT ON COLUMN @mpp.mpp_tasks.not_before IS 'When a retry is due.';
COMMENT ON COLUMN @mpp.mpp_tasks.created_by IS 'Login role that reported.';
COMMENT ON COLUMN @mpp.mpp_tasks.held_at IS 'When the traffic of the group was first made to wait.';
COMMENT ON COLUMN @mpp.mpp_tasks.deadline IS 'When the hold ends by rollback if nothing commits it.';
COMMENT ON COLUMN @mpp.mpp_tasks.blockers IS
    'Sessions that have blocked it for a second, while it is claimed. Read the view mpp_blockers.';
COMMENT ON COLUMN @mpp.mpp_tasks.origin_database IS
    'The other database in which the report was made; NULL for one that was made here.';
COMMENT ON COLUMN @mpp.mpp_tasks.origin_id IS 'Its task there.';
COMMENT ON COLUMN @mpp.mpp_tasks.expires_at IS
    'When a before_ task or suspect expires that has not been acknowledged: its timeout after created_at.';
COMMENT ON COLUMN @mpp.mpp_tasks.note IS
    'One sentence when a value of the report was changed as it came in. It is a part of every later reason.';

-- What the controller looks for, always a handful of rows beside a long history.
CREATE INDEX mpp_tasks_open ON @mpp.mpp_tasks (groupid, id) WHERE finished_at IS NULL;
CREATE INDEX mpp_tasks_finished ON @mpp.mpp_tasks (finished_at) WHERE finished_at IS NOT NULL;

-- Each finds a part of what is open, or the newest of what is done, beside any history.
CREATE INDEX mpp_tasks_pending ON @mpp.mpp_tasks (id) WHERE status = 'pending';
CREATE INDEX mpp_tasks_running ON @mpp.mpp_tasks (groupid) WHERE status IN ('claimed', 'holding');
CREATE INDEX mpp_tasks_expiry ON @mpp.mpp_tasks (coalesce(deadline, expires_at))
    WHERE status = 'pending' AND event <> 'after_promote';
CREATE INDEX mpp_tasks_done ON @mpp.mpp_tasks (groupid, id)
    WHERE status = 'done' AND source = 'client' AND event <> 'suspect';
CREATE INDEX mpp_tasks_done_facts ON @mpp.mpp_tasks (groupid, id)
    WHERE status = 'done' AND source = 'client' AND event = 'after_promote';

-- The newest after_promote of a group, beside a long history.
CREATE INDEX mpp_tasks_facts ON @mpp.mpp_tasks (groupid, source, id) WHERE event = 'after_promote';

-- Plan: Index Scan of mpp_tasks_open for the open tasks, Index Scan Backward of this index for the others,
-- which stops after 1000 rows.
CREATE INDEX mpp_tasks_created_by ON @mpp.mpp_tasks (created_by, id) WHERE finished_at IS NOT NULL;

-- Forwarded twice, a report is made once. A database that was made again counts its tasks from 1, so an id alone
-- does not name a report; with the time at which it was made it does.
CREATE UNIQUE INDEX mpp_tasks_origin ON @mpp.mpp_tasks (origin_id, origin_database, created_at) WHERE origin_id IS NOT NULL;

CREATE TABLE @mpp.mpp_task_log (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    task_id     bigint      NOT NULL,
    logged_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    groupid     integer     NOT NULL,
    event       text        NOT NULL,
    status      text        NOT NULL,
    reason      text,
    attempt     integer     NOT NULL,
    controller  text,
    logged_by   name        NOT NULL DEFAULT session_user,
    node_before jsonb,
    node_after  jsonb,
    ended       jsonb
);
COMMENT ON TABLE @mpp.mpp_task_log IS
    'Every change of status of every task, written by trigger in the commit that changes it. Append-only; pruned with its task (MPP_RETENTION).';
COMMENT ON COLUMN @mpp.mpp_task_log.controller IS 'The controller that had the task; NULL for what clients and operators did.';
COMMENT ON COLUMN @mpp.mpp_task_log.node_before IS 'Rows of the group in pg_dist_node before the change, as an array; NULL when nothing was changed.';
COMMENT ON COLUMN @mpp.mpp_task_log.node_after IS 'The same rows after it.';
COMMENT ON COLUMN @mpp.mpp_task_log.ended IS
    'Of the task that ended a hold or moved a primary: the tasks that ended with it, what was paused, and which sessions waited or were ended. Read the view mpp_switchovers.';

CREATE INDEX mpp_task_log_task ON @mpp.mpp_task_log (task_id);
-- What mpp_switchovers shows, the newest first, beside a long log.
CREATE INDEX mpp_task_log_ended ON @mpp.mpp_task_log (id) WHERE ended IS NOT NULL OR status = 'rolled_back';

-- One row a group that ever had a task. A session that works on the group has the row FOR UPDATE until
-- its transaction ends, so the lock is free the moment PostgreSQL sees that session end.
CREATE TABLE @mpp.mpp_groups (
    groupid integer PRIMARY KEY CHECK (groupid >= 0)
);
COMMENT ON TABLE @mpp.mpp_groups IS
    'A row for each group that ever had a task. The session that works on a group locks its row, and so keeps others from it.';
COMMENT ON COLUMN @mpp.mpp_groups.groupid IS 'Group in pg_dist_node; 0 is the coordinator.';

-- The locker of a row is its xmax, and each transaction that writes holds the lock of its own id.
CREATE VIEW @mpp.mpp_group_sessions AS
SELECT g.groupid, l.pid
FROM @mpp.mpp_groups AS g
JOIN pg_locks AS l ON l.locktype = 'transactionid' AND l.transactionid = g.xmax AND l.granted;
COMMENT ON VIEW @mpp.mpp_group_sessions IS
    'The server process that works on a group now, by the lock of its row in mpp_groups.';

-- Before INSERT.

-- The rule for hosts; src/address.ts has the same one, and a test runs the same cases through both.
CREATE FUNCTION @mpp.mpp_is_host(host text) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    octet   constant text := '(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])';
    ipv4    constant text := '(' || octet || '[.]){3}' || octet;
    label   constant text := '[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?';
    hex     constant text := '[0-9A-Fa-f]{1,4}';
    hexes   constant text := '(' || hex || '(:' || hex || ')*)?';
    address text;
BEGIN
    IF host IS NULL OR octet_length(host) > 255 THEN
        RETURN false;
    END IF;
    IF starts_with(host, '/') THEN
        RETURN host ~ '^(/[A-Za-z0-9._~@%+=#-]+)+$';
    END IF;
    -- The unspecified address, 0.0.0.0 or ::, is one to listen on and none to connect to.
    IF host ~ '^[0:.]+$' THEN
        RETURN false;
    END IF;
    -- What has nothing but digits and dots is no name: inet_aton would read 1.2 as 1.0.0.2.
    IF host ~ '^[0-9.]+$' THEN
        RETURN host ~ ('^' || ipv4 || '$');
    END IF;
    IF host !~ ':' THEN
        RETURN host ~ ('^' || label || '([.]' || label || ')*[.]?$');
    END IF;
    -- Only a link-local address has a zone. An IPv4 address at the end stands for two groups.
    address := regexp_replace(host, '^([Ff][Ee][89ABab][0-9A-Fa-f]:.*)%[A-Za-z0-9._-]{1,15}$', '\1');
    address := regexp_replace(address, ':' || ipv4 || '$', ':0:0');
    RETURN address ~ ('^(' || hex || ':){7}' || hex || '$')
        OR (address ~ ('^' || hexes || '::' || hexes || '$')
            AND cardinality(array_remove(string_to_array(address, ':'), '')) <= 7);
END
$$;
COMMENT ON FUNCTION @mpp.mpp_is_host IS
    'True for a DNS name, an IPv4 or IPv6 address, or the absolute path of a socket directory, in at most 255 bytes of ASCII.';

CREATE FUNCTION @mpp.mpp_plain_host(host text) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE WHEN $1 ~ '^[[][^][]*:[^][]*[]]$' THEN substr($1, 2, length($1) - 2) ELSE $1 END
$$;
COMMENT ON FUNCTION @mpp.mpp_plain_host IS
    'An IPv6 address in brackets without them, as pg_dist_node has it; any other text as it is.';

CREATE FUNCTION @mpp.mpp_check_address(nodename text, nodeport integer, what text) RETURNS void
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF nodename IS NULL OR nodename = '' THEN
        RAISE EXCEPTION 'the host of % is empty', what
            USING ERRCODE = 'invalid_parameter_value', COLUMN = 'nodename',
                  HINT = 'Give the host as pg_dist_node is to have it.';
    END IF;
    IF NOT @mpp.mpp_is_host(nodename) THEN
        RAISE EXCEPTION 'the host of % is not a host: %', what, quote_literal(left(nodename, 60))
            USING ERRCODE = 'invalid_parameter_value', COLUMN = 'nodename',
                  HINT = 'Give one DNS name, IPv4 address, IPv6 address or absolute socket directory, at most 255 bytes, without port, mask or scheme.';
    END IF;
    IF nodeport IS NULL OR nodeport NOT BETWEEN 1 AND 65535 THEN
        RAISE EXCEPTION 'the port of % is %, outside 1-65535', what, coalesce(nodeport::text, 'NULL')
            USING ERRCODE = 'invalid_parameter_value', COLUMN = 'nodeport';
    END IF;
END
$$;

CREATE FUNCTION @mpp.mpp_check_secondaries(secondaries text[], nodename text, nodeport integer) RETURNS void
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    entry   text;
    parts   text[];
    host    text;
    address text;
    seen    text[] := '{}';
BEGIN
    IF array_ndims(secondaries) > 1 THEN
        RAISE EXCEPTION 'the secondaries are a table of % dimensions, not a list', array_ndims(secondaries)
            USING ERRCODE = 'invalid_parameter_value', COLUMN = 'secondaries',
                  HINT = 'Write ARRAY[''worker-2:5432'', ''worker-3:5432''].';
    END IF;
    IF cardinality(secondaries) > 64 THEN
        RAISE EXCEPTION 'a group has at most 64 secondaries, not %', cardinality(secondaries)
            USING ERRCODE = 'invalid_parameter_value', COLUMN = 'secondaries',
                  HINT = 'List the other nodes of this group alone.';
    END IF;
    FOREACH entry IN ARRAY coalesce(secondaries, '{}'::text[]) LOOP
        parts := regexp_match(entry, '^(?:\[([^\[\]]*:[^\[\]]*)\]|([^\[\]:]+)):([0-9]{1,5})$');
        IF parts IS NULL THEN
            RAISE EXCEPTION 'secondary % is not host:port', quote_nullable(left(entry, 60))
                USING ERRCODE = 'invalid_parameter_value', COLUMN = 'secondaries',
                      HINT = 'Write worker-2:5432, or [::1]:5432 for an IPv6 address.';
        END IF;
        host := coalesce(parts[1], parts[2]);
        PERFORM @mpp.mpp_check_address(host, parts[3]::integer, format('secondary %L', left(entry, 60)));
        IF host = nodename AND parts[3]::integer = nodeport THEN
            RAISE EXCEPTION 'secondary % is the node itself', quote_literal(entry)
                USING ERRCODE = 'invalid_parameter_value', COLUMN = 'secondaries',
                      HINT = 'List the other nodes of the group.';
        END IF;
        address := format('%s:%s', host, parts[3]::integer);
        IF address = ANY (seen) THEN
            RAISE EXCEPTION 'secondary % is listed twice', quote_literal(entry)
                USING ERRCODE = 'invalid_parameter_value', COLUMN = 'secondaries',
                      HINT = 'List every other node of the group once.';
        END IF;
        seen := seen || address;
    END LOOP;
END
$$;

-- Fires before mpp_tasks_1_check, which writes the defaults and refuses what is out of range. session_user,
-- because current_user is the owner here and in mpp_submit.
CREATE FUNCTION @mpp.mpp_tasks_access() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    is_controller constant boolean := @mpp.mpp_is_controller(session_user);
    limits  @mpp.mpp_limits;
    asked   interval;
    cut     text;
    raised  text;
BEGIN
    NEW.nodename := @mpp.mpp_plain_host(NEW.nodename);
    IF NEW.source IN ('sync', 'probe') AND NOT is_controller THEN
        RAISE EXCEPTION 'source % is for the controller: role % is no member of mpp_controller', NEW.source, session_user
            USING ERRCODE = 'insufficient_privilege', COLUMN = 'source', HINT = 'Leave source out.';
    END IF;
    PERFORM @mpp.mpp_check_group(NEW.groupid);

    IF NOT is_controller AND NOT @mpp.mpp_has_role(session_user, 'mpp_operator'::regrole::oid) THEN
        SELECT l.* INTO limits FROM @mpp.mpp_limits AS l;
        asked := NEW.timeout;
        IF asked <= '1 day' AND asked > limits.max_timeout THEN
            NEW.timeout := limits.max_timeout;
            cut := format('timeout cut from %s to %s (MPP_MAX_TIMEOUT)',
                          @mpp.mpp_duration(asked), @mpp.mpp_duration(NEW.timeout));
        END IF;
        -- The defaults of mpp_tasks_1_check, within the limits.
        NEW.timeout := coalesce(NEW.timeout,
            least(limits.max_timeout, CASE NEW.event WHEN 'suspect' THEN interval '10 s' ELSE interval '30 s' END));
        asked := NEW.cooldown;
        IF asked >= '0' AND asked < limits.min_cooldown THEN
            NEW.cooldown := limits.min_cooldown;
            raised := format('cooldown raised from %s to %s (MPP_MIN_COOLDOWN)',
                             @mpp.mpp_duration(asked), @mpp.mpp_duration(NEW.cooldown));
        END IF;
        NEW.cooldown := coalesce(NEW.cooldown,
            greatest(limits.min_cooldown, least(interval '10 s', NEW.timeout / 2)));
    END IF;
    NEW.reason := nullif(concat_ws('; ', cut, raised), '');
    RETURN NEW;
END
$$;

-- Checks a report where it enters. Takes no lock and reads no other row.
CREATE FUNCTION @mpp.mpp_tasks_before_insert() RETURNS trigger
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

-- mpp_tasks_1_check clears the note, so that none comes from outside.
CREATE FUNCTION @mpp.mpp_tasks_note() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    NEW.note := NEW.reason;
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

-- Which report supersedes which.

-- The newest report wins. A report of a client supersedes the group's older pending ones; a suspect,
-- or a task that the sync or the probe made, supersedes nothing of a client's. An after_promote says what has
-- happened, so only a newer one supersedes it; the other events run after it.
CREATE FUNCTION @mpp.mpp_supersedes(new_event text, new_source text, old_event text, old_source text) RETURNS boolean
LANGUAGE sql IMMUTABLE
RETURN ((new_source = 'client' AND new_event <> 'suspect') OR old_source <> 'client')
   AND (old_event <> 'after_promote' OR new_event = 'after_promote');

-- The newest report that has come since and supersedes this task, NULL when there is none. One that
-- has run already is none.
CREATE FUNCTION @mpp.mpp_superseded_by(task @mpp.mpp_tasks) RETURNS bigint
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

-- Ends the pending tasks of a group that a newer one supersedes (mpp_supersedes), and says how many.
--
-- A task is also superseded by a newer one that is done: an identity value is drawn at the INSERT, so a
-- transaction that stayed open commits an older task after a newer one has run; and an after_promote that
-- goes back to the queue while a newer one is committed may be due after that one has run. A before_ task
-- or a suspect that has run is not: the tasks of a lost hold go back to the queue together.
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
        SELECT t.id, t.event = 'after_promote' AS is_after_promote, t.source = 'client' AS is_client, t.event, t.attempt
        FROM @mpp.mpp_tasks AS t
        WHERE t.finished_at IS NULL AND t.groupid = of_group AND t.status = 'pending'
    ), newest AS MATERIALIZED (
        SELECT max(p.id) FILTER (WHERE p.attempt = 0) AS any_report,
               max(p.id) FILTER (WHERE p.attempt = 0 AND p.is_after_promote) AS any_after_promote,
               max(p.id) FILTER (WHERE p.attempt = 0 AND p.is_client AND p.event <> 'suspect') AS report,
               max(p.id) FILTER (WHERE p.attempt = 0 AND p.is_client AND p.is_after_promote) AS after_promote,
               -- One that was tried so often names a node that is no primary yet, and keeps no other from it.
               max(p.id) FILTER (WHERE p.is_client AND p.is_after_promote AND p.attempt < 5) AS open_after_promote,
               min(p.id) FILTER (WHERE p.attempt = 0 OR p.is_after_promote) AS oldest
        FROM pending AS p
    ), done AS MATERIALIZED (
        SELECT (SELECT max(d.id) FROM @mpp.mpp_tasks AS d
                WHERE d.groupid = of_group AND d.id > n.oldest
                  AND d.status = 'done' AND d.source = 'client' AND d.event <> 'suspect') AS report,
               (SELECT max(d.id) FROM @mpp.mpp_tasks AS d
                WHERE d.groupid = of_group AND d.id > n.oldest
                  AND d.status = 'done' AND d.source = 'client' AND d.event = 'after_promote') AS after_promote
        FROM newest AS n
    ), judged AS (
        SELECT p.id,
               CASE WHEN p.is_client AND p.is_after_promote THEN n.after_promote
                    WHEN p.is_client THEN n.report
                    WHEN p.is_after_promote THEN n.any_after_promote
                    ELSE n.any_report
               END AS newer,
               CASE WHEN p.is_after_promote THEN d.after_promote
                    WHEN p.attempt = 0 THEN d.report
               END AS done,
               -- One of the controller's that was seen before a client's runs would undo that one.
               CASE WHEN p.is_after_promote AND NOT p.is_client THEN n.open_after_promote END AS gives_way_to
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

-- Before UPDATE, and after both.

CREATE FUNCTION @mpp.mpp_tasks_before_update() RETURNS trigger
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
    IF NEW.status <> OLD.status THEN
        NEW.blockers := NULL;
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

-- One row of the log for each change of status, in the same commit, and an acknowledgement for holding and
-- for each end: a session may wait for those. The controller hands the rows of pg_dist_node over in settings
-- that end with its transaction; any role can set them, so they count in a controller's session alone.
CREATE FUNCTION @mpp.mpp_tasks_log() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    before text;
    after  text;
    ended  jsonb;
BEGIN
    IF TG_OP = 'UPDATE' THEN
        before := nullif(current_setting('mpp.node_before', true), '');
        after := nullif(current_setting('mpp.node_after', true), '');
        ended := nullif(current_setting('mpp.ended', true), '');
        IF coalesce(before, after, ended::text) IS NOT NULL AND NOT @mpp.mpp_is_controller(session_user) THEN
            before := NULL;
            after := NULL;
            ended := NULL;
        END IF;
        -- In the log of one task, which stands for all that end with it.
        IF (ended ->> 'task')::bigint IS DISTINCT FROM NEW.id THEN
            ended := NULL;
        END IF;
    END IF;
    -- A task that fails again and again, each time for the same reason, is in the log with the first three
    -- attempts and with its end.
    IF TG_OP = 'UPDATE' AND (
        (NEW.status = 'claimed' AND NEW.attempt > 3)
        OR (NEW.status = 'pending' AND NEW.attempt > 2 AND NEW.reason IS NOT DISTINCT FROM OLD.reason))
    THEN
        RETURN NULL;
    END IF;
    INSERT INTO @mpp.mpp_task_log (task_id, groupid, event, status, reason, attempt, controller, node_before, node_after, ended)
    VALUES (NEW.id, NEW.groupid, NEW.event, NEW.status,
            -- Until it is known how this attempt ends, the row has the reason of the one before.
            CASE WHEN NEW.status <> 'claimed' OR NEW.attempt = 1 THEN NEW.reason END, NEW.attempt,
            CASE WHEN TG_OP = 'UPDATE' THEN NEW.claimed_by END, before::jsonb, after::jsonb, ended);
    -- A queue that is full would keep the task from ending; a waiter also looks by itself.
    IF NEW.status NOT IN ('pending', 'claimed') AND pg_notification_queue_usage() < 0.9 THEN
        PERFORM pg_notify('mpp_task_status', json_build_object(
            'id', NEW.id, 'groupid', NEW.groupid, 'event', NEW.event, 'status', NEW.status)::text);
    END IF;
    RETURN NULL;
END
$$;

CREATE FUNCTION @mpp.mpp_tasks_notify() RETURNS trigger
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

CREATE FUNCTION @mpp.mpp_task_log_append_only() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RAISE EXCEPTION 'mpp_task_log is append-only'
        USING ERRCODE = 'object_not_in_prerequisite_state';
END
$$;

-- For errors: which sessions have locked what.

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

-- The sessions that have locked one of these tables against a report, or wait for such a lock, so that all others
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

-- Triggers of one kind fire in the order of their names.
CREATE TRIGGER mpp_tasks_0_access BEFORE INSERT ON @mpp.mpp_tasks
    FOR EACH ROW EXECUTE FUNCTION @mpp.mpp_tasks_access();
-- Triggers of one kind fire in the order of their names: a task is logged before it supersedes.
CREATE TRIGGER mpp_tasks_1_check BEFORE INSERT ON @mpp.mpp_tasks
    FOR EACH ROW EXECUTE FUNCTION @mpp.mpp_tasks_before_insert();
CREATE TRIGGER mpp_tasks_2_note BEFORE INSERT ON @mpp.mpp_tasks
    FOR EACH ROW WHEN (NEW.reason IS NOT NULL) EXECUTE FUNCTION @mpp.mpp_tasks_note();
CREATE TRIGGER mpp_tasks_9_expiry BEFORE INSERT ON @mpp.mpp_tasks
    FOR EACH ROW EXECUTE FUNCTION @mpp.mpp_tasks_expiry();
CREATE TRIGGER mpp_tasks_1_final BEFORE UPDATE ON @mpp.mpp_tasks
    FOR EACH ROW EXECUTE FUNCTION @mpp.mpp_tasks_before_update();
CREATE TRIGGER mpp_tasks_2_log_insert AFTER INSERT ON @mpp.mpp_tasks
    FOR EACH ROW EXECUTE FUNCTION @mpp.mpp_tasks_log();
CREATE TRIGGER mpp_tasks_2_log_update AFTER UPDATE ON @mpp.mpp_tasks
    FOR EACH ROW WHEN (OLD.status IS DISTINCT FROM NEW.status OR OLD.attempt <> NEW.attempt)
    EXECUTE FUNCTION @mpp.mpp_tasks_log();
CREATE CONSTRAINT TRIGGER mpp_tasks_3_supersede AFTER INSERT ON @mpp.mpp_tasks
    DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION @mpp.mpp_tasks_at_commit();
CREATE TRIGGER mpp_tasks_4_notify AFTER INSERT ON @mpp.mpp_tasks
    FOR EACH STATEMENT EXECUTE FUNCTION @mpp.mpp_tasks_notify();
CREATE TRIGGER mpp_task_log_append_only BEFORE UPDATE OR TRUNCATE ON @mpp.mpp_task_log
    FOR EACH STATEMENT EXECUTE FUNCTION @mpp.mpp_task_log_append_only();

REVOKE ALL ON FUNCTION
    @mpp.mpp_is_host, @mpp.mpp_plain_host, @mpp.mpp_check_address, @mpp.mpp_check_secondaries, @mpp.mpp_tasks_access,
    @mpp.mpp_tasks_before_insert, @mpp.mpp_tasks_note, @mpp.mpp_tasks_expiry, @mpp.mpp_supersedes, @mpp.mpp_superseded_by,
    @mpp.mpp_supersede, @mpp.mpp_tasks_at_commit, @mpp.mpp_tasks_before_update, @mpp.mpp_tasks_log, @mpp.mpp_tasks_notify,
    @mpp.mpp_task_log_append_only, @mpp.mpp_lockers, @mpp.mpp_table_lockers
FROM PUBLIC;
GRANT INSERT (event, groupid, nodename, nodeport, secondaries, timeout, cooldown, pause, source)
    ON @mpp.mpp_tasks TO mpp_client, mpp_operator;
-- For INSERT … RETURNING id. What it shows are numbers: how many tasks there have been.
GRANT SELECT (id) ON @mpp.mpp_tasks TO mpp_client;
GRANT SELECT ON @mpp.mpp_tasks, @mpp.mpp_task_log, @mpp.mpp_groups, @mpp.mpp_group_sessions TO mpp_operator;
GRANT SELECT, INSERT, DELETE,
      UPDATE (status, reason, nodeid, attempt, claimed_by, not_before, claimed_at, held_at, finished_at, deadline, blockers)
    ON @mpp.mpp_tasks TO mpp_controller;
GRANT SELECT, DELETE ON @mpp.mpp_task_log TO mpp_controller;
GRANT SELECT, INSERT, UPDATE ON @mpp.mpp_groups TO mpp_controller;
GRANT SELECT ON @mpp.mpp_group_sessions TO mpp_controller;
GRANT EXECUTE ON FUNCTION @mpp.mpp_supersedes, @mpp.mpp_superseded_by, @mpp.mpp_supersede TO mpp_controller;

    $sql$, '@mpp.', home || '.'), '@home', quote_literal(home));
END
$migration$;

SELECT set_config('search_path', current_setting('mpp.bookkeeping_path'), true);
