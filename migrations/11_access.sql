-- Who may report what: which hosts are taken, for which groups a role may report, how much a client may
-- ask for, and what a client sees of its own tasks.
SELECT set_config('search_path', current_setting('mpp.objects_path'), true);

DO $migration$
DECLARE
    home constant text := quote_ident(current_schema());
    mpp  constant text := home || '.';
BEGIN
    PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    EXECUTE replace(replace($sql$

-- 1. Hosts.

-- The rule for hosts; src/host.ts has the same one, and a test runs the same cases through both.
CREATE FUNCTION @mpp.mpp_is_host(host text) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $fn$
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
$fn$;
COMMENT ON FUNCTION @mpp.mpp_is_host IS
    'True for a DNS name, an IPv4 or IPv6 address, or the absolute path of a socket directory, in at most 255 bytes of ASCII.';

CREATE FUNCTION @mpp.mpp_plain_host(host text) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $fn$
    SELECT CASE WHEN $1 ~ '^[[][^][]*:[^][]*[]]$' THEN substr($1, 2, length($1) - 2) ELSE $1 END
$fn$;
COMMENT ON FUNCTION @mpp.mpp_plain_host IS
    'An IPv6 address in brackets without them, as pg_dist_node has it; any other text as it is.';

CREATE OR REPLACE FUNCTION @mpp.mpp_check_address(nodename text, nodeport integer, what text) RETURNS void
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $fn$
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
$fn$;

CREATE OR REPLACE FUNCTION @mpp.mpp_check_secondaries(secondaries text[], nodename text, nodeport integer) RETURNS void
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $fn$
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
$fn$;

-- 2. Roles and groups.

-- From PostgreSQL 16 on a role that may administer another is a member of it without any of its rights.
CREATE FUNCTION @mpp.mpp_has_role(login name, role oid) RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $fn$
    SELECT pg_has_role($1, $2,
        CASE WHEN current_setting('server_version_num')::integer >= 160000 THEN 'USAGE,SET' ELSE 'MEMBER' END)
$fn$;
COMMENT ON FUNCTION @mpp.mpp_has_role IS
    'Whether a login role is the other role, or a member of it that has its rights or may take them with SET ROLE. Superusers are members of all.';

CREATE FUNCTION @mpp.mpp_is_controller(login name) RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $fn$
    SELECT @mpp.mpp_has_role($1, 'mpp_controller'::regrole::oid)
$fn$;
COMMENT ON FUNCTION @mpp.mpp_is_controller IS
    'Whether a login role is a superuser or a member of mpp_controller.';

-- The oid follows a role that is renamed. Name and members are kept for a role that is dropped: neither
-- a role of the same name made later nor the logins that were its members are free of the limit.
CREATE TABLE @mpp.mpp_group_grants (
    role_oid   oid         NOT NULL,
    groupid    integer     NOT NULL CHECK (groupid >= 0),
    role_name  name        NOT NULL,
    members    oid[]       NOT NULL,
    granted_by name        NOT NULL DEFAULT session_user,
    granted_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (role_oid, groupid)
);
COMMENT ON TABLE @mpp.mpp_group_grants IS
    'Groups that a role may report for, by mpp_grant_group(). A role that is not named here, itself or through a role that it is a member of, may report for every group.';
COMMENT ON COLUMN @mpp.mpp_group_grants.role_oid IS 'The role, as pg_roles.oid has it.';
COMMENT ON COLUMN @mpp.mpp_group_grants.groupid IS 'Group in pg_dist_node; 0 is the coordinator.';
COMMENT ON COLUMN @mpp.mpp_group_grants.role_name IS 'Its name when it was last seen.';
COMMENT ON COLUMN @mpp.mpp_group_grants.members IS
    'Its members when it was last seen, by pg_roles.oid. They stay limited when the role is dropped.';
COMMENT ON COLUMN @mpp.mpp_group_grants.granted_by IS 'Login role that called mpp_grant_group().';

CREATE FUNCTION @mpp.mpp_members_of(role oid) RETURNS oid[]
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $fn$
    WITH RECURSIVE member (oid) AS (
        SELECT m.member FROM pg_auth_members AS m WHERE m.roleid = $1
        UNION
        SELECT m.member FROM member AS r JOIN pg_auth_members AS m ON m.roleid = r.oid
    )
    SELECT coalesce(array_agg(r.oid ORDER BY r.oid), '{}')
    FROM member JOIN pg_roles AS r ON r.oid = member.oid
    WHERE @mpp.mpp_has_role(r.rolname, $1)
$fn$;
COMMENT ON FUNCTION @mpp.mpp_members_of IS
    'The roles that are members of a role, directly or through others.';

CREATE FUNCTION @mpp.mpp_groups_of(login name) RETURNS integer[]
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $fn$
    SELECT array_agg(DISTINCT g.groupid ORDER BY g.groupid)
    FROM @mpp.mpp_group_grants AS g
    LEFT JOIN pg_roles AS r ON r.oid = g.role_oid
    -- A role that was dropped and made again has another oid.
    LEFT JOIN pg_roles AS again ON r.oid IS NULL AND again.rolname = g.role_name
    WHERE NOT @mpp.mpp_is_controller($1)
      AND (@mpp.mpp_has_role($1, coalesce(r.oid, again.oid))
           OR (r.oid IS NULL AND (SELECT l.oid FROM pg_roles AS l WHERE l.rolname = $1) = ANY (g.members)))
$fn$;
COMMENT ON FUNCTION @mpp.mpp_groups_of IS
    'The groups that a login role may report for; NULL when it may report for all.';

CREATE FUNCTION @mpp.mpp_check_group(groupid integer) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $fn$
DECLARE
    allowed constant integer[] := @mpp.mpp_groups_of(session_user);
BEGIN
    IF groupid <> ALL (allowed) THEN
        RAISE EXCEPTION 'role % may not report for group %: it may for % alone', session_user, groupid,
            array_to_string(allowed, ', ')
            USING ERRCODE = 'insufficient_privilege',
                  HINT = format('A member of mpp_operator allows it: SELECT mpp_grant_group(%L, %s).', session_user, groupid);
    END IF;
END
$fn$;
COMMENT ON FUNCTION @mpp.mpp_check_group IS
    'Refuses a report of this session for a group that its login role may not report for.';

-- Locks: the row, until the transaction ends. Another grant or revoke of it is waited for, 10 s at most.
CREATE FUNCTION @mpp.mpp_grant_group(role name, groupid integer) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '10s'
AS $fn$
DECLARE
    named constant oid := (SELECT r.oid FROM pg_roles AS r WHERE r.rolname = $1);
BEGIN
    IF named IS NULL THEN
        RAISE EXCEPTION 'there is no role %', quote_nullable($1)
            USING ERRCODE = 'undefined_object', HINT = 'SELECT rolname FROM pg_roles shows the roles.';
    END IF;
    IF $2 IS NULL OR $2 < 0 THEN
        RAISE EXCEPTION 'group % is not a group: group ids start at 0, the coordinator', coalesce($2::text, 'NULL')
            USING ERRCODE = 'invalid_parameter_value',
                  HINT = 'SELECT DISTINCT groupid FROM pg_dist_node shows the groups.';
    END IF;
    IF @mpp.mpp_is_controller($1) THEN
        RAISE EXCEPTION 'role % may report for every group: it is a superuser or a member of mpp_controller', $1
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Name a role that is neither.';
    END IF;
    INSERT INTO @mpp.mpp_group_grants (role_oid, groupid, role_name, members)
    VALUES (named, $2, $1, @mpp.mpp_members_of(named))
    ON CONFLICT DO NOTHING;
END
$fn$;
COMMENT ON FUNCTION @mpp.mpp_grant_group IS
    'Limits a role, and all that are members of it, to reports for the groups that it is granted in this way. The first grant takes all other groups away.';

CREATE FUNCTION @mpp.mpp_revoke_group(role name, groupid integer) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '10s'
AS $fn$
DECLARE
    named constant oid[] := ARRAY(
        SELECT g.role_oid
        FROM @mpp.mpp_group_grants AS g
        LEFT JOIN pg_roles AS r ON r.oid = g.role_oid
        WHERE coalesce(r.rolname, g.role_name) = $1);
    was_named boolean;
BEGIN
    IF named = '{}' AND NOT EXISTS (SELECT FROM pg_roles AS r WHERE r.rolname = $1) THEN
        RAISE EXCEPTION 'there is no role %', quote_nullable($1)
            USING ERRCODE = 'undefined_object', HINT = 'TABLE mpp_group_grants shows the roles that are limited.';
    END IF;
    DELETE FROM @mpp.mpp_group_grants AS g WHERE g.role_oid = ANY (named) AND g.groupid = $2;
    was_named := FOUND;
    IF was_named AND NOT EXISTS (SELECT FROM @mpp.mpp_group_grants AS g WHERE g.role_oid = ANY (named)) THEN
        RAISE WARNING 'role % is limited to no group any more: it may report for every group', $1
            USING HINT = 'To take the right to report away, REVOKE mpp_client from it.';
    END IF;
    RETURN was_named;
END
$fn$;
COMMENT ON FUNCTION @mpp.mpp_revoke_group IS
    'Takes a group from a role that mpp_grant_group() limits. With its last group the limit ends. True when the role had the group; takes the name of a dropped role, too.';

-- 3. Limits of what a client may ask for.

CREATE TABLE @mpp.mpp_limits (
    is_only      boolean     PRIMARY KEY DEFAULT true CHECK (is_only),
    max_timeout  interval    NOT NULL DEFAULT '5 min',
    min_cooldown interval    NOT NULL DEFAULT '1 s',
    set_by       text,
    set_at       timestamptz NOT NULL DEFAULT clock_timestamp()
);
INSERT INTO @mpp.mpp_limits DEFAULT VALUES;
COMMENT ON TABLE @mpp.mpp_limits IS
    'One row: what a client may ask for at most. The active controller keeps it as MPP_MAX_TIMEOUT and MPP_MIN_COOLDOWN say. Members of mpp_operator and mpp_controller are not limited.';
COMMENT ON COLUMN @mpp.mpp_limits.max_timeout IS 'MPP_MAX_TIMEOUT: a longer timeout of a client is cut to it.';
COMMENT ON COLUMN @mpp.mpp_limits.min_cooldown IS 'MPP_MIN_COOLDOWN: a shorter cooldown of a client is raised to it.';
COMMENT ON COLUMN @mpp.mpp_limits.set_by IS 'Controller that wrote it last; NULL for the defaults.';

-- Called at each heartbeat; writes only what differs. It waits for no lock: a row that an open transaction
-- has is left for the next heartbeat.
CREATE FUNCTION @mpp.mpp_keep_limits(controller text, max_timeout interval, min_cooldown interval) RETURNS void
LANGUAGE sql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $fn$
    WITH mine AS (
        SELECT l.is_only
        FROM @mpp.mpp_limits AS l
        WHERE (l.max_timeout, l.min_cooldown) <> ($2, $3)
        FOR NO KEY UPDATE SKIP LOCKED
    )
    UPDATE @mpp.mpp_limits AS l
    SET max_timeout = $2, min_cooldown = $3, set_by = $1, set_at = clock_timestamp()
    FROM mine
    WHERE l.is_only = mine.is_only;

    WITH mine AS (
        SELECT g.role_oid, g.groupid, now.role_name, now.members
        FROM @mpp.mpp_group_grants AS g
        JOIN (
            SELECT r.oid, r.rolname AS role_name, @mpp.mpp_members_of(r.oid) AS members
            FROM pg_roles AS r
            WHERE r.oid IN (SELECT o.role_oid FROM @mpp.mpp_group_grants AS o)
        ) AS now ON now.oid = g.role_oid
        WHERE (g.role_name, g.members) <> (now.role_name, now.members)
        FOR NO KEY UPDATE OF g SKIP LOCKED
    )
    UPDATE @mpp.mpp_group_grants AS g
    SET role_name = mine.role_name, members = mine.members
    FROM mine
    WHERE g.role_oid = mine.role_oid AND g.groupid = mine.groupid
$fn$;
COMMENT ON FUNCTION @mpp.mpp_keep_limits IS
    'Writes the limits of this controller, and the present name and members of each role in mpp_group_grants. For controllers.';

CREATE FUNCTION @mpp.mpp_duration(duration interval) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $fn$
    SELECT format('%s %s%s', trim_scale(s.seconds / u.length), u.name,
                  CASE WHEN s.seconds <> u.length AND u.name <> 'ms' THEN 's' END)
    FROM (SELECT extract(epoch FROM $1)::numeric AS seconds) AS s
    CROSS JOIN (VALUES (86400, 'day'), (3600, 'hour'), (60, 'minute'), (1, 'second'), (0.001, 'ms')) AS u (length, name)
    WHERE (s.seconds % u.length = 0 AND s.seconds >= u.length) OR u.name = CASE WHEN s.seconds = 0 THEN 'second' ELSE 'ms' END
    ORDER BY u.length DESC
    LIMIT 1
$fn$;
COMMENT ON FUNCTION @mpp.mpp_duration IS
    'A duration as a sentence has it, in the largest unit that keeps it whole: 5 minutes.';

-- 4. What happens to a report before it is checked.

-- Fires before mpp_tasks_1_check, which writes the defaults and refuses what is out of range. session_user,
-- because current_user is the owner here and in mpp_submit.
CREATE FUNCTION @mpp.mpp_tasks_access() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $fn$
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
$fn$;

-- mpp_tasks_1_check clears the note, so that none comes from outside.
CREATE FUNCTION @mpp.mpp_tasks_note() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $fn$
BEGIN
    NEW.note := NEW.reason;
    RETURN NEW;
END
$fn$;

-- Triggers of one kind fire in the order of their names.
CREATE TRIGGER mpp_tasks_0_access BEFORE INSERT ON @mpp.mpp_tasks
    FOR EACH ROW EXECUTE FUNCTION @mpp.mpp_tasks_access();
CREATE TRIGGER mpp_tasks_2_note BEFORE INSERT ON @mpp.mpp_tasks
    FOR EACH ROW WHEN (NEW.reason IS NOT NULL) EXECUTE FUNCTION @mpp.mpp_tasks_note();

-- 5. The log.

-- One row of the log for each change of status, in the same commit, and an acknowledgement for holding and
-- for each end: a session may wait for those. The controller hands the rows of pg_dist_node over in settings
-- that end with its transaction; any role can set them, so they count in a controller's session alone.
CREATE OR REPLACE FUNCTION @mpp.mpp_tasks_log() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $fn$
DECLARE
    before text;
    after  text;
BEGIN
    IF TG_OP = 'UPDATE' THEN
        before := nullif(current_setting('mpp.node_before', true), '');
        after := nullif(current_setting('mpp.node_after', true), '');
        IF (before IS NOT NULL OR after IS NOT NULL) AND NOT @mpp.mpp_is_controller(session_user) THEN
            before := NULL;
            after := NULL;
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
    INSERT INTO @mpp.mpp_task_log (task_id, groupid, event, status, reason, attempt, controller, node_before, node_after)
    VALUES (NEW.id, NEW.groupid, NEW.event, NEW.status,
            -- Until it is known how this attempt ends, the row has the reason of the one before.
            CASE WHEN NEW.status <> 'claimed' OR NEW.attempt = 1 THEN NEW.reason END, NEW.attempt,
            CASE WHEN TG_OP = 'UPDATE' THEN NEW.claimed_by END, before::jsonb, after::jsonb);
    -- A queue that is full would keep the task from ending; a waiter also looks by itself.
    IF NEW.status NOT IN ('pending', 'claimed') AND pg_notification_queue_usage() < 0.9 THEN
        PERFORM pg_notify('mpp_task_status', json_build_object(
            'id', NEW.id, 'groupid', NEW.groupid, 'event', NEW.event, 'status', NEW.status)::text);
    END IF;
    RETURN NULL;
END
$fn$;

-- 6. Members.

CREATE OR REPLACE FUNCTION @mpp.mpp_is_up(state text) RETURNS boolean
LANGUAGE sql IMMUTABLE
RETURN state IN ('running', 'streaming');

-- Refuses what no node can be, where it enters, and keeps the time of the last change: whether one
-- source is older news than another depends on it.
-- The group that pg_dist_node has a node in; NULL where it has no row, or in a database without Citus.
CREATE FUNCTION @mpp.mpp_registered_group(host text, port integer) RETURNS integer
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $fn$
DECLARE
    found integer;
BEGIN
    IF to_regclass('pg_catalog.pg_dist_node') IS NULL THEN
        RETURN NULL;
    END IF;
    EXECUTE 'SELECT n.groupid FROM pg_catalog.pg_dist_node AS n WHERE n.nodename = $1 AND n.nodeport = $2'
        INTO found USING host, port;
    RETURN found;
END
$fn$;
REVOKE ALL ON FUNCTION @mpp.mpp_registered_group FROM PUBLIC;

CREATE OR REPLACE FUNCTION @mpp.mpp_members_before_write() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $fn$
DECLARE
    registered integer;
BEGIN
    IF NEW.groupid IS NULL OR NEW.groupid < 0 THEN
        RAISE EXCEPTION 'group % is not a group: group ids start at 0, the coordinator', coalesce(NEW.groupid::text, 'NULL')
            USING ERRCODE = 'invalid_parameter_value', COLUMN = 'groupid',
                  HINT = 'SELECT DISTINCT groupid FROM pg_dist_node shows the groups.';
    END IF;
    NEW.nodename := @mpp.mpp_plain_host(NEW.nodename);
    PERFORM @mpp.mpp_check_address(NEW.nodename, NEW.nodeport, 'the member'::text);
    IF NEW.role IS NULL OR NEW.role NOT IN ('primary', 'secondary') THEN
        RAISE EXCEPTION 'unknown role %', quote_nullable(left(NEW.role, 60))
            USING ERRCODE = 'invalid_parameter_value', COLUMN = 'role',
                  HINT = 'Use primary or secondary; mpp_report also takes the words of HA managers, such as leader and replica.';
    END IF;
    IF NEW.state IS NULL OR NEW.state !~ '^[[:alpha:]][[:print:]]*$' OR octet_length(NEW.state) > 63 THEN
        RAISE EXCEPTION 'the state is no word: %', quote_nullable(left(NEW.state, 60))
            USING ERRCODE = 'invalid_parameter_value', COLUMN = 'state',
                  HINT = 'Use running or streaming for a node that is up, removed for one that has left, else any word, such as stopped.';
    END IF;
    IF NEW.timeline < 1 THEN
        RAISE EXCEPTION 'timeline % is none: timelines start at 1', NEW.timeline
            USING ERRCODE = 'invalid_parameter_value', COLUMN = 'timeline',
                  HINT = 'Leave it out where it is not known.';
    END IF;
    IF NEW.source IS NULL OR NEW.source NOT IN ('table', 'probe', 'patroni') THEN
        RAISE EXCEPTION 'unknown source %', quote_nullable(left(NEW.source, 60))
            USING ERRCODE = 'invalid_parameter_value', COLUMN = 'source',
                  HINT = 'Report with mpp_report(): its source is table.';
    END IF;
    PERFORM @mpp.mpp_check_group(NEW.groupid);
    -- A node that is reported into another group is taken from the one that it is in. What the catalog says
    -- comes before what another role has reported.
    registered := @mpp.mpp_registered_group(NEW.nodename, NEW.nodeport);
    PERFORM @mpp.mpp_check_group(coalesce(registered, CASE TG_OP WHEN 'UPDATE' THEN OLD.groupid ELSE NEW.groupid END));
    -- A report of the future would stay fresh for as long.
    NEW.reported_at := least(NEW.reported_at, clock_timestamp());
    NEW.reported_by := session_user;
    IF TG_OP = 'INSERT' THEN
        NEW.since := NEW.reported_at;
    -- The role of a node that is down does not count.
    ELSIF (NEW.groupid, CASE WHEN @mpp.mpp_is_up(NEW.state) THEN NEW.role END)
            IS DISTINCT FROM (OLD.groupid, CASE WHEN @mpp.mpp_is_up(OLD.state) THEN OLD.role END) THEN
        NEW.since := NEW.reported_at;
    ELSE
        NEW.since := least(OLD.since, NEW.reported_at);
    END IF;
    RETURN NEW;
END
$fn$;

-- Locks: the row of the node, until the reporting transaction ends.
CREATE OR REPLACE FUNCTION @mpp.mpp_report(
    groupid  integer,
    host     text,
    port     integer,
    role     text,
    state    text    DEFAULT 'running',
    timeline integer DEFAULT NULL
) RETURNS void
LANGUAGE sql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $fn$
    INSERT INTO @mpp.mpp_members AS m (nodename, nodeport, source, groupid, role, state, timeline, since)
    VALUES ($2, $3, 'table', $1,
            CASE
                WHEN lower($4) IN ('primary', 'master', 'leader') THEN 'primary'
                WHEN lower($4) IN ('secondary', 'standby', 'replica', 'sync_standby', 'quorum_standby', 'standby_leader') THEN 'secondary'
                ELSE $4
            END,
            coalesce($5, 'running'), $6, clock_timestamp())
    ON CONFLICT (nodename, nodeport, source) DO UPDATE
    SET groupid = excluded.groupid,
        role = excluded.role,
        state = excluded.state,
        timeline = excluded.timeline,
        reported_at = clock_timestamp()
$fn$;

CREATE OR REPLACE VIEW @mpp.mpp_topology AS
SELECT m.groupid, m.nodename, m.nodeport, m.source, m.role, m.state, m.timeline, m.noloadbalance,
       m.since, m.reported_at, age.of_report AS age,
       age.of_report >= ttl.ttl AS stale,
       CASE
           WHEN age.of_report >= ttl.ttl THEN format('not reported for %s', date_trunc('second', age.of_report))
           WHEN m.reason IS NOT NULL THEN m.reason
           WHEN m.role = 'primary' AND @mpp.mpp_is_up(m.state) AND EXISTS (
               SELECT
               FROM @mpp.mpp_members AS o
               WHERE o.groupid = m.groupid AND o.role = 'primary' AND @mpp.mpp_is_up(o.state)
                 AND (o.nodename, o.nodeport) <> (m.nodename, m.nodeport)
                 AND (o.since <= m.reported_at OR m.source <> 'table')
                 AND (m.since <= o.reported_at OR o.source <> 'table')
                 AND o.reported_at > clock_timestamp() - ttl.ttl
           ) THEN 'another node claims to be the primary, too'
           WHEN EXISTS (
               SELECT
               FROM @mpp.mpp_members AS o
               WHERE o.nodename = m.nodename AND o.nodeport = m.nodeport AND o.source <> m.source
                 AND (o.groupid, o.role, @mpp.mpp_is_up(o.state)) <> (m.groupid, m.role, @mpp.mpp_is_up(m.state))
                 AND o.since <= m.reported_at AND m.since <= o.reported_at
                 AND o.reported_at > clock_timestamp() - ttl.ttl
           ) THEN 'another source says otherwise'
       END AS problem
FROM @mpp.mpp_members AS m
CROSS JOIN (
    SELECT coalesce(
        (SELECT c.member_ttl FROM @mpp.mpp_controllers AS c WHERE c.member_ttl IS NOT NULL ORDER BY c.heartbeat_at DESC LIMIT 1),
        interval '30 s') AS ttl
) AS ttl
CROSS JOIN LATERAL (SELECT clock_timestamp() - m.reported_at AS of_report) AS age;

-- 7. What a client sees.

-- Plan: Index Scan of mpp_tasks_open for the open tasks, Index Scan Backward of this index for the others,
-- which stops after 1000 rows.
CREATE INDEX mpp_tasks_created_by ON @mpp.mpp_tasks (created_by, id) WHERE finished_at IS NOT NULL;

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

CREATE OR REPLACE FUNCTION @mpp.mpp_task_status(id bigint, OUT status text, OUT reason text)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $fn$
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
$fn$;
COMMENT ON FUNCTION @mpp.mpp_task_status IS
    'Status and reason of one task of this login role, of any task for a role that may read mpp_tasks; NULL when there is none of that id.';

-- 8. What Citus allows to superusers alone.

-- A function that any other role owns could be replaced by that role at any time.
CREATE FUNCTION @mpp.mpp_is_installed(wrapper name, types text) RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $fn$
    SELECT EXISTS (
        SELECT
        FROM pg_proc AS p
        JOIN pg_roles AS o ON o.oid = p.proowner
        WHERE p.pronamespace = @home::regnamespace
          AND p.proname = $1
          AND oidvectortypes(p.proargtypes) = $2
          AND p.prosecdef
          AND o.rolsuper
          AND has_function_privilege(p.oid, 'EXECUTE'))
$fn$;
COMMENT ON FUNCTION @mpp.mpp_is_installed IS
    'Whether this role may call the function of that name and those argument types which mpp-controller bootstrap installs.';

-- 9. Rights.

REVOKE ALL ON FUNCTION
    @mpp.mpp_is_host, @mpp.mpp_plain_host, @mpp.mpp_has_role, @mpp.mpp_is_controller, @mpp.mpp_members_of,
    @mpp.mpp_groups_of, @mpp.mpp_check_group, @mpp.mpp_grant_group, @mpp.mpp_revoke_group, @mpp.mpp_keep_limits,
    @mpp.mpp_duration, @mpp.mpp_tasks_access, @mpp.mpp_tasks_note, @mpp.mpp_is_installed
FROM PUBLIC;

GRANT EXECUTE ON FUNCTION @mpp.mpp_grant_group, @mpp.mpp_revoke_group TO mpp_operator;
GRANT SELECT ON @mpp.mpp_group_grants TO mpp_operator, mpp_controller;
GRANT SELECT ON @mpp.mpp_limits TO mpp_client, mpp_operator, mpp_controller;
GRANT EXECUTE ON FUNCTION @mpp.mpp_keep_limits, @mpp.mpp_is_installed TO mpp_controller;
-- For INSERT … RETURNING id. What it shows are numbers: how many tasks there have been.
GRANT SELECT (id) ON @mpp.mpp_tasks TO mpp_client;
GRANT SELECT ON @mpp.mpp_my_tasks TO mpp_client, mpp_operator, mpp_controller;

    $sql$, '@mpp.', mpp), '@home', quote_literal(home));
END
$migration$;

SELECT set_config('search_path', current_setting('mpp.bookkeeping_path'), true);
