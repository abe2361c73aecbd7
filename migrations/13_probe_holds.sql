-- A hold that the probe alone has opened is ended by the after_promote that the comparison makes, so that
-- one is not frozen in mpp_queue. The rest of the view is as it was.
SELECT set_config('search_path', current_setting('mpp.objects_path'), true);

DO $migration$
DECLARE
    mpp constant text := pg_catalog.quote_ident(pg_catalog.current_schema()::text) OPERATOR(pg_catalog.||) '.'::text;
BEGIN
    PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    EXECUTE replace($sql$

CREATE OR REPLACE VIEW @mpp.mpp_queue AS
WITH running AS MATERIALIZED (
    SELECT r.groupid,
           max(r.id) FILTER (WHERE r.status = 'holding') AS newest_holding,
           bool_or(r.status = 'holding' AND r.source <> 'probe') AS held_for_others,
           min(r.id) FILTER (WHERE r.status = 'claimed') AS claimed_task
    FROM @mpp.mpp_tasks AS r
    WHERE r.status IN ('claimed', 'holding')
    GROUP BY r.groupid
), judged AS (
    SELECT t.id, t.groupid, t.event, t.nodename, t.nodeport, t.status, t.source, t.attempt, t.not_before,
           t.created_at, t.deadline, t.claimed_at, t.reason, r.newest_holding, r.claimed_task,
           t.event <> 'after_promote'
               AND coalesce(t.deadline, t.expires_at) <= statement_timestamp() AS late,
           r.newest_holding IS NOT NULL
               AND (r.newest_holding > t.id
                    OR (t.event = 'after_promote' AND t.source <> 'client' AND r.held_for_others)) AS frozen
    FROM @mpp.mpp_tasks AS t
    LEFT JOIN running AS r ON r.groupid = t.groupid
    WHERE t.finished_at IS NULL
), ready AS (
    SELECT j.*,
           j.status = 'pending'
               AND NOT j.late
               AND NOT j.frozen
               AND (j.not_before IS NULL OR j.not_before <= statement_timestamp()) AS due
    FROM judged AS j
), ranked AS (
    SELECT r.*,
           min(r.id) FILTER (WHERE r.due) OVER (PARTITION BY r.groupid) AS first_due
    FROM ready AS r
)
SELECT row_number() OVER (
           ORDER BY status <> 'pending' DESC, due DESC, newest_holding IS NOT NULL DESC, groupid = 0 DESC, id
       ) AS position,
       id, groupid, event, nodename, nodeport, status, source, attempt, not_before,
       statement_timestamp() - created_at AS age,
       CASE
           WHEN status = 'holding' THEN format('the traffic of group %s waits, until %s at most'::text, groupid, to_char(deadline, 'HH24:MI:SS'))
           WHEN status = 'claimed' THEN format('running since %s'::text, to_char(claimed_at, 'HH24:MI:SS'))
           WHEN late THEN 'too late: it will be ended'
           WHEN frozen THEN format('waits for the hold of its group, task %s, to end'::text, newest_holding)
           WHEN claimed_task IS NOT NULL THEN format('waits for task %s of its group'::text, claimed_task)
           WHEN first_due < id THEN format('waits for task %s of its group'::text, first_due)
           WHEN not_before > statement_timestamp() THEN format('attempt %s is due at %s'::text, attempt + 1, to_char(not_before, 'HH24:MI:SS'))
           WHEN newest_holding IS NOT NULL THEN 'its group is held'
           WHEN (SELECT count(*) FROM running AS h WHERE h.newest_holding IS NOT NULL) >= (
               SELECT c.max_holds
               FROM @mpp.mpp_controllers AS c
               WHERE c.backend_pid = (SELECT @mpp.mpp_leader_pid())
               ORDER BY c.heartbeat_at DESC
               LIMIT 1
           ) THEN 'waits for the hold of another group to end'
           WHEN groupid = 0 THEN 'group 0 comes before the others'
           ELSE 'by age'
       END AS why,
       reason
FROM ranked;
COMMENT ON VIEW @mpp.mpp_queue IS
    'Pending and running tasks in the order in which they will be taken, why they stand where they do, and the reason of the last attempt or what they wait for.';

    $sql$, '@mpp.', mpp);
END
$migration$;

SELECT set_config('search_path', current_setting('mpp.bookkeeping_path'), true);
