/** A trigger that the migrations make. */
export interface WantedTrigger {
  readonly table: string;
  readonly name: string;
  /** Makes it again; the schema is written as `@mpp.`. */
  readonly definition: string;
}

/** In the order of table and name; a test compares them with what the migrations make. */
export const TRIGGERS: readonly WantedTrigger[] = [
  {
    table: 'mpp_members',
    name: 'mpp_members_1_check',
    definition:
      'CREATE TRIGGER mpp_members_1_check BEFORE INSERT OR UPDATE ON @mpp.mpp_members FOR EACH ROW EXECUTE FUNCTION @mpp.mpp_members_before_write()',
  },
  {
    table: 'mpp_members',
    name: 'mpp_members_2_notify',
    definition:
      "CREATE TRIGGER mpp_members_2_notify AFTER INSERT OR UPDATE ON @mpp.mpp_members FOR EACH ROW WHEN (((new.source = 'table'::text) AND (new.since = new.reported_at))) EXECUTE FUNCTION @mpp.mpp_tasks_notify()",
  },
  {
    table: 'mpp_task_log',
    name: 'mpp_task_log_append_only',
    definition:
      'CREATE TRIGGER mpp_task_log_append_only BEFORE UPDATE OR TRUNCATE ON @mpp.mpp_task_log FOR EACH STATEMENT EXECUTE FUNCTION @mpp.mpp_task_log_append_only()',
  },
  {
    table: 'mpp_tasks',
    name: 'mpp_tasks_0_access',
    definition:
      'CREATE TRIGGER mpp_tasks_0_access BEFORE INSERT ON @mpp.mpp_tasks FOR EACH ROW EXECUTE FUNCTION @mpp.mpp_tasks_access()',
  },
  {
    table: 'mpp_tasks',
    name: 'mpp_tasks_1_check',
    definition:
      'CREATE TRIGGER mpp_tasks_1_check BEFORE INSERT ON @mpp.mpp_tasks FOR EACH ROW EXECUTE FUNCTION @mpp.mpp_tasks_before_insert()',
  },
  {
    table: 'mpp_tasks',
    name: 'mpp_tasks_1_final',
    definition:
      'CREATE TRIGGER mpp_tasks_1_final BEFORE UPDATE ON @mpp.mpp_tasks FOR EACH ROW EXECUTE FUNCTION @mpp.mpp_tasks_before_update()',
  },
  {
    table: 'mpp_tasks',
    name: 'mpp_tasks_2_log_insert',
    definition:
      'CREATE TRIGGER mpp_tasks_2_log_insert AFTER INSERT ON @mpp.mpp_tasks FOR EACH ROW EXECUTE FUNCTION @mpp.mpp_tasks_log()',
  },
  {
    table: 'mpp_tasks',
    name: 'mpp_tasks_2_log_update',
    definition:
      'CREATE TRIGGER mpp_tasks_2_log_update AFTER UPDATE ON @mpp.mpp_tasks FOR EACH ROW WHEN (((old.status IS DISTINCT FROM new.status) OR (old.attempt <> new.attempt))) EXECUTE FUNCTION @mpp.mpp_tasks_log()',
  },
  {
    table: 'mpp_tasks',
    name: 'mpp_tasks_2_note',
    definition:
      'CREATE TRIGGER mpp_tasks_2_note BEFORE INSERT ON @mpp.mpp_tasks FOR EACH ROW WHEN ((new.reason IS NOT NULL)) EXECUTE FUNCTION @mpp.mpp_tasks_note()',
  },
  {
    table: 'mpp_tasks',
    name: 'mpp_tasks_2_outbox_end',
    definition:
      "CREATE TRIGGER mpp_tasks_2_outbox_end AFTER UPDATE OF status ON @mpp.mpp_tasks FOR EACH ROW WHEN (((new.source = 'client'::text) AND (new.origin_id IS NULL) AND (old.finished_at IS NULL) AND (new.status = ANY (ARRAY['cancelled'::text, 'rolled_back'::text, 'failed'::text, 'expired'::text, 'discarded'::text])))) EXECUTE FUNCTION @mpp.mpp_tasks_outbox()",
  },
  {
    table: 'mpp_tasks',
    name: 'mpp_tasks_2_outbox_report',
    definition:
      "CREATE TRIGGER mpp_tasks_2_outbox_report AFTER INSERT ON @mpp.mpp_tasks FOR EACH ROW WHEN (((new.source = 'client'::text) AND (new.origin_id IS NULL))) EXECUTE FUNCTION @mpp.mpp_tasks_outbox()",
  },
  {
    table: 'mpp_tasks',
    name: 'mpp_tasks_3_supersede',
    definition:
      'CREATE CONSTRAINT TRIGGER mpp_tasks_3_supersede AFTER INSERT ON @mpp.mpp_tasks DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION @mpp.mpp_tasks_at_commit()',
  },
  {
    table: 'mpp_tasks',
    name: 'mpp_tasks_4_notify',
    definition:
      'CREATE TRIGGER mpp_tasks_4_notify AFTER INSERT ON @mpp.mpp_tasks FOR EACH STATEMENT EXECUTE FUNCTION @mpp.mpp_tasks_notify()',
  },
  {
    table: 'mpp_tasks',
    name: 'mpp_tasks_9_expiry',
    definition:
      'CREATE TRIGGER mpp_tasks_9_expiry BEFORE INSERT ON @mpp.mpp_tasks FOR EACH ROW EXECUTE FUNCTION @mpp.mpp_tasks_expiry()',
  },
];
