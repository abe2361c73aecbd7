-- Citus's functions on pg_dist_node: its signatures, order of checks, locks and SQLSTATEs. The ones
-- that write run as their owner, because Citus's C code asks for no privilege on the table either.

-- Inside a SECURITY DEFINER function current_user is its owner, so the functions that ask note who called
-- them before they call one that runs as the owner.
CREATE FUNCTION standin.note_caller() RETURNS void
LANGUAGE sql SET search_path = pg_catalog AS $$
  SELECT set_config('standin.caller', current_user, true)
$$;

CREATE FUNCTION standin.caller_is_superuser() RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
  SELECT rolsuper FROM pg_roles WHERE rolname = current_setting('standin.caller', true)
$$;

CREATE FUNCTION standin.ensure_coordinator() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog AS $$
BEGIN
  IF NOT citus_is_coordinator() THEN
    RAISE EXCEPTION 'operation is not allowed on this node'
      USING ERRCODE = 'XX000', HINT = 'Connect to the coordinator and run it again.';
  END IF;
END
$$;

-- What Citus checks before it tells the nodes with metadata anything.
CREATE FUNCTION standin.ensure_metadata_in_sync() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog AS $$
DECLARE
  node record;
BEGIN
  SELECT nodename, nodeport INTO node FROM pg_dist_node
  WHERE hasmetadata AND NOT metadatasynced AND noderole = 'primary' AND groupid <> 0
  LIMIT 1;
  IF FOUND THEN
    -- A maintenance session that a crash ended would otherwise be missed until the next change.
    PERFORM standin.start_maintenance();
    RAISE EXCEPTION '%:% is a metadata node, but is out of sync', node.nodename, node.nodeport
      USING ERRCODE = 'object_not_in_prerequisite_state',
        HINT = 'If the node is up, wait until metadata gets synced to it and try again.';
  END IF;
  -- Citus writes to pg_dist_node on those nodes as the caller.
  IF NOT standin.caller_is_superuser() AND EXISTS (
    SELECT FROM pg_dist_node WHERE hasmetadata AND noderole = 'primary' AND groupid <> 0
  ) THEN
    RAISE EXCEPTION 'permission denied for table pg_dist_node'
      USING ERRCODE = 'insufficient_privilege';
  END IF;
END
$$;

CREATE FUNCTION standin.ensure_node(node_id integer) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog AS $$
BEGIN
  IF NOT EXISTS (SELECT FROM pg_dist_node WHERE nodeid = node_id) THEN
    RAISE EXCEPTION 'node % not found', node_id USING ERRCODE = 'no_data_found';
  END IF;
END
$$;

CREATE FUNCTION pg_catalog.citus_update_node(
  node_id integer,
  new_node_name text,
  new_node_port integer,
  force boolean DEFAULT false,
  lock_cooldown integer DEFAULT 10000
) RETURNS void
LANGUAGE plpgsql STRICT SECURITY DEFINER SET search_path = pg_catalog AS $$
DECLARE
  same_address integer := (
    SELECT nodeid FROM pg_dist_node WHERE nodename = new_node_name AND nodeport = new_node_port
  );
BEGIN
  IF same_address = node_id THEN
    RETURN;
  ELSIF same_address IS NOT NULL THEN
    RAISE EXCEPTION 'there is already another node with the specified hostname and port'
      USING ERRCODE = 'object_not_in_prerequisite_state';
  END IF;
  PERFORM standin.ensure_node(node_id);
  PERFORM standin.lock_for_node(standin.locks_of_node(node_id), true, force, lock_cooldown);
  UPDATE pg_dist_node SET nodename = new_node_name, nodeport = new_node_port
  WHERE nodeid = node_id;
  UPDATE pg_dist_node SET metadatasynced = false
  WHERE hasmetadata AND metadatasynced AND groupid > 0;
END
$$;

CREATE FUNCTION pg_catalog.citus_pause_node_within_txn(
  node_id integer, force boolean DEFAULT false, lock_cooldown integer DEFAULT 10000
) RETURNS void
LANGUAGE plpgsql STRICT SECURITY DEFINER SET search_path = pg_catalog AS $$
BEGIN
  PERFORM standin.ensure_node(node_id);
  PERFORM standin.lock_for_node(standin.locks_of_node(node_id), false, force, lock_cooldown);
END
$$;

-- The common part of what adds a row; returns the nodeid of a row that is already there.
CREATE FUNCTION standin.add_node(
  host text, port integer, groupid integer, role noderole, cluster name
) RETURNS integer
LANGUAGE plpgsql SET search_path = pg_catalog AS $$
DECLARE
  known integer := (SELECT nodeid FROM pg_dist_node WHERE nodename = host AND nodeport = port);
  is_worker constant boolean := role = 'primary' AND groupid <> 0;
BEGIN
  PERFORM standin.ensure_coordinator();
  IF known IS NOT NULL THEN
    RETURN known;
  END IF;
  LOCK TABLE pg_dist_node IN EXCLUSIVE MODE;
  SELECT nodeid INTO known FROM pg_dist_node WHERE nodename = host AND nodeport = port;
  IF known IS NOT NULL THEN
    RETURN known;
  END IF;
  IF groupid = -1 THEN
    groupid := nextval('pg_dist_groupid_seq');
  END IF;
  IF role = 'primary' AND EXISTS (
    SELECT FROM pg_dist_node AS node
    WHERE node.groupid = add_node.groupid AND node.noderole = 'primary'
  ) THEN
    RAISE EXCEPTION 'group % already has a primary node', groupid USING ERRCODE = 'XX000';
  ELSIF role = 'primary' AND cluster <> 'default' THEN
    RAISE EXCEPTION 'primaries must be added to the default cluster' USING ERRCODE = 'XX000';
  END IF;
  PERFORM standin.ensure_metadata_in_sync();
  IF is_worker THEN
    PERFORM standin.send_tables(host, port);
  END IF;
  INSERT INTO pg_dist_node (
    groupid, nodename, nodeport, noderole, nodecluster, hasmetadata, metadatasynced,
    shouldhaveshards
  ) VALUES (
    groupid, host, port, role, cluster, role = 'primary', role = 'primary', groupid <> 0
  )
  RETURNING nodeid INTO known;
  RETURN known;
END
$$;

CREATE FUNCTION pg_catalog.citus_add_node(
  nodename text,
  nodeport integer,
  groupid integer DEFAULT -1,
  noderole noderole DEFAULT 'primary',
  nodecluster name DEFAULT 'default'
) RETURNS integer
LANGUAGE plpgsql STRICT SET search_path = pg_catalog AS $$
BEGIN
  PERFORM standin.note_caller();
  IF NOT standin.caller_is_superuser() THEN
    RAISE EXCEPTION 'operation is not allowed'
      USING ERRCODE = 'XX000', HINT = 'Run the command with a superuser.';
  END IF;
  RETURN standin.add_node(nodename, nodeport, groupid, noderole, nodecluster);
END
$$;

CREATE FUNCTION pg_catalog.citus_add_secondary_node(
  nodename text,
  nodeport integer,
  primaryname text,
  primaryport integer,
  nodecluster name DEFAULT 'default'
) RETURNS integer
LANGUAGE plpgsql STRICT SET search_path = pg_catalog AS $$
BEGIN
  PERFORM standin.note_caller();
  RETURN standin.add_secondary_node($1, $2, $3, $4, $5);
END
$$;

CREATE FUNCTION standin.add_secondary_node(
  nodename text, nodeport integer, primaryname text, primaryport integer, nodecluster name
) RETURNS integer
LANGUAGE plpgsql STRICT SECURITY DEFINER SET search_path = pg_catalog AS $$
#variable_conflict use_variable
DECLARE
  primary_group integer := (
    SELECT node.groupid FROM pg_dist_node AS node
    WHERE node.nodename = primaryname AND node.nodeport = primaryport
  );
BEGIN
  IF primary_group IS NULL THEN
    RAISE EXCEPTION 'node at "%:%" does not exist', primaryname, primaryport
      USING ERRCODE = 'XX000';
  END IF;
  RETURN standin.add_node(nodename, nodeport, primary_group, 'secondary', nodecluster);
END
$$;

CREATE FUNCTION pg_catalog.citus_set_coordinator_host(
  host text,
  port integer DEFAULT current_setting('port')::integer,
  node_role noderole DEFAULT 'primary',
  node_cluster name DEFAULT 'default'
) RETURNS void
LANGUAGE plpgsql STRICT SET search_path = pg_catalog AS $$
BEGIN
  PERFORM standin.note_caller();
  PERFORM standin.set_coordinator_host($1, $2, $3, $4);
END
$$;

CREATE FUNCTION standin.set_coordinator_host(
  host text, port integer, node_role noderole, node_cluster name
) RETURNS void
LANGUAGE plpgsql STRICT SECURITY DEFINER SET search_path = pg_catalog AS $$
BEGIN
  LOCK TABLE pg_dist_node IN ROW EXCLUSIVE MODE;
  IF NOT EXISTS (SELECT FROM pg_dist_node WHERE groupid = 0 AND noderole = 'primary') THEN
    PERFORM standin.add_node(host, port, 0, node_role, node_cluster);
  ELSE
    UPDATE pg_dist_node SET nodename = host, nodeport = port
    WHERE groupid = 0 AND noderole = 'primary';
    PERFORM standin.ensure_metadata_in_sync();
  END IF;
END
$$;

CREATE FUNCTION pg_catalog.citus_remove_node(nodename text, nodeport integer) RETURNS void
LANGUAGE plpgsql STRICT SET search_path = pg_catalog AS $$
BEGIN
  PERFORM standin.note_caller();
  PERFORM standin.remove_node($1, $2);
END
$$;

CREATE FUNCTION standin.remove_node(nodename text, nodeport integer) RETURNS void
LANGUAGE plpgsql STRICT SECURITY DEFINER SET search_path = pg_catalog AS $$
#variable_conflict use_variable
DECLARE
  node pg_dist_node;
  stranded record;
BEGIN
  PERFORM standin.ensure_coordinator();
  LOCK TABLE pg_dist_node IN EXCLUSIVE MODE;
  SELECT * INTO node FROM pg_dist_node AS n WHERE n.nodename = nodename AND n.nodeport = nodeport;
  IF node.nodeid IS NULL THEN
    RAISE EXCEPTION 'node at "%:%" does not exist', nodename, nodeport USING ERRCODE = 'XX000';
  END IF;
  IF node.noderole = 'primary' THEN
    SELECT here.shardid, shard.logicalrelid INTO stranded
    FROM pg_dist_placement AS here JOIN pg_dist_shard AS shard USING (shardid)
    WHERE here.groupid = node.groupid AND NOT EXISTS (
      SELECT FROM pg_dist_placement AS elsewhere
      WHERE elsewhere.shardid = here.shardid AND elsewhere.groupid <> here.groupid
    )
    ORDER BY here.shardid
    LIMIT 1;
    IF FOUND THEN
      RAISE EXCEPTION 'cannot remove the node %:% because it contains the only shard placement '
        'for shard %', nodename, nodeport, stranded.shardid
        USING ERRCODE = 'XX000', DETAIL = format('The shard belongs to %s.', stranded.logicalrelid);
    END IF;
    DELETE FROM pg_dist_placement WHERE groupid = node.groupid;
  END IF;
  DELETE FROM pg_dist_node AS n WHERE n.nodeid = node.nodeid;
  PERFORM standin.ensure_metadata_in_sync();
END
$$;

-- A clone follows a primary and is to become a group of its own. Until then it has the primary's groupid,
-- no metadata, and the role unavailable; its row comes and goes like any other.
CREATE FUNCTION pg_catalog.citus_add_clone_node(
  replica_hostname text, replica_port integer, primary_hostname text, primary_port integer
) RETURNS integer
LANGUAGE plpgsql STRICT SECURITY DEFINER SET search_path = pg_catalog AS $$
DECLARE
  source pg_dist_node;
  added integer;
BEGIN
  PERFORM standin.ensure_coordinator();
  SELECT * INTO source FROM pg_dist_node WHERE nodename = primary_hostname AND nodeport = primary_port;
  IF source.nodeid IS NULL THEN
    RAISE EXCEPTION 'Primary node %:% not found in pg_dist_node', primary_hostname, primary_port
      USING ERRCODE = 'XX000';
  END IF;
  LOCK TABLE pg_dist_node IN EXCLUSIVE MODE;
  PERFORM standin.ensure_metadata_in_sync();
  INSERT INTO pg_dist_node (
    groupid, nodename, nodeport, noderole, isactive, shouldhaveshards, nodeisclone, nodeprimarynodeid
  ) VALUES (
    source.groupid, replica_hostname, replica_port, 'unavailable', false, false, true, source.nodeid
  )
  RETURNING nodeid INTO added;
  RETURN added;
END
$$;

CREATE FUNCTION pg_catalog.citus_remove_clone_node(nodename text, nodeport integer) RETURNS void
LANGUAGE plpgsql STRICT SECURITY DEFINER SET search_path = pg_catalog AS $$
#variable_conflict use_variable
BEGIN
  IF NOT EXISTS (
    SELECT FROM pg_dist_node AS n WHERE n.nodename = nodename AND n.nodeport = nodeport AND n.nodeisclone
  ) THEN
    RAISE EXCEPTION 'Node %:% (ID 0) is not a clone node. Use citus_remove_node() to remove regular nodes.', nodename, nodeport
      USING ERRCODE = 'XX000';
  END IF;
  PERFORM citus_remove_node(nodename, nodeport);
END
$$;

REVOKE EXECUTE ON FUNCTION
  pg_catalog.citus_add_clone_node, pg_catalog.citus_remove_clone_node,
  pg_catalog.citus_update_node, pg_catalog.citus_pause_node_within_txn,
  pg_catalog.citus_add_node, pg_catalog.citus_add_secondary_node,
  pg_catalog.citus_set_coordinator_host, pg_catalog.citus_remove_node
FROM PUBLIC;

GRANT USAGE ON SCHEMA standin TO PUBLIC;
REVOKE EXECUTE ON FUNCTION
  standin.connect, standin.call_on, standin.start_lock_helper, standin.start_maintenance,
  standin.send_nodes, standin.receive_nodes, standin.sync_nodes, standin.add_node,
  standin.lock_for_node
FROM PUBLIC;
