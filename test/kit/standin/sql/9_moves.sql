-- Stands for citus_move_shard_placement() in its blocking mode: the shard and those colocated with
-- it, with Citus's locks on every node with metadata from the start to the end of the transaction.
--
-- What is not exact: the non-blocking mode blocks as well; a reader that looked up the placement
-- before the commit may find the rows gone from there.
CREATE FUNCTION pg_catalog.citus_move_shard_placement(
  shard_id bigint,
  source_node_name text,
  source_node_port integer,
  target_node_name text,
  target_node_port integer,
  shard_transfer_mode text DEFAULT 'auto'
) RETURNS void
LANGUAGE plpgsql STRICT SET search_path = pg_catalog AS $$
DECLARE
  source constant integer := (
    SELECT groupid FROM pg_dist_node
    WHERE nodename = source_node_name AND nodeport = source_node_port
  );
  target constant integer := (
    SELECT groupid FROM pg_dist_node
    WHERE nodename = target_node_name AND nodeport = target_node_port
  );
  moved record;
  shards bigint[] := '{}';
  tables text[] := '{}';
BEGIN
  FOR moved IN
    SELECT other.shardid, class.relname
    FROM standin.shard_lock AS wanted
    JOIN standin.shard_lock AS other USING (key)
    JOIN pg_dist_placement AS placement
      ON placement.shardid = other.shardid AND placement.groupid = source
    JOIN pg_class AS class ON class.oid = other.logicalrelid
    WHERE wanted.shardid = shard_id
    ORDER BY other.shardid
  LOOP
    shards := shards || moved.shardid;
    tables := tables || moved.relname::text;
    EXECUTE format('LOCK TABLE public.%I IN ROW EXCLUSIVE MODE', moved.relname);
  END LOOP;
  IF shards = '{}' OR target IS NULL THEN
    RAISE EXCEPTION 'could not find placement matching "%:%"', source_node_name, source_node_port
      USING ERRCODE = 'XX000';
  END IF;
  PERFORM lock_shard_metadata(7, shards);
  PERFORM standin.run_on_metadata_nodes(format('SELECT lock_shard_metadata(7, %L)', shards));
  FOR i IN 1 .. cardinality(shards) LOOP
    PERFORM standin.move_rows(tables[i], shards[i], source, target);
  END LOOP;
  UPDATE pg_dist_placement SET groupid = target WHERE groupid = source AND shardid = ANY (shards);
  PERFORM standin.run_on_metadata_nodes(format(
    'SELECT standin.place_shards(%L, %s, %s)', shards, source, target
  ));
EXCEPTION WHEN query_canceled OR OTHERS THEN
  PERFORM standin.fail_participants();
  RAISE;
END
$$;

CREATE FUNCTION standin.place_shards(shards bigint[], source integer, target integer)
RETURNS void
LANGUAGE sql SET search_path = pg_catalog AS $$
  UPDATE pg_dist_placement SET groupid = target WHERE groupid = source AND shardid = ANY (shards)
$$;

CREATE FUNCTION standin.move_rows(
  name text, shard bigint, source integer, target integer
) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog AS $$
DECLARE
  rows text;
BEGIN
  SELECT format('hashint8(id) BETWEEN %s AND %s', shardminvalue, shardmaxvalue) INTO rows
  FROM pg_dist_shard WHERE shardid = shard;
  SELECT string_agg(format('(%s, %L)', id, v), ', ') INTO STRICT rows
  FROM standin.rows_on(
    source, format('DELETE FROM standin_shards.%I WHERE %s RETURNING id, v', name, rows), true
  );
  IF rows IS NOT NULL THEN
    PERFORM standin.run_on(
      target, format('INSERT INTO standin_shards.%I (id, v) VALUES %s', name, rows)
    );
  END IF;
END
$$;
