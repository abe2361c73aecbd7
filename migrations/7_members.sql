-- The cluster as the HA side sees it: what the heartbeat compares with pg_dist_node.
SELECT set_config('search_path', current_setting('mpp.objects_path'), true);

-- One row for each node and source, so that sources never overwrite one another: two that differ must
-- be seen to differ. A node of two groups is none, so the group is no part of the key.
CREATE TABLE mpp_members (
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
CREATE INDEX mpp_members_group ON mpp_members (groupid);

-- The newest fact of a group, beside a long history.
CREATE INDEX mpp_tasks_facts ON mpp_tasks (groupid, source, id) WHERE event = 'after_promote';

COMMENT ON TABLE mpp_members IS
    'The cluster as the HA side sees it, a row for each node and source. Hooks report with mpp_report(); the sources of MPP_TOPOLOGY write their own rows. Read the view mpp_topology.';
COMMENT ON COLUMN mpp_members.nodename IS 'Host as pg_dist_node is to have it.';
COMMENT ON COLUMN mpp_members.nodeport IS 'Port of that node.';
COMMENT ON COLUMN mpp_members.source IS 'Who says so: table (a hook, by mpp_report), probe or patroni.';
COMMENT ON COLUMN mpp_members.groupid IS 'Group in pg_dist_node; 0 is the coordinator.';
COMMENT ON COLUMN mpp_members.role IS 'primary or secondary.';
COMMENT ON COLUMN mpp_members.state IS
    'The word of the source. running and streaming count as up; removed says that the node has left the group for good; foreign that another cluster answers at its address.';
COMMENT ON COLUMN mpp_members.timeline IS 'Timeline of the node, where the source knows it: of two that claim to be the primary the higher one wins.';
COMMENT ON COLUMN mpp_members.noloadbalance IS 'The node is to serve no reads, so it is no secondary in pg_dist_node.';
COMMENT ON COLUMN mpp_members.system_identifier IS 'Of the cluster that answered at this address; only the probe sees it.';
COMMENT ON COLUMN mpp_members.reason IS 'One sentence, when the state does not explain itself.';
COMMENT ON COLUMN mpp_members.since IS 'When the source first saw it so: in this group, down, or up in this role.';
COMMENT ON COLUMN mpp_members.reported_at IS 'When the source last saw it so. Older than MPP_MEMBER_TTL, the row is stale and counts no more.';
COMMENT ON COLUMN mpp_members.reported_by IS 'Login role that reported it last.';

CREATE FUNCTION mpp_is_up(state text) RETURNS boolean
LANGUAGE sql IMMUTABLE
RETURN state IN ('running', 'streaming');

-- Refuses what no node can be, where it enters, and keeps the time of the last change: whether one
-- source is older news than another depends on it.
CREATE FUNCTION mpp_members_before_write() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path FROM CURRENT
AS $$
BEGIN
    IF NEW.groupid IS NULL OR NEW.groupid < 0 THEN
        RAISE EXCEPTION 'group % is not a group: group ids start at 0, the coordinator', coalesce(NEW.groupid::text, 'NULL')
            USING ERRCODE = 'invalid_parameter_value', COLUMN = 'groupid',
                  HINT = 'SELECT DISTINCT groupid FROM pg_dist_node shows the groups.';
    END IF;
    PERFORM mpp_check_address(NEW.nodename, NEW.nodeport, 'the member');
    IF NEW.nodename ~ '[][]' THEN
        RAISE EXCEPTION 'the host of the member has a bracket: %', quote_literal(left(NEW.nodename, 60))
            USING ERRCODE = 'invalid_parameter_value', COLUMN = 'nodename',
                  HINT = 'Write an IPv6 address as pg_dist_node has it, without brackets.';
    END IF;
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
    -- A report of the future would stay fresh for as long.
    NEW.reported_at := least(NEW.reported_at, clock_timestamp());
    NEW.reported_by := session_user;
    IF TG_OP = 'INSERT' THEN
        NEW.since := NEW.reported_at;
    -- Which role a node had that is down is nobody's news.
    ELSIF (NEW.groupid, CASE WHEN mpp_is_up(NEW.state) THEN NEW.role END)
            IS DISTINCT FROM (OLD.groupid, CASE WHEN mpp_is_up(OLD.state) THEN OLD.role END) THEN
        NEW.since := NEW.reported_at;
    ELSE
        NEW.since := OLD.since;
    END IF;
    RETURN NEW;
END
$$;

CREATE TRIGGER mpp_members_1_check BEFORE INSERT OR UPDATE ON mpp_members
    FOR EACH ROW EXECUTE FUNCTION mpp_members_before_write();

-- Locks: the row of the node, until the reporting transaction ends.
CREATE FUNCTION mpp_report(
    groupid  integer,
    host     text,
    port     integer,
    role     text,
    state    text    DEFAULT 'running',
    timeline integer DEFAULT NULL
) RETURNS void
LANGUAGE sql SECURITY DEFINER
SET search_path FROM CURRENT
AS $$
    INSERT INTO mpp_members AS m (nodename, nodeport, source, groupid, role, state, timeline, since)
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
COMMENT ON FUNCTION mpp_report IS
    'Says what a node of a group is now, for HA hooks: its role (primary, secondary, or the HA manager''s word for it) and its state. Call it on every change; within one heartbeat pg_dist_node follows. With state removed the node is taken out.';

-- How long a report counts, for the view below. The heartbeat itself has it as a parameter.
ALTER TABLE mpp_controllers ADD COLUMN member_ttl interval;
COMMENT ON COLUMN mpp_controllers.member_ttl IS 'MPP_MEMBER_TTL of this controller, written when it becomes active.';

CREATE VIEW mpp_topology AS
SELECT m.groupid, m.nodename, m.nodeport, m.source, m.role, m.state, m.timeline, m.noloadbalance,
       m.since, m.reported_at, age.of_report AS age,
       age.of_report >= ttl.ttl AS stale,
       CASE
           WHEN age.of_report >= ttl.ttl THEN format('not reported for %s', date_trunc('second', age.of_report))
           WHEN m.reason IS NOT NULL THEN m.reason
           WHEN m.role = 'primary' AND mpp_is_up(m.state) AND EXISTS (
               SELECT
               FROM mpp_members AS o
               WHERE o.groupid = m.groupid AND o.role = 'primary' AND mpp_is_up(o.state)
                 AND (o.nodename, o.nodeport) <> (m.nodename, m.nodeport)
                 AND (o.since <= m.reported_at OR m.source <> 'table')
                 AND (m.since <= o.reported_at OR o.source <> 'table')
                 AND o.reported_at > clock_timestamp() - ttl.ttl
           ) THEN 'another node claims to be the primary, too'
           WHEN EXISTS (
               SELECT
               FROM mpp_members AS o
               WHERE o.nodename = m.nodename AND o.nodeport = m.nodeport AND o.source <> m.source
                 AND (o.groupid, o.role, mpp_is_up(o.state)) <> (m.groupid, m.role, mpp_is_up(m.state))
                 AND o.since <= m.reported_at AND m.since <= o.reported_at
                 AND o.reported_at > clock_timestamp() - ttl.ttl
           ) THEN 'another source says otherwise'
       END AS problem
FROM mpp_members AS m
CROSS JOIN (
    SELECT coalesce(
        (SELECT c.member_ttl FROM mpp_controllers AS c WHERE c.member_ttl IS NOT NULL ORDER BY c.heartbeat_at DESC LIMIT 1),
        interval '30 s') AS ttl
) AS ttl
CROSS JOIN LATERAL (SELECT clock_timestamp() - m.reported_at AS of_report) AS age;
COMMENT ON VIEW mpp_topology IS
    'The members as they are reported, with the age of each report. A stale one counts no more (MPP_MEMBER_TTL); problem says what keeps a report from being acted on.';

REVOKE ALL ON FUNCTION mpp_report, mpp_members_before_write, mpp_is_up FROM PUBLIC;

GRANT EXECUTE ON FUNCTION mpp_report TO mpp_client, mpp_operator, mpp_controller;
GRANT EXECUTE ON FUNCTION mpp_is_up TO mpp_operator, mpp_controller;
-- Deleting a row is how an operator has a node or a system identifier forgotten.
GRANT SELECT, DELETE ON mpp_members TO mpp_operator;
GRANT SELECT ON mpp_topology TO mpp_operator, mpp_controller;
GRANT SELECT, INSERT, UPDATE, DELETE ON mpp_members TO mpp_controller;
GRANT EXECUTE ON FUNCTION mpp_submit TO mpp_controller;

SELECT set_config('search_path', current_setting('mpp.bookkeeping_path'), true);
