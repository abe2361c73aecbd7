-- The cluster as the HA side sees it, which each heartbeat compares with pg_dist_node, and which PostgreSQL cluster each
-- group is: a node becomes a group's primary only when it is of that one.
SELECT set_config('search_path', current_setting('mpp.objects_path'), true);

DO $migration$
DECLARE
    home constant text := pg_catalog.quote_ident(pg_catalog.current_schema()::text);
BEGIN
    PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    EXECUTE replace(replace($sql$

-- One row for each node and source, so that sources never overwrite one another: two that differ must
-- be seen to differ. A node of two groups is none, so the group is no part of the key.
CREATE TABLE @mpp.mpp_members (
    nodename          text        NOT NULL,
    nodeport          integer     NOT NULL,
    source            text        NOT NULL,
    groupid           integer     NOT NULL,
    role              text        NOT NULL,
    state             text        NOT NULL,
    timeline          integer,
    noloadbalance     boolean     NOT NULL DEFAULT false,
    system_identifier text,
    reason            text,
    since             timestamptz NOT NULL,
    reported_at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    reported_by       name        NOT NULL DEFAULT session_user,
    PRIMARY KEY (nodename, nodeport, source)
)
-- Most updates only renew reported_at, which no index has: room for them on the same page.
WITH (fillfactor = 70);
COMMENT ON TABLE @mpp.mpp_members IS
    'The cluster as the HA side sees it, a row for each node and source. Hooks report with mpp_report(); the sources of MPP_TOPOLOGY write their own rows. Read the view mpp_topology.';
COMMENT ON COLUMN @mpp.mpp_members.nodename IS 'Host as pg_dist_node is to have it.';
COMMENT ON COLUMN @mpp.mpp_members.nodeport IS 'Port of that node.';
COMMENT ON COLUMN @mpp.mpp_members.source IS 'Who says so: table (a hook, by mpp_report), probe or patroni.';
COMMENT ON COLUMN @mpp.mpp_members.groupid IS 'Group in pg_dist_node; 0 is the coordinator.';
COMMENT ON COLUMN @mpp.mpp_members.role IS 'primary or secondary.';
COMMENT ON COLUMN @mpp.mpp_members.state IS
    'The word of the source. running and streaming count as up; removed says that the node has left the group for good; foreign that another cluster answers at its address.';
COMMENT ON COLUMN @mpp.mpp_members.timeline IS 'Timeline of the node, where the source knows it: of two that claim to be the primary the higher one wins.';
COMMENT ON COLUMN @mpp.mpp_members.noloadbalance IS 'The node is to serve no reads, so it is no secondary in pg_dist_node.';
COMMENT ON COLUMN @mpp.mpp_members.system_identifier IS 'Of the cluster that answered at this address; only the probe sees it.';
COMMENT ON COLUMN @mpp.mpp_members.reason IS 'One sentence, when the state does not explain itself.';
COMMENT ON COLUMN @mpp.mpp_members.since IS 'When the source first saw it so: in this group, down, or up in this role.';
COMMENT ON COLUMN @mpp.mpp_members.reported_at IS 'When the source last saw it so. Older than MPP_MEMBER_TTL, the row is stale and counts no more.';
COMMENT ON COLUMN @mpp.mpp_members.reported_by IS 'Login role that reported it last.';

CREATE INDEX mpp_members_group ON @mpp.mpp_members (groupid);

CREATE FUNCTION @mpp.mpp_is_up(state text) RETURNS boolean
LANGUAGE sql IMMUTABLE
RETURN state IN ('running', 'streaming');

-- Refuses what no node can be, where it enters, and keeps the time of the last change: whether one
-- source is older news than another depends on it.
-- The group that pg_dist_node has a node in; NULL where it has no row, or in a database without Citus.
CREATE FUNCTION @mpp.mpp_registered_group(host text, port integer) RETURNS integer
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
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
$$;

CREATE FUNCTION @mpp.mpp_members_before_write() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
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
$$;

CREATE TRIGGER mpp_members_1_check BEFORE INSERT OR UPDATE ON @mpp.mpp_members
    FOR EACH ROW EXECUTE FUNCTION @mpp.mpp_members_before_write();
-- A hook has said that a node has changed: the controller compares at once.
CREATE TRIGGER mpp_members_2_notify AFTER INSERT OR UPDATE ON @mpp.mpp_members
    FOR EACH ROW WHEN (NEW.source = 'table' AND NEW.since = NEW.reported_at)
    EXECUTE FUNCTION @mpp.mpp_tasks_notify();

-- Locks: the row of the node, until the reporting transaction ends.
CREATE FUNCTION @mpp.mpp_report(
    groupid  integer,
    host     text,
    port     integer,
    role     text,
    state    text    DEFAULT 'running',
    timeline integer DEFAULT NULL
) RETURNS void
LANGUAGE sql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
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
$$;
COMMENT ON FUNCTION @mpp.mpp_report IS
    'Says what a node of a group is now, for HA hooks: its role (primary, secondary, or the HA manager''s word for it) and its state. Call it on every change; within one heartbeat pg_dist_node follows. With state removed the node is taken out.';

CREATE TABLE @mpp.mpp_maintenance (
    groupid    integer     CHECK (groupid >= 0),
    until      timestamptz NOT NULL,
    since      timestamptz NOT NULL DEFAULT clock_timestamp(),
    started_by name        NOT NULL DEFAULT session_user,
    reason     text        CHECK (octet_length(reason) <= 1000),
    CONSTRAINT mpp_maintenance_group UNIQUE NULLS NOT DISTINCT (groupid)
);
COMMENT ON TABLE @mpp.mpp_maintenance IS
    'Groups for which the comparison of members and the probe make no tasks, until when; reports of clients count as always. mpp_start_maintenance() and mpp_end_maintenance() write it. A row whose time is over counts no more.';
COMMENT ON COLUMN @mpp.mpp_maintenance.groupid IS 'Group in pg_dist_node; NULL stands for all.';
COMMENT ON COLUMN @mpp.mpp_maintenance.until IS 'When it ends by itself.';
COMMENT ON COLUMN @mpp.mpp_maintenance.since IS 'When it was started.';
COMMENT ON COLUMN @mpp.mpp_maintenance.started_by IS 'Login role that started it, or moved its end last.';
COMMENT ON COLUMN @mpp.mpp_maintenance.reason IS 'What the operator gave as a reason.';

-- At most a row for each group, so it is read as a whole.
CREATE FUNCTION @mpp.mpp_in_maintenance(of_group integer) RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT EXISTS (
        SELECT
        FROM @mpp.mpp_maintenance AS m
        WHERE coalesce(m.groupid, of_group) = of_group AND m.until > statement_timestamp())
$$;
COMMENT ON FUNCTION @mpp.mpp_in_maintenance IS 'Whether a group is in maintenance now, by itself or with all others.';

-- Locks: the rows that it writes, until the operator's transaction ends. The comparison waits for none of them.
CREATE FUNCTION @mpp.mpp_start_maintenance(
    groupid  integer  DEFAULT NULL,
    duration interval DEFAULT '1 hour',
    reason   text     DEFAULT NULL
) RETURNS timestamptz
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '10s'
AS $$
DECLARE
    ends timestamptz;
BEGIN
    IF $1 < 0 THEN
        RAISE EXCEPTION 'group % is not a group: group ids start at 0, the coordinator', $1
            USING ERRCODE = 'invalid_parameter_value', COLUMN = 'groupid',
                  HINT = 'Leave it out for all groups.';
    END IF;
    IF $2 IS NULL OR $2 <= '0' OR $2 > '30 days' THEN
        RAISE EXCEPTION 'maintenance cannot last %', coalesce($2::text, 'NULL')
            USING ERRCODE = 'invalid_parameter_value', COLUMN = 'duration',
                  HINT = 'Give more than 0 and at most 30 days; it ends by itself then.';
    END IF;
    IF octet_length($3) > 1000 THEN
        RAISE EXCEPTION 'the reason has % bytes, and may have 1000', octet_length($3)
            USING ERRCODE = 'invalid_parameter_value', COLUMN = 'reason';
    END IF;
    DELETE FROM @mpp.mpp_maintenance AS m WHERE m.until <= clock_timestamp();
    INSERT INTO @mpp.mpp_maintenance AS m (groupid, until, reason)
    VALUES ($1, clock_timestamp() + $2, $3)
    ON CONFLICT ON CONSTRAINT mpp_maintenance_group DO UPDATE
    SET until = excluded.until,
        started_by = excluded.started_by,
        reason = coalesce(excluded.reason, m.reason)
    RETURNING m.until INTO ends;
    RETURN ends;
END
$$;
COMMENT ON FUNCTION @mpp.mpp_start_maintenance IS
    'The comparison of members and the probe make no tasks for a group, or for all, until the time that is returned; reports of clients count as always. Called again it moves the end.';

CREATE FUNCTION @mpp.mpp_end_maintenance(groupid integer DEFAULT NULL) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '10s'
AS $$
DECLARE
    ended boolean;
BEGIN
    DELETE FROM @mpp.mpp_maintenance AS m
    WHERE m.groupid IS NOT DISTINCT FROM $1 AND m.until > clock_timestamp();
    ended := FOUND;
    -- The comparison looks at once.
    PERFORM pg_notify('mpp_tasks', '');
    RETURN ended;
END
$$;
COMMENT ON FUNCTION @mpp.mpp_end_maintenance IS
    'Ends the maintenance of a group, or without a group that of all. True when there was one.';

CREATE VIEW @mpp.mpp_topology AS
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
           WHEN @mpp.mpp_in_maintenance(m.groupid) THEN 'the group is in maintenance: no task is made for it'
       END AS problem
FROM @mpp.mpp_members AS m
CROSS JOIN (
    SELECT coalesce(
        (SELECT c.member_ttl FROM @mpp.mpp_controllers AS c WHERE c.member_ttl IS NOT NULL ORDER BY c.heartbeat_at DESC LIMIT 1),
        interval '30 s') AS ttl
) AS ttl
CROSS JOIN LATERAL (SELECT clock_timestamp() - m.reported_at AS of_report) AS age;
COMMENT ON VIEW @mpp.mpp_topology IS
    'The members as they are reported, with the age of each report. A stale one counts no more (MPP_MEMBER_TTL); problem says what keeps a report from being acted on.';

CREATE TABLE @mpp.mpp_systems (
    groupid           integer     PRIMARY KEY CHECK (groupid >= 0),
    system_identifier text,
    timeline          integer,
    nodename          text,
    nodeport          integer,
    since             timestamptz NOT NULL DEFAULT clock_timestamp(),
    accepted_at       timestamptz,
    forgotten         text
);
COMMENT ON TABLE @mpp.mpp_systems IS
    'The PostgreSQL cluster that each group is, as its nodes have said themselves. The controller writes it; mpp_accept_system() makes it forget one.';
COMMENT ON COLUMN @mpp.mpp_systems.groupid IS 'Group in pg_dist_node; 0 is the coordinator.';
COMMENT ON COLUMN @mpp.mpp_systems.system_identifier IS
    'System identifier that a node must have to become the primary of the group. NULL where none is known.';
COMMENT ON COLUMN @mpp.mpp_systems.timeline IS
    'Highest timeline that a primary of the group was seen on. A primary on a lower one is an old primary.';
COMMENT ON COLUMN @mpp.mpp_systems.nodename IS 'Host of the node that said so last.';
COMMENT ON COLUMN @mpp.mpp_systems.nodeport IS 'Port of that node.';
COMMENT ON COLUMN @mpp.mpp_systems.since IS 'When the system identifier was learned or forgotten.';
COMMENT ON COLUMN @mpp.mpp_systems.accepted_at IS
    'When an operator called mpp_accept_system(): the next node that is reported is accepted, whichever system it is. NULL otherwise.';
COMMENT ON COLUMN @mpp.mpp_systems.forgotten IS
    'System identifier that the operator has had forgotten: it is not learned again from the registered primary.';

CREATE FUNCTION @mpp.mpp_accept_system(groupid integer) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    old text;
BEGIN
    IF $1 IS NULL OR $1 < 0 THEN
        RAISE EXCEPTION 'group % is not a group: group ids start at 0, the coordinator', coalesce($1::text, 'NULL')
            USING ERRCODE = 'invalid_parameter_value', COLUMN = 'groupid',
                  HINT = 'SELECT DISTINCT groupid FROM pg_dist_node shows the groups.';
    END IF;
    SELECT s.system_identifier INTO old FROM @mpp.mpp_systems AS s WHERE s.groupid = $1 FOR UPDATE;
    INSERT INTO @mpp.mpp_systems AS s (groupid, accepted_at) VALUES ($1, clock_timestamp())
    ON CONFLICT ON CONSTRAINT mpp_systems_pkey DO UPDATE
    SET system_identifier = NULL,
        timeline = NULL,
        since = clock_timestamp(),
        accepted_at = clock_timestamp(),
        forgotten = coalesce(s.system_identifier, s.forgotten);
    RETURN old;
END
$$;
COMMENT ON FUNCTION @mpp.mpp_accept_system IS
    'Forgets which PostgreSQL cluster a group is, after pg_upgrade or a restore: the next primary of the group that is reported is accepted with its own system identifier. Returns the one that is forgotten. Report after_promote again afterwards.';

REVOKE ALL ON FUNCTION
    @mpp.mpp_is_up, @mpp.mpp_registered_group, @mpp.mpp_members_before_write, @mpp.mpp_report, @mpp.mpp_accept_system,
    @mpp.mpp_in_maintenance, @mpp.mpp_start_maintenance, @mpp.mpp_end_maintenance
FROM PUBLIC;
GRANT EXECUTE ON FUNCTION @mpp.mpp_report TO mpp_client, mpp_operator, mpp_controller;
GRANT EXECUTE ON FUNCTION @mpp.mpp_is_up, @mpp.mpp_in_maintenance TO mpp_operator, mpp_controller;
GRANT EXECUTE ON FUNCTION @mpp.mpp_accept_system, @mpp.mpp_start_maintenance, @mpp.mpp_end_maintenance TO mpp_operator;
GRANT SELECT ON @mpp.mpp_maintenance TO mpp_operator, mpp_controller;
-- Deleting a row is how an operator has a node forgotten.
GRANT SELECT, DELETE ON @mpp.mpp_members TO mpp_operator;
GRANT SELECT ON @mpp.mpp_topology TO mpp_operator, mpp_controller;
GRANT SELECT, INSERT, UPDATE, DELETE ON @mpp.mpp_members TO mpp_controller;
GRANT SELECT ON @mpp.mpp_systems TO mpp_operator;
GRANT SELECT, INSERT, UPDATE, DELETE ON @mpp.mpp_systems TO mpp_controller;

    $sql$, '@mpp.', home || '.'), '@home', quote_literal(home));
END
$migration$;

SELECT set_config('search_path', current_setting('mpp.bookkeeping_path'), true);
