-- Statements on a distributed or reference table of the shape (id bigint, v integer). On each entry
-- node such a table is a view (7_tables.sql) that reads by rows_of() and writes by write_row().
-- Writers take the shard's lock in Share mode and only then look up which node is the primary, so a
-- writer that has waited for a failover goes to the new one. Readers take no shard lock. Both have,
-- as with every relation, its table lock: LOCK TABLE on the view makes them wait, on that node.
--
-- What is not exact: SELECT … FOR UPDATE locks no row; a multi-shard statement visits one group
-- after the other; a write to a reference table takes nothing on the first worker; a statement that
-- goes to the entry node's own group never fails as a remote one would.

-- Citus's function, for bigint only: the shard is found by the hash, as Citus finds it.
CREATE FUNCTION pg_catalog.get_shard_id_for_distribution_column(
  table_name regclass, distribution_value bigint DEFAULT NULL
) RETURNS bigint
LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
  SELECT coalesce(
    (
      SELECT shardid FROM pg_dist_shard
      WHERE logicalrelid = table_name
        AND shardminvalue::integer <= hashint8(distribution_value)
      ORDER BY shardminvalue::integer DESC
      LIMIT 1
    ),
    (SELECT shardid FROM pg_dist_shard WHERE logicalrelid = table_name AND shardminvalue IS NULL)
  )
$$;

-- How `WHERE id = $1` reaches rows_of(), which would otherwise have to fetch every row of every
-- shard: a view cannot hand its conditions to a function. The column id is of a domain with an
-- operator `=` of its own; the planner inlines that into `wants(…) AND id = $1`, and runs what
-- depends on no row once and first, as a one-time filter. `wants` only remembers the key, for this
-- statement.
--
-- The same operator in a join on id would promise one key and then want another. It is then an
-- error, as are two statements of one query string that read one table by different keys: cast id
-- to bigint.
CREATE FUNCTION standin.wants(name text, key bigint) RETURNS boolean
LANGUAGE plpgsql STABLE SET search_path = pg_catalog AS $$
DECLARE
  setting constant text := 'standin.wanted_' || md5(name);
  statement constant text := statement_timestamp()::text;
  earlier constant text[] := string_to_array(current_setting(setting, true), '|');
  state text := 'wanted';
BEGIN
  IF earlier[1] = statement AND earlier[3] IS DISTINCT FROM key::text THEN
    IF earlier[2] = 'read' THEN
      RAISE EXCEPTION 'the stand-in for Citus reads one key of % in a query', name
        USING ERRCODE = 'feature_not_supported', HINT = 'Compare id::bigint instead of id.';
    END IF;
    state := 'many';
  END IF;
  PERFORM set_config(setting, concat_ws('|', statement, state, key), true);
  RETURN true;
END
$$;

-- The one key that this statement wants of a table, or null when it must read all.
CREATE FUNCTION standin.take_wanted(name text) RETURNS bigint
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog AS $$
DECLARE
  setting constant text := 'standin.wanted_' || md5(name);
  noted constant text[] := string_to_array(current_setting(setting, true), '|');
BEGIN
  IF noted[1] IS DISTINCT FROM statement_timestamp()::text OR noted[2] = 'many' THEN
    RETURN NULL;
  ELSIF noted[2] = 'read' THEN
    RAISE EXCEPTION 'the stand-in for Citus reads % once in a query', name
      USING ERRCODE = 'feature_not_supported', HINT = 'Compare id::bigint instead of id.';
  END IF;
  PERFORM set_config(setting, concat_ws('|', noted[1], 'read', noted[3]), true);
  RETURN noted[3]::bigint;
END
$$;

-- The groups that a read has to ask. A reference table is read here if it is here; to be changed,
-- its rows are locked in the group that comes first for everybody.
CREATE FUNCTION standin.groups_to_read(shards bigint[], reference boolean, writing boolean)
RETURNS integer[]
LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
  SELECT CASE
    WHEN NOT reference THEN array_agg(DISTINCT groupid)
    WHEN NOT writing AND bool_or(groupid = standin.local_group()) THEN ARRAY[standin.local_group()]
    ELSE ARRAY[min(groupid)]
  END
  FROM pg_dist_placement
  WHERE shardid = ANY (shards)
$$;

-- What the view shows. Within an UPDATE or DELETE the rows come locked, so that `v = v + 1` starts
-- from the last committed value.
CREATE FUNCTION standin.rows_of(name text) RETURNS TABLE (id bigint, v integer)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog AS $$
DECLARE
  relation constant regclass := format('public.%I', name);
  writing constant boolean := standin.noted('writing', name);
  wanted constant bigint := standin.take_wanted(name);
  reference constant boolean := (
    SELECT partmethod = 'n' FROM pg_dist_partition WHERE logicalrelid = relation
  );
  shards constant bigint[] := CASE
    WHEN wanted IS NULL THEN (
      SELECT array_agg(shardid ORDER BY shardid) FROM pg_dist_shard WHERE logicalrelid = relation
    )
    ELSE ARRAY[get_shard_id_for_distribution_column(relation, wanted)]
  END;
  query constant text := concat_ws(
    ' ',
    format('SELECT id, v FROM standin_shards.%I', name),
    'WHERE id = ' || wanted,
    CASE WHEN writing THEN 'ORDER BY id FOR UPDATE' END
  );
  group_id integer;
BEGIN
  IF writing THEN
    PERFORM standin.lock_shards(shards, false);
  END IF;
  FOREACH group_id IN ARRAY standin.groups_to_read(shards, reference, writing) LOOP
    RETURN QUERY SELECT * FROM standin.rows_on(group_id, query, writing);
  END LOOP;
EXCEPTION WHEN query_canceled OR OTHERS THEN
  PERFORM standin.fail_participants();
  RAISE;
END
$$;

-- Tells rows_of() that the statement is a write. It runs before the view is read; a condition of an
-- earlier statement in the same query string is forgotten.
CREATE FUNCTION standin.begin_write() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog AS $$
BEGIN
  PERFORM set_config('standin.wanted_' || md5(TG_ARGV[0]), '', true);
  IF TG_OP <> 'INSERT' THEN
    PERFORM standin.note('writing', TG_ARGV[0]);
  END IF;
  RETURN NULL;
END
$$;

CREATE FUNCTION standin.end_write() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog AS $$
BEGIN
  PERFORM set_config('standin.wanted_' || md5(TG_ARGV[0]), '', true);
  PERFORM set_config('standin.writing', '', true);
  RETURN NULL;
END
$$;

-- TG_ARGV[0] is the table's name.
CREATE FUNCTION standin.write_row() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
DECLARE
  key constant bigint := CASE WHEN TG_OP = 'DELETE' THEN OLD.id ELSE NEW.id END;
  shard constant bigint := get_shard_id_for_distribution_column(TG_RELID, key);
  shard_table constant text := format('standin_shards.%I', TG_ARGV[0]);
  statement text;
  group_id integer;
BEGIN
  IF TG_OP = 'INSERT' THEN
    statement := format('INSERT INTO %s (id, v) VALUES (%L, %L)', shard_table, NEW.id, NEW.v);
  ELSIF TG_OP = 'UPDATE' THEN
    IF NEW.id::bigint IS DISTINCT FROM OLD.id::bigint THEN
      RAISE EXCEPTION 'modifying the partition value of rows is not allowed'
        USING ERRCODE = 'feature_not_supported';
    END IF;
    statement := format('UPDATE %s SET v = %L WHERE id = %L', shard_table, NEW.v, key);
  ELSE
    statement := format('DELETE FROM %s WHERE id = %L', shard_table, key);
  END IF;
  PERFORM standin.lock_shards(ARRAY[shard], false);
  FOR group_id IN
    SELECT groupid FROM pg_dist_placement WHERE shardid = shard ORDER BY groupid
  LOOP
    PERFORM standin.run_on(group_id, statement);
  END LOOP;
  RETURN CASE WHEN TG_OP = 'DELETE' THEN OLD ELSE NEW END;
EXCEPTION WHEN query_canceled OR OTHERS THEN
  PERFORM standin.fail_participants();
  RAISE;
END
$$;
