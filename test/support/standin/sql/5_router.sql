-- Sends statements on a distributed or reference table of the shape (id bigint primary key,
-- v integer) to the workers. On the coordinator such a table is a view: local keys, and beside each
-- the row as the worker has it. Writers take the shard's lock in Share mode and only then look up
-- which node is the primary, so a writer that has waited for a failover goes to the new one.
--
-- What is not exact: the workers commit just before the coordinator does, without two phases;
-- a rollback reaches them with the session's next statement (a failed statement at once); savepoints
-- do not reach them; there is no detector of distributed deadlocks; SELECT … FOR UPDATE locks the
-- coordinator's key only; an UPDATE or DELETE that finds no key does not wait for a hold.

CREATE TABLE standin.participant (
  backend integer NOT NULL,
  connection text NOT NULL,
  PRIMARY KEY (backend, connection)
);

-- Settings of one transaction: connections that it has looked at, and those with a transaction of
-- its own on the worker. They vanish with a rollback, which is what tells the next transaction to
-- clean up.
CREATE FUNCTION standin.noted(list text, connection text) RETURNS boolean
LANGUAGE sql VOLATILE SET search_path = pg_catalog AS $$
  SELECT connection = ANY (string_to_array(current_setting('standin.' || list, true), ' '))
$$;

CREATE FUNCTION standin.note(list text, connection text) RETURNS void
LANGUAGE sql VOLATILE SET search_path = pg_catalog AS $$
  SELECT set_config(
    'standin.' || list,
    concat_ws(' ', nullif(current_setting('standin.' || list, true), ''), connection),
    true
  )
$$;

-- A session with the primary of a group, kept open between statements under its address. Looked at
-- once a transaction: one that broke is opened anew, one with a transaction that was rolled back
-- here is rolled back there.
CREATE FUNCTION standin.session_with(group_id integer) RETURNS text
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog AS $$
DECLARE
  node record;
  connection text;
BEGIN
  SELECT nodename, nodeport INTO STRICT node FROM pg_dist_node
  WHERE groupid = group_id AND noderole = 'primary';
  connection := format('%s:%s', node.nodename, node.nodeport);
  IF standin.noted('looked_at', connection) THEN
    RETURN connection;
  END IF;
  IF connection = ANY (standin.dblink_get_connections()) THEN
    BEGIN
      PERFORM standin.dblink_exec(connection, 'ROLLBACK');
    EXCEPTION WHEN OTHERS THEN
      PERFORM standin.dblink_disconnect(connection);
    END;
  END IF;
  IF connection = ANY (standin.dblink_get_connections()) IS NOT TRUE THEN
    PERFORM standin.connect(
      connection, standin.address(node.nodename, node.nodeport, 'router')
    );
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
  IF NOT coalesce(standin.noted('taking_part', connection), false) THEN
    PERFORM standin.dblink_exec(connection, 'BEGIN');
    INSERT INTO standin.participant (backend, connection) VALUES (pg_backend_pid(), connection);
    PERFORM standin.note('taking_part', connection);
  END IF;
  RETURN connection;
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
  DELETE FROM standin.participant
  WHERE backend = NEW.backend AND connection = NEW.connection;
  RETURN NULL;
END
$$;

CREATE CONSTRAINT TRIGGER commit_participant
AFTER INSERT ON standin.participant
DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW EXECUTE FUNCTION standin.commit_participant();

-- Citus's function, for bigint only: the shard is found by the hash, as Citus finds it.
CREATE FUNCTION pg_catalog.get_shard_id_for_distribution_column(
  table_name regclass, distribution_value bigint DEFAULT NULL
) RETURNS bigint
LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
  SELECT shardid FROM pg_dist_shard
  WHERE logicalrelid = table_name AND (
    shardminvalue IS NULL
    OR hashint8(distribution_value) BETWEEN shardminvalue::integer AND shardmaxvalue::integer
  )
$$;

-- The groups of workers that have a row's shard, after taking the shard's lock as a writer.
CREATE FUNCTION standin.lock_as_writer(relation regclass, key bigint) RETURNS integer[]
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog AS $$
DECLARE
  shard constant bigint := get_shard_id_for_distribution_column(relation, key);
BEGIN
  PERFORM pg_advisory_xact_lock_shared(standin.shard_lock(shard));
  RETURN (
    SELECT array_agg(groupid ORDER BY groupid) FROM pg_dist_placement
    WHERE shardid = shard AND groupid <> 0
  );
END
$$;

-- The row behind a key, or none. Within an UPDATE or DELETE it comes locked, so that `v = v + 1`
-- starts from the last committed value. `visible` is text because the view that calls this is not
-- there yet when it is made. A reference table is read from the coordinator's own copy.
CREATE FUNCTION standin.row_of(visible text, local regclass, key bigint)
RETURNS TABLE (id bigint, v integer)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog ROWS 1 AS $$
DECLARE
  relation constant regclass := visible;
  writing constant boolean := coalesce(standin.noted('writing', relation::text), false);
  reference constant boolean := (
    SELECT partmethod = 'n' FROM pg_dist_partition WHERE logicalrelid = relation
  );
  for_update constant text := CASE WHEN writing THEN ' FOR UPDATE' ELSE '' END;
  group_ids integer[];
BEGIN
  IF writing THEN
    group_ids := standin.lock_as_writer(relation, key);
  END IF;
  IF reference THEN
    RETURN QUERY EXECUTE format('SELECT id, v FROM %s WHERE id = $1%s', local, for_update)
      USING key;
  ELSE
    RETURN QUERY SELECT * FROM standin.dblink(
      CASE
        WHEN writing THEN standin.transaction_with(group_ids[1])
        ELSE standin.session_with((
          SELECT groupid FROM pg_dist_placement
          WHERE shardid = get_shard_id_for_distribution_column(relation, key)
        ))
      END,
      format('SELECT id, v FROM %s WHERE id = %s%s', relation, key, for_update)
    ) AS row (id bigint, v integer);
  END IF;
END
$$;

-- Tells row_of() that the statement is a write. It runs before the view is read.
CREATE FUNCTION standin.begin_write() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog AS $$
BEGIN
  PERFORM standin.note('writing', TG_RELID::regclass::text);
  RETURN NULL;
END
$$;

CREATE FUNCTION standin.end_write() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog AS $$
BEGIN
  PERFORM set_config('standin.writing', '', true);
  RETURN NULL;
END
$$;

-- TG_ARGV[0] is the coordinator's own table: the keys, or for a reference table the rows.
CREATE FUNCTION standin.write_row() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
DECLARE
  relation constant regclass := TG_RELID;
  key constant bigint := CASE WHEN TG_OP = 'DELETE' THEN OLD.id ELSE NEW.id END;
  here text;
  there text;
  group_id integer;
BEGIN
  IF TG_OP = 'INSERT' THEN
    here := format('INSERT INTO %s (id, v) VALUES (%L, %L)', TG_ARGV[0], NEW.id, NEW.v);
    there := format('INSERT INTO %s (id, v) VALUES (%L, %L)', relation, NEW.id, NEW.v);
  ELSIF TG_OP = 'UPDATE' THEN
    IF NEW.id IS DISTINCT FROM OLD.id THEN
      RAISE EXCEPTION 'modifying the partition value of rows is not allowed'
        USING ERRCODE = 'feature_not_supported';
    END IF;
    there := format('UPDATE %s SET v = %L WHERE id = %L', relation, NEW.v, key);
    -- The keys of a distributed table never change, and a row version each time would be waste.
    IF (SELECT partmethod = 'n' FROM pg_dist_partition WHERE logicalrelid = relation) THEN
      here := format('UPDATE %s SET v = %L WHERE id = %L', TG_ARGV[0], NEW.v, key);
    END IF;
  ELSE
    here := format('DELETE FROM %s WHERE id = %L', TG_ARGV[0], key);
    there := format('DELETE FROM %s WHERE id = %L', relation, key);
  END IF;
  FOREACH group_id IN ARRAY standin.lock_as_writer(relation, key) LOOP
    PERFORM standin.dblink_exec(standin.transaction_with(group_id), there);
  END LOOP;
  IF here IS NOT NULL THEN
    EXECUTE here;
  END IF;
  RETURN CASE WHEN TG_OP = 'DELETE' THEN OLD ELSE NEW END;
END
$$;
