-- The sessions that a client's backend has with the workers, and the transactions in them, on every
-- node where statements enter: the coordinator and, as with Citus, each worker that has metadata.
--
-- What is not exact: the workers commit just before the entry node does, without two phases; a
-- rollback reaches them within 200 ms (6_rollbacks.sql); after an error, ROLLBACK TO a savepoint
-- leads to an error at COMMIT; a read opens no transaction on the worker. There is NO detector of
-- distributed deadlocks: a cycle through two servers lasts until somebody ends it. PostgreSQL's
-- own, of each server, is there.

-- Global pids, as Citus makes them.

CREATE FUNCTION pg_catalog.citus_calculate_gpid(nodeid integer, pid integer) RETURNS bigint
LANGUAGE sql IMMUTABLE STRICT AS $$ SELECT nodeid * 10000000000 + pid $$;

CREATE FUNCTION pg_catalog.citus_nodeid_for_gpid(global_pid bigint) RETURNS integer
LANGUAGE sql IMMUTABLE STRICT AS $$ SELECT (global_pid / 10000000000)::integer $$;

CREATE FUNCTION pg_catalog.citus_pid_for_gpid(global_pid bigint) RETURNS integer
LANGUAGE sql IMMUTABLE STRICT AS $$ SELECT (global_pid % 10000000000)::integer $$;

-- 99999999 is Citus's number for a coordinator that has no row of its own.
CREATE FUNCTION standin.gpid_of(backend integer) RETURNS bigint
LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
  SELECT citus_calculate_gpid(
    coalesce(
      (
        SELECT nodeid FROM pg_dist_node
        WHERE groupid = standin.local_group() AND noderole = 'primary'
      ),
      99999999
    ),
    backend
  )
$$;

CREATE FUNCTION pg_catalog.citus_backend_gpid() RETURNS bigint
LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
  SELECT coalesce(
    substring(current_setting('application_name') FROM '^citus_internal gpid=(\d+)$')::bigint,
    standin.gpid_of(pg_backend_pid())
  )
$$;

CREATE TABLE standin.participant (
  backend integer NOT NULL,
  connection text NOT NULL,
  PRIMARY KEY (backend, connection)
);

-- Settings of one transaction: connections that it has looked at, and those with a transaction of
-- its own on the worker. They vanish with a rollback.
CREATE FUNCTION standin.noted(list text, connection text) RETURNS boolean
LANGUAGE sql VOLATILE AS $$
  SELECT coalesce(
    connection = ANY (string_to_array(current_setting('standin.' || list, true), ' ')), false
  )
$$;

CREATE FUNCTION standin.note(list text, connection text) RETURNS void
LANGUAGE sql VOLATILE AS $$
  SELECT set_config(
    'standin.' || list,
    concat_ws(' ', nullif(current_setting('standin.' || list, true), ''), connection),
    true
  )
$$;

-- Marks of a transaction on a connection, as locks that nobody waits for: OPEN is of the session
-- and, unlike a setting, outlives a rollback; LIVE is of the transaction.
CREATE FUNCTION standin.open_mark(connection text) RETURNS bigint
LANGUAGE sql IMMUTABLE AS $$
  SELECT (x'4F50454E'::bigint << 32) + (hashtext(connection)::bigint & x'FFFFFFFF'::bigint)
$$;

CREATE FUNCTION standin.live_mark(connection text) RETURNS bigint
LANGUAGE sql IMMUTABLE AS $$
  SELECT (x'4C495645'::bigint << 32) + (hashtext(connection)::bigint & x'FFFFFFFF'::bigint)
$$;

-- True when the mark was there. PostgreSQL warns when it was not.
CREATE FUNCTION standin.clear_open_mark(connection text) RETURNS boolean
LANGUAGE sql VOLATILE
SET search_path = pg_catalog SET client_min_messages = error SET log_min_messages = error AS $$
  SELECT pg_advisory_unlock_shared(standin.open_mark(connection))
$$;

-- False when the connection was broken. It is closed then.
CREATE FUNCTION standin.reset_session(connection text) RETURNS boolean
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog AS $$
BEGIN
  PERFORM standin.dblink_exec(connection, 'ROLLBACK');
  RETURN true;
EXCEPTION WHEN OTHERS THEN
  PERFORM standin.dblink_disconnect(connection);
  RETURN false;
END
$$;

-- A session with the primary of a group, kept open between transactions under its address. It is
-- chosen and looked at once a transaction: one that broke before is opened anew; a transaction
-- whose session breaks cannot go on in that group, even if it has only read there and the group has
-- moved.
CREATE FUNCTION standin.session_with(group_id integer) RETURNS text
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog AS $$
DECLARE
  setting constant text := 'standin.session_with_' || group_id;
  node record;
  connection text := current_setting(setting, true);
  open_ones text[];
BEGIN
  IF connection <> '' THEN
    RETURN connection;
  END IF;
  SELECT nodename, nodeport INTO STRICT node FROM pg_dist_node
  WHERE groupid = group_id AND noderole = 'primary';
  connection := format('%s:%s', node.nodename, node.nodeport);
  PERFORM set_config(setting, connection, true);
  IF standin.noted('looked_at', connection) THEN
    RETURN connection;
  END IF;
  open_ones := coalesce(standin.dblink_get_connections(), '{}');
  IF coalesce(current_setting('standin.looked_at', true), '') = '' THEN
    -- Whatever a transaction that was rolled back here has left there.
    PERFORM standin.reset_session(other)
    FROM unnest(open_ones) AS other
    WHERE standin.clear_open_mark(other) AND other <> connection;
  END IF;
  IF NOT (connection = ANY (open_ones) AND standin.reset_session(connection)) THEN
    PERFORM standin.connect(connection, standin.address(
      node.nodename, node.nodeport, 'citus_internal gpid=' || standin.gpid_of(pg_backend_pid())
    ));
  END IF;
  PERFORM standin.note('looked_at', connection);
  RETURN connection;
END
$$;

-- The same, with a transaction there that ends as ours does.
CREATE FUNCTION standin.transaction_with(group_id integer) RETURNS text
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog AS $$
DECLARE
  connection constant text := standin.session_with(group_id);
BEGIN
  IF NOT standin.noted('taking_part', connection) THEN
    PERFORM pg_advisory_xact_lock_shared(standin.live_mark(connection));
    PERFORM pg_advisory_lock_shared(standin.open_mark(connection));
    PERFORM standin.dblink_exec(connection, 'BEGIN');
    PERFORM standin.have_rollbacks_watched();
    INSERT INTO standin.participant (backend, connection) VALUES (pg_backend_pid(), connection);
    PERFORM standin.note('taking_part', connection);
  END IF;
  RETURN connection;
END
$$;

-- On a worker: makes the transaction fail.
CREATE FUNCTION standin.fail() RETURNS void
LANGUAGE plpgsql SET log_min_messages = panic AS $$
BEGIN
  RAISE EXCEPTION 'the statement failed on the entry node';
END
$$;

-- After an error: frees what this backend has locked on the workers, as Citus's rollback does. The
-- transactions there fail instead of being rolled back, so that their COMMIT would fail as well if
-- a savepoint let ours go on.
CREATE FUNCTION standin.fail_participants() RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog AS $$
DECLARE
  other text;
BEGIN
  FOREACH other IN ARRAY coalesce(standin.dblink_get_connections(), '{}') LOOP
    CONTINUE WHEN NOT standin.clear_open_mark(other);
    BEGIN
      IF standin.dblink_is_busy(other) = 1 THEN
        PERFORM standin.dblink_cancel_query(other);
        PERFORM standin.dblink_disconnect(other);
      ELSE
        PERFORM * FROM standin.dblink(other, 'SELECT standin.fail()::text') AS r (nothing text);
      END IF;
    EXCEPTION WHEN OTHERS THEN
      -- That it fails is what was wanted.
      NULL;
    END;
  END LOOP;
END
$$;

CREATE FUNCTION standin.commit_participant() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
BEGIN
  -- COMMIT of a transaction that failed over there answers ROLLBACK.
  IF standin.dblink_exec(NEW.connection, 'COMMIT') <> 'COMMIT' THEN
    RAISE EXCEPTION 'the transaction on % was rolled back', NEW.connection
      USING ERRCODE = 'transaction_rollback';
  END IF;
  PERFORM standin.clear_open_mark(NEW.connection);
  DELETE FROM standin.participant
  WHERE backend = NEW.backend AND connection = NEW.connection;
  RETURN NULL;
EXCEPTION WHEN query_canceled OR OTHERS THEN
  PERFORM standin.fail_participants();
  RAISE;
END
$$;

CREATE CONSTRAINT TRIGGER commit_participant
AFTER INSERT ON standin.participant
DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW EXECUTE FUNCTION standin.commit_participant();

-- What this node does for itself needs no session: rows of its own group are in its own tables.

CREATE FUNCTION standin.run_on(group_id integer, statement text) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog AS $$
BEGIN
  IF group_id = standin.local_group() THEN
    EXECUTE statement;
  ELSE
    PERFORM standin.dblink_exec(standin.transaction_with(group_id), statement);
  END IF;
END
$$;

CREATE FUNCTION standin.rows_on(group_id integer, query text, writing boolean)
RETURNS TABLE (id bigint, v integer)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog AS $$
BEGIN
  IF group_id = standin.local_group() THEN
    RETURN QUERY EXECUTE query;
  ELSE
    RETURN QUERY SELECT * FROM standin.dblink(
      CASE
        WHEN writing THEN standin.transaction_with(group_id)
        ELSE standin.session_with(group_id)
      END,
      query
    ) AS row (id bigint, v integer);
  END IF;
END
$$;

-- On all other nodes with metadata, one after the other.
CREATE FUNCTION standin.run_on_metadata_nodes(query text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog AS $$
DECLARE
  group_id integer;
BEGIN
  FOR group_id IN
    SELECT groupid FROM pg_dist_node
    WHERE hasmetadata AND noderole = 'primary' AND groupid <> standin.local_group()
    ORDER BY groupid
  LOOP
    PERFORM * FROM standin.dblink(
      standin.transaction_with(group_id), format('SELECT (%s)::text', query)
    ) AS r (nothing text);
  END LOOP;
END
$$;

-- The stand-in moves no shards.
CREATE FUNCTION pg_catalog.get_rebalance_progress(
  OUT sessionid integer, OUT table_name regclass, OUT shardid bigint, OUT shard_size bigint,
  OUT sourcename text, OUT sourceport integer, OUT targetname text, OUT targetport integer, OUT progress bigint)
RETURNS SETOF record
LANGUAGE sql STABLE
BEGIN ATOMIC
  SELECT NULL::integer, NULL::regclass, NULL::bigint, NULL::bigint,
         NULL::text, NULL::integer, NULL::text, NULL::integer, NULL::bigint
  WHERE false;
END;

-- The stand-in looks for no distributed deadlocks: its transactions have no ids.
CREATE FUNCTION pg_catalog.get_current_transaction_id(OUT process_id integer, OUT transaction_number bigint)
LANGUAGE sql STABLE
BEGIN ATOMIC
  SELECT pg_backend_pid(), 0::bigint;
END;

CREATE FUNCTION pg_catalog.assign_distributed_transaction_id(
  initiator_node_identifier integer, transaction_number bigint, transaction_stamp timestamptz) RETURNS void
LANGUAGE sql
BEGIN ATOMIC
  SELECT;
END;
