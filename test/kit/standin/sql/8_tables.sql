-- Stands for create_distributed_table() and create_reference_table(): the same metadata, the same
-- shard ids and the same spread over the groups, for a table (id bigint primary key, v integer).
-- The metadata and the view are on every node with metadata, under one name; the rows are in one
-- table of standin_shards a node, whatever the number of shards.

-- What a table is on one node. The domain and its operators: see standin.wants().
CREATE FUNCTION standin.make_table(name text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog AS $$
DECLARE
  key_type constant text := format('standin.%I', name || '_key');
  compared text;
BEGIN
  EXECUTE format('CREATE TABLE standin_shards.%I (id bigint PRIMARY KEY, v integer)', name);
  EXECUTE format('CREATE DOMAIN %s AS bigint', key_type);
  FOREACH compared IN ARRAY ARRAY[key_type, 'bigint', 'integer'] LOOP
    EXECUTE format(
      'CREATE FUNCTION standin.%I(%s, %s) RETURNS boolean LANGUAGE sql STABLE AS %L',
      name || '_equals', key_type, compared,
      format('SELECT standin.wants(%L, $2::bigint) AND $1::bigint = $2::bigint', name)
    );
    EXECUTE format(
      'CREATE OPERATOR pg_catalog.= (LEFTARG = %s, RIGHTARG = %s, FUNCTION = standin.%I)',
      key_type, compared, name || '_equals'
    );
  END LOOP;
  EXECUTE format(
    'CREATE VIEW public.%I AS SELECT id::%s AS id, v FROM standin.rows_of(%L)', name, key_type, name
  );
  EXECUTE format(
    'CREATE TRIGGER begin_write BEFORE INSERT OR UPDATE OR DELETE ON public.%I'
    ' FOR EACH STATEMENT EXECUTE FUNCTION standin.begin_write(%L)', name, name
  );
  EXECUTE format(
    'CREATE TRIGGER write_row INSTEAD OF INSERT OR UPDATE OR DELETE ON public.%I'
    ' FOR EACH ROW EXECUTE FUNCTION standin.write_row(%L)', name, name
  );
  EXECUTE format(
    'CREATE TRIGGER end_write AFTER INSERT OR UPDATE OR DELETE ON public.%I'
    ' FOR EACH STATEMENT EXECUTE FUNCTION standin.end_write(%L)', name, name
  );
END
$$;

-- All tables of this node, or one, with their shards and placements. By name, because oids differ
-- from node to node.
CREATE FUNCTION standin.describe_tables(only_name text DEFAULT NULL) RETURNS json
LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
  WITH described AS (
    SELECT class.relname AS name, partition.*
    FROM pg_dist_partition AS partition JOIN pg_class AS class ON class.oid = logicalrelid
    WHERE class.relname = only_name OR only_name IS NULL
  ),
  shards AS (
    SELECT name, shardid, shardstorage, shardminvalue, shardmaxvalue
    FROM described JOIN pg_dist_shard USING (logicalrelid)
  ),
  placements AS (
    SELECT placement.* FROM shards JOIN pg_dist_placement AS placement USING (shardid)
  )
  SELECT json_build_object(
    'tables', (SELECT coalesce(json_agg(t), '[]') FROM described AS t),
    'shards', (SELECT coalesce(json_agg(s), '[]') FROM shards AS s),
    'placements', (SELECT coalesce(json_agg(p), '[]') FROM placements AS p)
  )
$$;

-- On a node with metadata: makes what it does not have.
CREATE FUNCTION standin.receive_tables(description json) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog AS $$
DECLARE
  received record;
BEGIN
  FOR received IN
    SELECT * FROM json_to_recordset(description -> 'tables') AS t (
      name text, partmethod "char", partkey text, colocationid integer, repmodel "char"
    )
  LOOP
    CONTINUE WHEN to_regclass(format('public.%I', received.name)) IS NOT NULL;
    PERFORM standin.make_table(received.name);
    INSERT INTO pg_dist_partition (logicalrelid, partmethod, partkey, colocationid, repmodel)
    VALUES (
      format('public.%I', received.name)::regclass,
      received.partmethod, received.partkey, received.colocationid, received.repmodel
    );
  END LOOP;
  INSERT INTO pg_dist_shard (logicalrelid, shardid, shardstorage, shardminvalue, shardmaxvalue)
  SELECT format('public.%I', name)::regclass, shardid, shardstorage, shardminvalue, shardmaxvalue
  FROM json_to_recordset(description -> 'shards') AS s (
    name text, shardid bigint, shardstorage "char", shardminvalue text, shardmaxvalue text
  )
  ON CONFLICT (shardid) DO NOTHING;
  INSERT INTO pg_dist_placement
  SELECT * FROM json_populate_recordset(NULL::pg_dist_placement, description -> 'placements')
  ON CONFLICT (shardid, groupid) DO NOTHING;
END
$$;

-- To a node that is being added.
CREATE FUNCTION standin.send_tables(host text, port integer) RETURNS void
LANGUAGE sql SET search_path = pg_catalog AS $$
  SELECT standin.call_on(
    host, port, format('SELECT standin.receive_tables(%L)', standin.describe_tables())
  )
$$;

-- To all nodes with metadata, in this transaction.
CREATE FUNCTION standin.spread_table(name text) RETURNS void
LANGUAGE sql SET search_path = pg_catalog AS $$
  SELECT standin.run_on_metadata_nodes(
    format('SELECT standin.receive_tables(%L)', standin.describe_tables(name))
  )
$$;

-- Tables of one number of shards are colocated, as Citus makes them.
CREATE FUNCTION standin.colocation_id(shard_count integer) RETURNS integer
LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
  SELECT coalesce(
    (
      SELECT min(colocationid) FROM pg_dist_partition
      WHERE partmethod = 'h' AND shard_count = (
        SELECT count(*) FROM pg_dist_shard WHERE logicalrelid = pg_dist_partition.logicalrelid
      )
    ),
    (SELECT coalesce(max(colocationid), 0) + 1 FROM pg_dist_partition)
  )
$$;

-- 10,000 shards take a second or two.
CREATE FUNCTION standin.create_distributed_table(name text, shard_count integer) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog AS $$
DECLARE
  worker_groups constant integer[] := (
    SELECT array_agg(groupid ORDER BY groupid) FROM pg_dist_node
    WHERE noderole = 'primary' AND shouldhaveshards
  );
  width constant bigint := (x'100000000'::bigint) / shard_count;
  first_hash constant bigint := -2147483648;
  relation regclass;
BEGIN
  PERFORM standin.make_table(name);
  relation := format('public.%I', name);
  INSERT INTO pg_dist_partition (logicalrelid, partmethod, partkey, colocationid, repmodel)
  VALUES (relation, 'h', 'id', standin.colocation_id(shard_count), 's');
  INSERT INTO pg_dist_shard (logicalrelid, shardid, shardstorage, shardminvalue, shardmaxvalue)
  SELECT
    relation, nextval('pg_dist_shardid_seq'), 't', first_hash + i * width,
    CASE WHEN i = shard_count - 1 THEN 2147483647 ELSE first_hash + (i + 1) * width - 1 END
  FROM generate_series(0, shard_count - 1) AS i;
  INSERT INTO pg_dist_placement (shardid, shardstate, shardlength, groupid)
  SELECT
    shardid, 1, 0,
    worker_groups[1 + (row_number() OVER (ORDER BY shardid) - 1) % cardinality(worker_groups)]
  FROM pg_dist_shard
  WHERE logicalrelid = relation
  ORDER BY shardid;
  PERFORM standin.spread_table(name);
END
$$;

CREATE FUNCTION standin.create_reference_table(name text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog AS $$
DECLARE
  shard constant bigint := nextval('pg_dist_shardid_seq');
  relation regclass;
BEGIN
  PERFORM standin.make_table(name);
  relation := format('public.%I', name);
  INSERT INTO pg_dist_partition (logicalrelid, partmethod, colocationid, repmodel)
  SELECT relation, 'n', coalesce(max(colocationid), 0) + 1, 't' FROM pg_dist_partition;
  INSERT INTO pg_dist_shard (logicalrelid, shardid, shardstorage) VALUES (relation, shard, 't');
  INSERT INTO pg_dist_placement (shardid, shardstate, shardlength, groupid)
  SELECT shard, 1, 0, groupid FROM pg_dist_node WHERE noderole = 'primary' ORDER BY groupid;
  PERFORM standin.spread_table(name);
END
$$;
