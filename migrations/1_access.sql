-- Who may do what: the roles, the groups that a role may report for, and how much a client may ask for.
--
-- Each migration starts and ends with a switch of search_path: the objects belong into the configured schema, the
-- bookkeeping of postgres-migrations into a schema of its own, because an application may have a table `migrations`.
-- See src/postgres/migrate.ts. In between nothing is found without a schema but PostgreSQL's own: a role that may create
-- objects in this schema could otherwise make a function that fits a call better. So each file is text in which @mpp.
-- becomes this schema.
SELECT set_config('search_path', current_setting('mpp.objects_path'), true);

DO $migration$
DECLARE
    home constant text := pg_catalog.quote_ident(pg_catalog.current_schema()::text);
BEGIN
    PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    EXECUTE replace(replace($sql$

-- Roles belong to the whole server, so they are made only where they are missing.
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
    EXECUTE format('GRANT USAGE ON SCHEMA %s TO mpp_client, mpp_operator, mpp_controller', @home);
END
$do$;

-- From PostgreSQL 16 on a role that may administer another is a member of it without any of its rights.
CREATE FUNCTION @mpp.mpp_has_role(login name, role oid) RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT pg_has_role($1, $2,
        CASE WHEN current_setting('server_version_num')::integer >= 160000 THEN 'USAGE,SET' ELSE 'MEMBER' END)
$$;
COMMENT ON FUNCTION @mpp.mpp_has_role IS
    'Whether a login role is the other role, or a member of it that has its rights or may take them with SET ROLE. Superusers are members of all.';

CREATE FUNCTION @mpp.mpp_is_controller(login name) RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT @mpp.mpp_has_role($1, 'mpp_controller'::regrole::oid)
$$;
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
AS $$
    WITH RECURSIVE member (oid) AS (
        SELECT m.member FROM pg_auth_members AS m WHERE m.roleid = $1
        UNION
        SELECT m.member FROM member AS r JOIN pg_auth_members AS m ON m.roleid = r.oid
    )
    SELECT coalesce(array_agg(r.oid ORDER BY r.oid), '{}')
    FROM member JOIN pg_roles AS r ON r.oid = member.oid
    WHERE @mpp.mpp_has_role(r.rolname, $1)
$$;
COMMENT ON FUNCTION @mpp.mpp_members_of IS
    'The roles that are members of a role, directly or through others.';

CREATE FUNCTION @mpp.mpp_groups_of(login name) RETURNS integer[]
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT array_agg(DISTINCT g.groupid ORDER BY g.groupid)
    FROM @mpp.mpp_group_grants AS g
    LEFT JOIN pg_roles AS r ON r.oid = g.role_oid
    -- A role that was dropped and made again has another oid.
    LEFT JOIN pg_roles AS again ON r.oid IS NULL AND again.rolname = g.role_name
    WHERE NOT @mpp.mpp_is_controller($1)
      AND (@mpp.mpp_has_role($1, coalesce(r.oid, again.oid))
           OR (r.oid IS NULL AND (SELECT l.oid FROM pg_roles AS l WHERE l.rolname = $1) = ANY (g.members)))
$$;
COMMENT ON FUNCTION @mpp.mpp_groups_of IS
    'The groups that a login role may report for; NULL when it may report for all.';

CREATE FUNCTION @mpp.mpp_check_group(groupid integer) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
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
$$;
COMMENT ON FUNCTION @mpp.mpp_check_group IS
    'Refuses a report of this session for a group that its login role may not report for.';

-- Locks: the row, until the transaction ends. Another grant or revoke of it is waited for, 10 s at most.
CREATE FUNCTION @mpp.mpp_grant_group(role name, groupid integer) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '10s'
AS $$
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
$$;
COMMENT ON FUNCTION @mpp.mpp_grant_group IS
    'Limits a role, and all that are members of it, to reports for the groups that it is granted in this way. The first grant takes all other groups away.';

CREATE FUNCTION @mpp.mpp_revoke_group(role name, groupid integer) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '10s'
AS $$
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
$$;
COMMENT ON FUNCTION @mpp.mpp_revoke_group IS
    'Takes a group from a role that mpp_grant_group() limits. With its last group the limit ends. True when the role had the group; takes the name of a dropped role, too.';

CREATE TABLE @mpp.mpp_limits (
    is_only      boolean     PRIMARY KEY DEFAULT true CHECK (is_only),
    max_timeout  interval    NOT NULL DEFAULT '5 min',
    min_cooldown interval    NOT NULL DEFAULT '1 s',
    set_by       text,
    set_at       timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE @mpp.mpp_limits IS
    'One row: what a client may ask for at most. The active controller keeps it as MPP_MAX_TIMEOUT and MPP_MIN_COOLDOWN say. Members of mpp_operator and mpp_controller are not limited.';
COMMENT ON COLUMN @mpp.mpp_limits.max_timeout IS 'MPP_MAX_TIMEOUT: a longer timeout of a client is cut to it.';
COMMENT ON COLUMN @mpp.mpp_limits.min_cooldown IS 'MPP_MIN_COOLDOWN: a shorter cooldown of a client is raised to it.';
COMMENT ON COLUMN @mpp.mpp_limits.set_by IS 'Controller that wrote it last; NULL for the defaults.';
INSERT INTO @mpp.mpp_limits DEFAULT VALUES;

-- Called at each heartbeat; writes only what differs. It waits for no lock: a row that an open transaction
-- has is left for the next heartbeat.
CREATE FUNCTION @mpp.mpp_keep_limits(controller text, max_timeout interval, min_cooldown interval) RETURNS void
LANGUAGE sql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
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
$$;
COMMENT ON FUNCTION @mpp.mpp_keep_limits IS
    'Writes the limits of this controller, and the present name and members of each role in mpp_group_grants. For controllers.';

CREATE FUNCTION @mpp.mpp_duration(duration interval) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT format('%s %s%s', trim_scale(s.seconds / u.length), u.name,
                  CASE WHEN s.seconds <> u.length AND u.name <> 'ms' THEN 's' END)
    FROM (SELECT extract(epoch FROM $1)::numeric AS seconds) AS s
    CROSS JOIN (VALUES (86400, 'day'), (3600, 'hour'), (60, 'minute'), (1, 'second'), (0.001, 'ms')) AS u (length, name)
    WHERE (s.seconds % u.length = 0 AND s.seconds >= u.length) OR u.name = CASE WHEN s.seconds = 0 THEN 'second' ELSE 'ms' END
    ORDER BY u.length DESC
    LIMIT 1
$$;
COMMENT ON FUNCTION @mpp.mpp_duration IS
    'A duration as a sentence has it, in the largest unit that keeps it whole: 5 minutes.';

-- What Citus allows to superusers alone.
-- A function that any other role owns could be replaced by that role at any time.
CREATE FUNCTION @mpp.mpp_is_installed(wrapper name, types text) RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
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
$$;
COMMENT ON FUNCTION @mpp.mpp_is_installed IS
    'Whether this role may call the function of that name and those argument types which mpp-controller bootstrap installs.';

REVOKE ALL ON FUNCTION
    @mpp.mpp_has_role, @mpp.mpp_is_controller, @mpp.mpp_members_of, @mpp.mpp_groups_of, @mpp.mpp_check_group,
    @mpp.mpp_grant_group, @mpp.mpp_revoke_group, @mpp.mpp_keep_limits, @mpp.mpp_duration, @mpp.mpp_is_installed
FROM PUBLIC;
GRANT EXECUTE ON FUNCTION @mpp.mpp_grant_group, @mpp.mpp_revoke_group TO mpp_operator;
GRANT EXECUTE ON FUNCTION @mpp.mpp_keep_limits, @mpp.mpp_is_installed TO mpp_controller;
GRANT SELECT ON @mpp.mpp_group_grants TO mpp_operator, mpp_controller;
GRANT SELECT ON @mpp.mpp_limits TO mpp_client, mpp_operator, mpp_controller;

    $sql$, '@mpp.', home || '.'), '@home', quote_literal(home));
END
$migration$;

SELECT set_config('search_path', current_setting('mpp.bookkeeping_path'), true);

-- A controller asks here whether it knows this version of the contract.
DO $do$
BEGIN
    EXECUTE format('GRANT USAGE ON SCHEMA %I TO mpp_controller', current_schema());
END
$do$;
GRANT SELECT ON migrations TO mpp_controller;
