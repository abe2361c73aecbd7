-- Stands for Citus's metadata sync. Rows of pg_dist_node that come or go reach the nodes with
-- metadata before the commit; those that change reach them later, as with Citus: a session of its
-- own that stands for the maintenance daemon copies the rows 50-200 ms after the commit and marks
-- the nodes as synced. Until then, and while such a node does not answer, no node can be added or
-- removed.

-- On a node with metadata: takes the coordinator's rows over.
CREATE FUNCTION standin.receive_nodes(rows json, local_group integer) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog AS $$
BEGIN
  -- One at a time: a second one would not see the first one's rows and insert them again.
  LOCK TABLE pg_dist_node IN SHARE ROW EXCLUSIVE MODE;
  -- No triggers: they would make this node tell the others again.
  SET LOCAL session_replication_role = replica;
  DELETE FROM pg_dist_node;
  INSERT INTO pg_dist_node SELECT * FROM json_populate_recordset(NULL::pg_dist_node, rows);
  UPDATE pg_dist_local_group SET groupid = local_group;
END
$$;

-- dblink_connect with Citus's SQLSTATE for a node that does not answer.
CREATE FUNCTION standin.connect(name text, address text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog AS $$
DECLARE
  detail text;
BEGIN
  PERFORM standin.dblink_connect(name, address);
EXCEPTION WHEN sqlclient_unable_to_establish_sqlconnection THEN
  GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL;
  RAISE EXCEPTION 'connection to the remote node failed with the following error: %', detail
    USING ERRCODE = 'connection_failure';
END
$$;

-- Runs a statement in a session of its own, which is committed at once. It bears no client's name:
-- it is the node that asks.
CREATE FUNCTION standin.call_on(host text, port integer, statement text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog AS $$
BEGIN
  PERFORM standin.connect('call', standin.address(host, port, 'Citus stand-in metadata sync'));
  PERFORM * FROM standin.dblink('call', format('SELECT (%s)::text', statement)) AS r (nothing text);
  PERFORM standin.dblink_disconnect('call');
EXCEPTION WHEN query_canceled OR OTHERS THEN
  IF 'call' = ANY (standin.dblink_get_connections()) THEN
    PERFORM standin.dblink_disconnect('call');
  END IF;
  RAISE;
END
$$;

-- Raises 08006 when the node does not answer.
CREATE FUNCTION standin.send_nodes(host text, port integer, groupid integer) RETURNS void
LANGUAGE sql SET search_path = pg_catalog AS $$
  SELECT standin.call_on(host, port, format(
    'SELECT standin.receive_nodes(%L, %s)',
    (SELECT json_agg(node) FROM pg_dist_node AS node), groupid
  ))
$$;

-- One try for every node. Returns false when one is still to be synced, or when somebody has
-- pg_dist_node locked: it never queues for that lock, or it would be in a forced update's way.
CREATE FUNCTION standin.sync_nodes() RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog AS $$
DECLARE
  node record;
  complete boolean := true;
BEGIN
  BEGIN
    LOCK TABLE pg_dist_node IN ROW EXCLUSIVE MODE NOWAIT;
  EXCEPTION WHEN lock_not_available THEN
    RETURN false;
  END;
  FOR node IN
    SELECT nodeid, nodename, nodeport, groupid FROM pg_dist_node
    WHERE hasmetadata AND noderole = 'primary' AND groupid <> 0
  LOOP
    BEGIN
      PERFORM standin.send_nodes(node.nodename, node.nodeport, node.groupid);
      UPDATE pg_dist_node SET metadatasynced = true
      WHERE nodeid = node.nodeid AND NOT metadatasynced;
    EXCEPTION WHEN OTHERS THEN
      -- Unreachable, or in recovery, or without the stand-in: it stays out of sync.
      complete := complete
        AND (SELECT metadatasynced FROM pg_dist_node WHERE nodeid = node.nodeid);
    END;
  END LOOP;
  RETURN complete;
END
$$;

-- One at a time. A later one tries for a while, so that it takes over from one that is about to
-- end; one that goes on sees the later one's change itself.
CREATE PROCEDURE standin.maintain()
LANGUAGE plpgsql AS $$
DECLARE
  mine constant bigint := x'4D41494E'::bigint << 32;
  give_up constant timestamptz := clock_timestamp() + interval '5 s';
  complete boolean := false;
BEGIN
  WHILE NOT pg_try_advisory_lock(mine) LOOP
    IF clock_timestamp() > give_up THEN
      RETURN;
    END IF;
    COMMIT;
    PERFORM pg_sleep(0.02);
  END LOOP;
  COMMIT;
  -- Citus's daemon is not there at once either, and nobody may rely on it.
  PERFORM pg_sleep(0.05 + 0.1 * random());
  WHILE NOT complete LOOP
    complete := standin.sync_nodes();
    COMMIT;
    IF NOT complete THEN
      PERFORM pg_sleep(0.05);
    END IF;
  END LOOP;
  PERFORM pg_advisory_unlock(mine);
END
$$;

-- Leaves the new session to itself: the server runs a statement to its end when its client has
-- gone.
CREATE FUNCTION standin.start_maintenance() RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
BEGIN
  PERFORM standin.dblink_connect('maintenance', standin.own_address('maintenance'));
  PERFORM standin.dblink_send_query('maintenance', 'CALL standin.maintain()');
  PERFORM standin.dblink_disconnect('maintenance');
EXCEPTION WHEN sqlclient_unable_to_establish_sqlconnection THEN
  -- The caller's change counts more. The next one, or a refused add or remove, starts it again.
  RAISE WARNING 'the metadata sync could not be started: %', SQLERRM;
END
$$;

CREATE FUNCTION standin.start_maintenance_at_commit() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
DECLARE
  transaction constant text := pg_current_xact_id()::text;
BEGIN
  IF current_setting('standin.maintained_for', true) IS DISTINCT FROM transaction
    AND citus_is_coordinator()
  THEN
    PERFORM set_config('standin.maintained_for', transaction, true);
    PERFORM standin.start_maintenance();
  END IF;
  RETURN NULL;
END
$$;

CREATE CONSTRAINT TRIGGER start_maintenance_for_change
AFTER UPDATE OF nodename, nodeport, isactive, shouldhaveshards, noderole ON pg_catalog.pg_dist_node
DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW EXECUTE FUNCTION standin.start_maintenance_at_commit();

-- A node that does not answer is left to the maintenance.
CREATE FUNCTION standin.send_nodes_at_commit() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
DECLARE
  transaction constant text := pg_current_xact_id()::text;
  node record;
BEGIN
  IF current_setting('standin.sent_for', true) = transaction OR NOT citus_is_coordinator() THEN
    RETURN NULL;
  END IF;
  PERFORM set_config('standin.sent_for', transaction, true);
  FOR node IN
    SELECT nodeid, nodename, nodeport, groupid FROM pg_dist_node
    WHERE hasmetadata AND noderole = 'primary' AND groupid <> 0
  LOOP
    BEGIN
      PERFORM standin.send_nodes(node.nodename, node.nodeport, node.groupid);
    EXCEPTION WHEN OTHERS THEN
      UPDATE pg_dist_node SET metadatasynced = false WHERE nodeid = node.nodeid;
      PERFORM standin.start_maintenance();
    END;
  END LOOP;
  RETURN NULL;
END
$$;

CREATE CONSTRAINT TRIGGER send_nodes
AFTER INSERT OR DELETE ON pg_catalog.pg_dist_node
DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW EXECUTE FUNCTION standin.send_nodes_at_commit();
