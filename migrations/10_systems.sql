-- Which PostgreSQL cluster each group is. A node becomes a group's primary only when it is of that one.
SELECT set_config('search_path', current_setting('mpp.objects_path'), true);
DO $migration$
DECLARE
    mpp constant text := pg_catalog.quote_ident(pg_catalog.current_schema()::text) OPERATOR(pg_catalog.||) '.'::text;
BEGIN
    PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    EXECUTE pg_catalog.replace($sql$
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

        ALTER TABLE @mpp.mpp_controllers ADD COLUMN verify boolean;
        COMMENT ON COLUMN @mpp.mpp_controllers.verify IS
            'False where MPP_VERIFY is off: this controller believes reports without asking the node.';

        REVOKE ALL ON FUNCTION @mpp.mpp_accept_system FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION @mpp.mpp_accept_system TO mpp_operator;
        GRANT SELECT ON @mpp.mpp_systems TO mpp_operator;
        GRANT SELECT, INSERT, UPDATE, DELETE ON @mpp.mpp_systems TO mpp_controller;
    $sql$, '@mpp.', mpp);
END
$migration$;
SELECT set_config('search_path', current_setting('mpp.bookkeeping_path'), true);
