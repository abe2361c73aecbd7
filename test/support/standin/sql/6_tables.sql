-- Stands for create_distributed_table() and create_reference_table(): the same metadata, the same
-- shard ids and the same spread over the groups, for a table (id bigint primary key, v integer).

-- The view and what makes it writable. The rows of a distributed table are on the workers, so that
-- `local` has only keys; of a reference table it is one of the copies.
CREATE FUNCTION standin.create_view(visible text, local text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog AS $$
BEGIN
  EXECUTE format('CREATE TABLE %s (id bigint PRIMARY KEY, v integer)', local);
  EXECUTE format(
    'CREATE VIEW %1$s AS SELECT k.id, r.v FROM %2$s AS k'
    ' CROSS JOIN LATERAL standin.row_of(%1$L, %2$L, k.id) AS r',
    visible, local
  );
  EXECUTE format(
    'CREATE TRIGGER begin_write BEFORE INSERT OR UPDATE OR DELETE ON %s'
    ' FOR EACH STATEMENT EXECUTE FUNCTION standin.begin_write()', visible
  );
  EXECUTE format(
    'CREATE TRIGGER write_row INSTEAD OF INSERT OR UPDATE OR DELETE ON %s'
    ' FOR EACH ROW EXECUTE FUNCTION standin.write_row(%L)', visible, local
  );
  EXECUTE format(
    'CREATE TRIGGER end_write AFTER INSERT OR UPDATE OR DELETE ON %s'
    ' FOR EACH STATEMENT EXECUTE FUNCTION standin.end_write()', visible
  );
END
$$;

-- All distributed tables are colocated (1), as Citus makes them; each reference table is in 2.
CREATE FUNCTION standin.create_shards(relation regclass, shard_count integer) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog AS $$
DECLARE
  worker_groups constant integer[] := (
    SELECT array_agg(groupid ORDER BY groupid) FROM pg_dist_node
    WHERE noderole = 'primary' AND shouldhaveshards
  );
  width constant bigint := (x'100000000'::bigint) / shard_count;
  first_hash constant bigint := -2147483648;
  shard bigint;
BEGIN
  INSERT INTO pg_dist_partition (logicalrelid, partmethod, partkey, colocationid, repmodel)
  VALUES (relation, 'h', 'id', 1, 's');
  FOR i IN 0 .. shard_count - 1 LOOP
    shard := nextval('pg_dist_shardid_seq');
    INSERT INTO pg_dist_shard (logicalrelid, shardid, shardstorage, shardminvalue, shardmaxvalue)
    VALUES (
      relation, shard, 't', first_hash + i * width,
      CASE WHEN i = shard_count - 1 THEN 2147483647 ELSE first_hash + (i + 1) * width - 1 END
    );
    INSERT INTO pg_dist_placement (shardid, shardstate, shardlength, groupid)
    VALUES (shard, 1, 0, worker_groups[1 + i % cardinality(worker_groups)]);
  END LOOP;
END
$$;

CREATE FUNCTION standin.create_on_workers(visible text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog AS $$
DECLARE
  group_id integer;
BEGIN
  FOR group_id IN
    SELECT groupid FROM pg_dist_node WHERE noderole = 'primary' AND groupid <> 0 ORDER BY groupid
  LOOP
    PERFORM standin.dblink_exec(
      standin.transaction_with(group_id),
      format('CREATE TABLE %s (id bigint PRIMARY KEY, v integer)', visible)
    );
  END LOOP;
END
$$;

CREATE FUNCTION standin.create_distributed_table(name text, shard_count integer) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog AS $$
DECLARE
  visible constant text := format('public.%I', name);
BEGIN
  PERFORM standin.create_view(visible, format('standin.%I', name));
  PERFORM standin.create_shards(visible::regclass, shard_count);
  PERFORM standin.create_on_workers(visible);
END
$$;

CREATE FUNCTION standin.create_reference_table(name text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog AS $$
DECLARE
  visible constant text := format('public.%I', name);
  shard constant bigint := nextval('pg_dist_shardid_seq');
BEGIN
  PERFORM standin.create_view(visible, format('standin.%I', name));
  INSERT INTO pg_dist_partition (logicalrelid, partmethod, colocationid, repmodel)
  VALUES (visible::regclass, 'n', 2, 't');
  INSERT INTO pg_dist_shard (logicalrelid, shardid, shardstorage)
  VALUES (visible::regclass, shard, 't');
  INSERT INTO pg_dist_placement (shardid, shardstate, shardlength, groupid)
  SELECT shard, 1, 0, groupid FROM pg_dist_node WHERE noderole = 'primary' ORDER BY groupid;
  PERFORM standin.create_on_workers(visible);
END
$$;
