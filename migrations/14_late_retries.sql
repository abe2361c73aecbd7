-- An after_promote whose retry is due after a newer one is done does not run any more. The rest of the
-- function is as it was.
SELECT set_config('search_path', current_setting('mpp.objects_path'), true);

DO $migration$
DECLARE
    mpp constant text := pg_catalog.quote_ident(pg_catalog.current_schema()::text) OPERATOR(pg_catalog.||) '.'::text;
BEGIN
    PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    EXECUTE replace($sql$

-- Ends the pending tasks of a group that a newer one supersedes (mpp_supersedes), and says how many.
--
-- A task is also superseded by a newer one that is done: an identity value is drawn at the INSERT, so a
-- transaction that stayed open commits an older task after a newer one has run; and an after_promote that
-- goes back to the queue while a newer one is committed may be due after that one has run. A before_ task
-- or a suspect that has run is not: the tasks of a lost hold go back to the queue together.
--
-- Locks: the rows that it ends. One that another session has locked is passed over; the controller asks
-- again before it claims. Rows read: what is open of the group, and what is done since its oldest.
CREATE OR REPLACE FUNCTION @mpp.mpp_supersede(of_group integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    ended integer;
BEGIN
    WITH pending AS MATERIALIZED (
        SELECT t.id, t.event = 'after_promote' AS is_fact, t.source = 'client' AS is_client, t.event, t.attempt
        FROM @mpp.mpp_tasks AS t
        WHERE t.finished_at IS NULL AND t.groupid = of_group AND t.status = 'pending'
    ), newest AS MATERIALIZED (
        SELECT max(p.id) FILTER (WHERE p.attempt = 0) AS any_report,
               max(p.id) FILTER (WHERE p.attempt = 0 AND p.is_fact) AS any_fact,
               max(p.id) FILTER (WHERE p.attempt = 0 AND p.is_client AND p.event <> 'suspect') AS report,
               max(p.id) FILTER (WHERE p.attempt = 0 AND p.is_client AND p.is_fact) AS fact,
               -- One that was tried so often names a node that is no primary yet, and keeps no other from it.
               max(p.id) FILTER (WHERE p.is_client AND p.is_fact AND p.attempt < 5) AS open_fact,
               min(p.id) FILTER (WHERE p.attempt = 0 OR p.is_fact) AS oldest
        FROM pending AS p
    ), done AS MATERIALIZED (
        SELECT (SELECT max(d.id) FROM @mpp.mpp_tasks AS d
                WHERE d.groupid = of_group AND d.id > n.oldest
                  AND d.status = 'done' AND d.source = 'client' AND d.event <> 'suspect') AS report,
               (SELECT max(d.id) FROM @mpp.mpp_tasks AS d
                WHERE d.groupid = of_group AND d.id > n.oldest
                  AND d.status = 'done' AND d.source = 'client' AND d.event = 'after_promote') AS fact
        FROM newest AS n
    ), judged AS (
        SELECT p.id,
               CASE WHEN p.is_client AND p.is_fact THEN n.fact
                    WHEN p.is_client THEN n.report
                    WHEN p.is_fact THEN n.any_fact
                    ELSE n.any_report
               END AS newer,
               CASE WHEN p.is_fact THEN d.fact
                    WHEN p.attempt = 0 THEN d.report
               END AS done,
               -- A fact that was seen before one of a client runs would undo that one.
               CASE WHEN p.is_fact AND NOT p.is_client THEN n.open_fact END AS gives_way_to
        FROM pending AS p
        CROSS JOIN newest AS n
        CROSS JOIN done AS d
    ), superseded AS MATERIALIZED (
        SELECT j.id,
               CASE WHEN greatest(j.newer, j.done) > j.id THEN greatest(j.newer, j.done)
                    ELSE j.gives_way_to
               END AS by_task
        FROM judged AS j
        WHERE greatest(j.newer, j.done) > j.id OR j.gives_way_to IS NOT NULL
    ), locked AS MATERIALIZED (
        SELECT t.id, s.by_task
        FROM @mpp.mpp_tasks AS t
        JOIN superseded AS s ON s.id = t.id
        WHERE t.status = 'pending'
        FOR UPDATE OF t SKIP LOCKED
    )
    UPDATE @mpp.mpp_tasks AS t
    SET status = 'superseded',
        reason = format('superseded by task %s, %s of %s:%s'::text, n.id, n.event, n.nodename, n.nodeport)
    FROM locked AS l
    JOIN @mpp.mpp_tasks AS n ON n.id = l.by_task
    WHERE t.id = l.id;
    GET DIAGNOSTICS ended = ROW_COUNT;
    RETURN ended;
END
$$;
$sql$, '@mpp.', mpp);
END
$migration$;

SELECT set_config('search_path', current_setting('mpp.bookkeeping_path'), true);
