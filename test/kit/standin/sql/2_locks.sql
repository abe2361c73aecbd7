-- Citus's shard metadata locks: writers take Share until their transaction ends, a pause takes
-- Exclusive. Here they are advisory locks of the same modes. As in Citus each node has its own: a
-- writer takes the lock on the node where its statement enters, and a pause there stops it there
-- only.

-- Which lock stands for a shard. Colocated shards share one, as in Citus; a reference table's shard
-- has its own. The lowest hash of a shard is the same in all tables of a colocation group.
CREATE VIEW standin.shard_lock AS
SELECT
  shardid,
  logicalrelid,
  CASE partition.partmethod
    WHEN 'n' THEN (x'53484152'::bigint << 32) + shard.shardid
    ELSE (((x'434F'::bigint << 16) + partition.colocationid) << 32)
      + shard.shardminvalue::bigint + 2147483648
  END AS key
FROM pg_catalog.pg_dist_shard AS shard
JOIN pg_catalog.pg_dist_partition AS partition USING (logicalrelid);
GRANT SELECT ON standin.shard_lock TO PUBLIC;

-- The locks of some shards in the order of the array, for lock_shard_metadata() and for writers.
CREATE FUNCTION standin.lock_shards(shards bigint[], exclusively boolean) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog AS $$
DECLARE
  key bigint;
BEGIN
  FOR key IN
    SELECT shard_lock.key
    FROM unnest(shards) WITH ORDINALITY AS wanted (shardid, place)
    JOIN standin.shard_lock USING (shardid)
    ORDER BY place
  LOOP
    IF exclusively THEN
      PERFORM pg_advisory_xact_lock(key);
    ELSE
      PERFORM pg_advisory_xact_lock_shared(key);
    END IF;
  END LOOP;
END
$$;

CREATE FUNCTION pg_catalog.lock_shard_metadata(lock_mode integer, shard_id bigint[]) RETURNS void
LANGUAGE plpgsql STRICT SET search_path = pg_catalog AS $$
DECLARE
  problem record;
BEGIN
  IF lock_mode NOT IN (1, 3, 5, 7) THEN
    RAISE EXCEPTION 'unsupported lockmode %', lock_mode USING ERRCODE = 'XX000';
  END IF;
  IF cardinality(shard_id) = 0 THEN
    RAISE EXCEPTION 'no locks specified' USING ERRCODE = 'XX000';
  END IF;
  SELECT wanted, logicalrelid INTO problem
  FROM unnest(shard_id) AS wanted
  LEFT JOIN pg_dist_shard ON shardid = wanted
  LEFT JOIN pg_class AS class ON class.oid = logicalrelid
  WHERE shardid IS NULL OR NOT pg_has_role(relowner, 'USAGE')
  LIMIT 1;
  IF FOUND AND problem.logicalrelid IS NULL THEN
    RAISE EXCEPTION 'could not find valid entry for shard %', problem.wanted
      USING ERRCODE = 'XX000';
  ELSIF FOUND THEN
    RAISE EXCEPTION 'must be owner of table %', problem.logicalrelid USING ERRCODE = '42501';
  END IF;
  -- Advisory locks have two modes only: 3 and 5 become Share, and so does 1, though Citus's 1 would
  -- not wait.
  PERFORM standin.lock_shards(shard_id, lock_mode = 7);
END
$$;

-- sslmode: libpq would look for certificates in the home of whoever started the server.
CREATE FUNCTION standin.address(host text, port integer, application text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
  SELECT format(
    'host=%L port=%s dbname=%L user=%L application_name=%L connect_timeout=2 sslmode=disable'
    ' options=''-c client_min_messages=error''',
    host, port, current_database(), current_user, application
  )
$$;

-- How a session of this server reaches its own server, for work that must outlive or run beside it.
CREATE FUNCTION standin.own_address(purpose text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
  SELECT standin.address(
    '127.0.0.1', current_setting('port')::integer, 'Citus stand-in ' || purpose
  )
$$;

-- Runs in a session of its own, like Citus's "Lock Acquire Helper": once the cooldown is over, ends
-- whoever is in the way of `backend`. It looks that often whether the backend is still there
-- because nobody tells it of a backend that was killed.
CREATE PROCEDURE standin.help_to_lock(backend integer, started timestamptz, cooldown integer)
LANGUAGE plpgsql AS $$
DECLARE
  due timestamptz := clock_timestamp() + make_interval(secs => cooldown / 1000.0);
BEGIN
  LOOP
    PERFORM pg_sleep(least(0.1, greatest(0.001, extract(epoch FROM due - clock_timestamp()))));
    -- pg_stat_activity is frozen within a transaction.
    COMMIT;
    EXIT WHEN NOT EXISTS (
      SELECT FROM pg_stat_activity WHERE pid = backend AND backend_start = started
    );
    IF clock_timestamp() >= due THEN
      PERFORM pg_terminate_backend(pid)
      FROM (SELECT DISTINCT unnest(pg_blocking_pids(backend)) AS pid) AS blocking;
      due := clock_timestamp() + interval '100 ms';
    END IF;
  END LOOP;
END
$$;

CREATE FUNCTION standin.start_lock_helper(cooldown integer) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog AS $$
BEGIN
  PERFORM standin.dblink_connect('lock helper', standin.own_address('lock helper'));
  PERFORM standin.dblink_send_query('lock helper', format(
    'CALL standin.help_to_lock(%s, %L, %s)',
    pg_backend_pid(),
    (SELECT backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()),
    cooldown
  ));
END
$$;

CREATE FUNCTION standin.stop_lock_helper() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog AS $$
BEGIN
  IF 'lock helper' = ANY (standin.dblink_get_connections()) THEN
    PERFORM standin.dblink_cancel_query('lock helper');
    PERFORM standin.dblink_disconnect('lock helper');
  END IF;
END
$$;

-- Exclusive locks on all shards of a group, one after the other, then pg_dist_node if asked.
-- A helper is started only when something is in the way: before that it would have nothing to do.
CREATE FUNCTION standin.lock_for_node(
  locks bigint[], with_nodes boolean, force boolean, cooldown integer
) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog AS $$
DECLARE
  key bigint;
  helped boolean := false;
BEGIN
  FOREACH key IN ARRAY locks LOOP
    CONTINUE WHEN pg_try_advisory_xact_lock(key);
    IF force AND NOT helped THEN
      PERFORM standin.start_lock_helper(cooldown);
      helped := true;
    END IF;
    PERFORM pg_advisory_xact_lock(key);
  END LOOP;
  IF with_nodes THEN
    BEGIN
      LOCK TABLE pg_dist_node IN EXCLUSIVE MODE NOWAIT;
    EXCEPTION WHEN lock_not_available THEN
      IF force AND NOT helped THEN
        PERFORM standin.start_lock_helper(cooldown);
        helped := true;
      END IF;
      LOCK TABLE pg_dist_node IN EXCLUSIVE MODE;
    END;
  END IF;
  IF helped THEN
    PERFORM standin.stop_lock_helper();
  END IF;
EXCEPTION WHEN query_canceled OR OTHERS THEN
  PERFORM standin.stop_lock_helper();
  RAISE;
END
$$;

-- In the order of the shards' ids, as Citus takes them. Nothing for a secondary: it pauses
-- primaries only.
CREATE FUNCTION standin.locks_of_node(node integer) RETURNS bigint[]
LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
  SELECT coalesce(array_agg(key ORDER BY first_shard), '{}')
  FROM (
    SELECT shard_lock.key, min(shardid) AS first_shard
    FROM pg_dist_node AS node
    JOIN pg_dist_placement AS placement USING (groupid)
    JOIN standin.shard_lock USING (shardid)
    WHERE node.nodeid = locks_of_node.node AND node.noderole = 'primary'
    GROUP BY shard_lock.key
  ) AS locks
$$;
