-- The control table and its log.
--
-- Every migration starts and ends with a switch of search_path: the objects belong into the
-- configured schema, the bookkeeping of postgres-migrations into a schema of its own, because an
-- application may have a table `migrations` where we live. See src/postgres/migrate.ts.
SELECT set_config('search_path', current_setting('mpp.objects_path'), true);

CREATE TABLE mpp_tasks (
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
    CHECK ((finished_at IS NULL) = (status IN ('pending', 'claimed', 'holding')))
);

-- What the controller looks for, always a handful of rows beside a long history.
CREATE INDEX mpp_tasks_open ON mpp_tasks (groupid, id) WHERE finished_at IS NULL;
CREATE INDEX mpp_tasks_finished ON mpp_tasks (finished_at) WHERE finished_at IS NOT NULL;

COMMENT ON TABLE mpp_tasks IS
    'Control table of mpp-controller: one row is one report of a change of a worker group. INSERT a row to report; the controller writes the rest.';
COMMENT ON COLUMN mpp_tasks.id IS 'Order of arrival. Within a group, ids follow the order of commits.';
COMMENT ON COLUMN mpp_tasks.event IS
    'before_demote: the primary is about to stop, make its traffic wait. before_promote: this node will be the primary. after_promote: this node is the primary. suspect: the primary does not answer.';
COMMENT ON COLUMN mpp_tasks.groupid IS 'Group in pg_dist_node; 0 is the coordinator.';
COMMENT ON COLUMN mpp_tasks.nodename IS
    'Host as pg_dist_node is to have it. before_demote and suspect name the present primary, the promote events the new one.';
COMMENT ON COLUMN mpp_tasks.nodeport IS 'Port of that node.';
COMMENT ON COLUMN mpp_tasks.secondaries IS
    'host:port of every other node of the group, for after_promote. NULL leaves the secondaries as they are; an empty array removes them.';
COMMENT ON COLUMN mpp_tasks.timeout IS
    'How long the hold may last, counted from when it opens. Default 30 seconds, 10 seconds for suspect.';
COMMENT ON COLUMN mpp_tasks.cooldown IS
    'How long sessions in the way of the hold may go on before they are ended. Default 10 seconds, or half of timeout if that is less. With a cooldown as long as timeout nobody is ended.';
COMMENT ON COLUMN mpp_tasks.pause IS 'What waits: writes, all or none. NULL takes the setting of the controller (MPP_PAUSE).';
COMMENT ON COLUMN mpp_tasks.source IS 'Who made the task: client, sync (the heartbeat) or probe.';
COMMENT ON COLUMN mpp_tasks.status IS
    'pending, claimed, holding (the traffic waits), then one of the ends done, superseded, discarded, expired, rolled_back, failed, cancelled. An end is final.';
COMMENT ON COLUMN mpp_tasks.reason IS 'One sentence, whenever the status does not explain itself.';
COMMENT ON COLUMN mpp_tasks.nodeid IS 'The row of pg_dist_node that the task was about.';
COMMENT ON COLUMN mpp_tasks.attempt IS 'How often the task was claimed. A controller can only finish the attempt that it claimed.';
COMMENT ON COLUMN mpp_tasks.claimed_by IS 'The controller that claimed it last; see mpp_status.';
COMMENT ON COLUMN mpp_tasks.not_before IS 'When a retry is due.';
COMMENT ON COLUMN mpp_tasks.created_by IS 'Login role that reported.';
COMMENT ON COLUMN mpp_tasks.held_at IS 'When the traffic of the group was first made to wait.';
COMMENT ON COLUMN mpp_tasks.deadline IS 'When the hold ends by rollback if nothing commits it.';

CREATE TABLE mpp_task_log (
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
    node_after  jsonb
);
CREATE INDEX mpp_task_log_task ON mpp_task_log (task_id);

COMMENT ON TABLE mpp_task_log IS
    'Every change of status of every task, written by trigger in the commit that changes it. Append-only; pruned with its task (MPP_RETENTION).';
COMMENT ON COLUMN mpp_task_log.controller IS 'The controller that had the task; NULL for what clients and operators did.';
COMMENT ON COLUMN mpp_task_log.node_before IS 'Rows of the group in pg_dist_node before the change, as an array; NULL when nothing was changed.';
COMMENT ON COLUMN mpp_task_log.node_after IS 'The same rows after it.';

SELECT set_config('search_path', current_setting('mpp.bookkeeping_path'), true);
