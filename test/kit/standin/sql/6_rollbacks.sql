-- Citus rolls back on the workers when a client's transaction is rolled back on the entry node. SQL
-- has no hook for that, so a session of its own watches for as long as there is something to watch:
-- who has OPEN without LIVE (5_sessions.sql) has left a transaction on a worker. Its session there
-- is ended; the client opens another when it needs one.

-- On a worker. A transaction that began after the look is another one.
CREATE FUNCTION standin.end_left_session(gpid bigint, seen_at timestamptz) RETURNS void
LANGUAGE sql SET search_path = pg_catalog AS $$
  SELECT pg_terminate_backend(pid) FROM pg_stat_activity
  WHERE application_name = 'citus_internal gpid=' || gpid
    AND state LIKE 'idle in transaction%'
    AND xact_start < seen_at
$$;

-- Transactions on workers that are marked as open, and whether that of their client is gone.
CREATE FUNCTION standin.open_transactions()
RETURNS TABLE (pid integer, host text, port integer, is_left boolean)
LANGUAGE sql SET search_path = pg_catalog AS $$
  WITH marks AS MATERIALIZED (
    SELECT pid, objid::bigint AS connection, array_agg(classid::bigint) AS classes
    FROM pg_locks
    WHERE locktype = 'advisory'
      AND classid::bigint IN (x'4F50454E'::bigint, x'4C495645'::bigint)
    GROUP BY pid, objid
  )
  SELECT marks.pid, node.nodename, node.nodeport, NOT x'4C495645'::bigint = ANY (classes)
  FROM marks
  LEFT JOIN pg_dist_node AS node ON marks.connection = (
    standin.open_mark(format('%s:%s', node.nodename, node.nodeport)) & x'FFFFFFFF'::bigint
  )
$$;

-- Until nothing was open for a second. Only one at a time.
CREATE PROCEDURE standin.watch_rollbacks()
LANGUAGE plpgsql AS $$
DECLARE
  seen_at timestamptz := clock_timestamp();
  used_at timestamptz := seen_at;
  seen record;
BEGIN
  IF NOT pg_try_advisory_lock(standin.rollback_watch()) THEN
    RETURN;
  END IF;
  WHILE clock_timestamp() < used_at + interval '1 s' LOOP
    -- pg_stat_activity and pg_dist_node are seen anew.
    COMMIT;
    PERFORM pg_sleep(0.1);
    seen_at := clock_timestamp();
    FOR seen IN SELECT * FROM standin.open_transactions() LOOP
      used_at := seen_at;
      CONTINUE WHEN seen.host IS NULL OR NOT seen.is_left;
      BEGIN
        PERFORM standin.call_on(seen.host, seen.port, format(
          'SELECT standin.end_left_session(%s, %L)', standin.gpid_of(seen.pid), seen_at
        ));
      EXCEPTION WHEN OTHERS THEN
        -- Nothing is locked on a server that is down.
        NULL;
      END;
    END LOOP;
  END LOOP;
END
$$;

CREATE FUNCTION standin.rollback_watch() RETURNS bigint
LANGUAGE sql IMMUTABLE AS $$ SELECT x'57415443'::bigint << 32 $$;

-- Starts the watcher if none is there.
CREATE FUNCTION standin.have_rollbacks_watched() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog AS $$
BEGIN
  IF NOT pg_try_advisory_lock_shared(standin.rollback_watch()) THEN
    RETURN;
  END IF;
  PERFORM pg_advisory_unlock_shared(standin.rollback_watch());
  PERFORM standin.dblink_connect('rollbacks', standin.own_address('rollback watch'));
  PERFORM standin.dblink_send_query('rollbacks', 'CALL standin.watch_rollbacks()');
  PERFORM standin.dblink_disconnect('rollbacks');
EXCEPTION WHEN sqlclient_unable_to_establish_sqlconnection THEN
  -- Without it, a rollback reaches the worker with the session's next statement.
  NULL;
END
$$;
