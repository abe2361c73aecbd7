import {
  CONTROLLER_STATES,
  HOLD_OUTCOMES,
  LEADERSHIP_CHANGES,
  PAUSE_SHORTFALLS,
  PROBE_RESULTS,
  SWITCHOVER_KINDS,
  SWITCHOVER_STEPS,
  TERMINATION_KINDS,
  VERIFICATION_CAUSES,
} from '../tasks/observer.js';
import { TASK_EVENTS, TASK_ENDS, TASK_SOURCES, PAUSES } from '../tasks/task.js';

/** The values of a label; undefined where they are learned from the database or the process. */
type Values = readonly string[] | undefined;

export interface MetricDefinition {
  readonly type: 'counter' | 'gauge' | 'histogram';
  /** One sentence; also the HELP text. */
  readonly help: string;
  readonly unit: 'seconds' | 'unix time' | 'count' | '0 or 1' | 'info';
  readonly labels: Readonly<Record<string, Values>>;
  /** Upper bounds of a histogram's buckets. */
  readonly buckets?: readonly number[];
  /**
   * `controller`: each controller gives its own. `cluster`: the active one alone, and only while the
   * database answers. `once`: known only once it has happened.
   */
  readonly from: 'process' | 'controller' | 'once' | 'cluster';
}

const SHORT = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10];
const LONG = [0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300];

const GROUP = { groupid: undefined };
export const MEMBER_ROLES = ['primary', 'secondary'] as const;
/** As the views judge: a report older than MPP_MEMBER_TTL is stale, whatever it said. */
export const MEMBER_STATES = ['up', 'down', 'stale'] as const;
/** What a session of a controller with the coordinator is for. */
export const PURPOSES = [
  'control',
  'listen',
  'queue',
  'group',
  'shared locks',
  'pause',
  'watch',
  'check',
  'coordinator check',
  'probe',
  'other database',
  'metrics',
  'other',
] as const;

/** Every metric, by name: the registry and docs/metrics.md are made of it. */
export const METRICS = {
  mpp_build_info: {
    type: 'gauge',
    help: 'The version of mpp-controller and of Node.js that run; always 1.',
    unit: 'info',
    labels: { version: undefined, node: undefined },
    from: 'process',
  },
  mpp_controller_active: {
    type: 'gauge',
    help: 'Whether this controller leads.',
    unit: '0 or 1',
    labels: {},
    from: 'controller',
  },
  mpp_controller_state: {
    type: 'gauge',
    help: 'What this controller is: 1 for one of the states, 0 for the others.',
    unit: '0 or 1',
    labels: { state: CONTROLLER_STATES },
    from: 'controller',
  },
  mpp_controller_last_heartbeat_timestamp_seconds: {
    type: 'gauge',
    help: 'When this controller last wrote its mark in mpp_controllers; missing until it has.',
    unit: 'unix time',
    labels: {},
    from: 'once',
  },
  mpp_database_up: {
    type: 'gauge',
    help: 'Whether this controller has a session with the database and, if it leads, could read the state of the cluster for this scrape.',
    unit: '0 or 1',
    labels: {},
    from: 'controller',
  },
  mpp_leadership_changes_total: {
    type: 'counter',
    help: 'How often this controller became the active one, and how often that ended.',
    unit: 'count',
    labels: { reason: LEADERSHIP_CHANGES },
    from: 'controller',
  },
  mpp_listen_reconnects_total: {
    type: 'counter',
    help: 'How often the session that listens was opened again after it was lost.',
    unit: 'count',
    labels: {},
    from: 'controller',
  },
  mpp_tasks_total: {
    type: 'counter',
    help: 'Tasks that ended while this controller was active, those ended by clients and operators as well.',
    unit: 'count',
    labels: { event: TASK_EVENTS, status: TASK_ENDS, source: TASK_SOURCES },
    from: 'controller',
  },
  mpp_task_retries_total: {
    type: 'counter',
    help: 'How often this controller gave a task back to the queue, to be tried again.',
    unit: 'count',
    labels: { event: TASK_EVENTS },
    from: 'controller',
  },
  mpp_hold_open_duration_seconds: {
    type: 'histogram',
    help: 'How long it took until the traffic of a group waited.',
    unit: 'seconds',
    labels: { pause: PAUSES },
    buckets: SHORT,
    from: 'controller',
  },
  mpp_hold_duration_seconds: {
    type: 'histogram',
    help: 'How long a hold was there, from the first lock to its end.',
    unit: 'seconds',
    labels: { kind: SWITCHOVER_KINDS, outcome: HOLD_OUTCOMES },
    buckets: LONG,
    from: 'controller',
  },
  mpp_pause_degraded_total: {
    type: 'counter',
    help: 'Holds in which less waited than was asked for.',
    unit: 'count',
    labels: { reason: PAUSE_SHORTFALLS },
    from: 'controller',
  },
  mpp_sessions_terminated_total: {
    type: 'counter',
    help: 'Sessions that this controller terminated because they blocked a hold, or the change of pg_dist_node.',
    unit: 'count',
    labels: { kind: TERMINATION_KINDS },
    from: 'controller',
  },
  mpp_switchovers_total: {
    type: 'counter',
    help: 'Changes of the primary of a group that this controller committed.',
    unit: 'count',
    labels: { ...GROUP, kind: SWITCHOVER_KINDS },
    from: 'controller',
  },
  mpp_switchover_duration_seconds: {
    type: 'histogram',
    help: 'How long the parts of a switchover took.',
    unit: 'seconds',
    labels: { kind: SWITCHOVER_KINDS, step: SWITCHOVER_STEPS },
    buckets: LONG,
    from: 'controller',
  },
  mpp_probe_duration_seconds: {
    type: 'histogram',
    help: 'How long the probe took to ask a node what it is, by what came of it.',
    unit: 'seconds',
    labels: { result: PROBE_RESULTS },
    buckets: SHORT,
    from: 'controller',
  },
  mpp_verify_failures_total: {
    type: 'counter',
    help: 'How often the node of a report was asked and was not what the report said.',
    unit: 'count',
    labels: { reason: VERIFICATION_CAUSES },
    from: 'controller',
  },
  mpp_tasks_pending: {
    type: 'gauge',
    help: 'Pending tasks.',
    unit: 'count',
    labels: { event: TASK_EVENTS },
    from: 'cluster',
  },
  mpp_oldest_pending_task_age_seconds: {
    type: 'gauge',
    help: 'How long ago the oldest pending task was reported; 0 where none is pending.',
    unit: 'seconds',
    labels: {},
    from: 'cluster',
  },
  mpp_group_held: {
    type: 'gauge',
    help: 'Whether the traffic of the group waits.',
    unit: '0 or 1',
    labels: GROUP,
    from: 'cluster',
  },
  mpp_hold_deadline_timestamp_seconds: {
    type: 'gauge',
    help: 'When the hold of the group ends by itself; missing while it is not held.',
    unit: 'unix time',
    labels: GROUP,
    from: 'cluster',
  },
  mpp_hold_waiting_sessions: {
    type: 'gauge',
    help: 'Sessions of the coordinator that wait for the hold of the group.',
    unit: 'count',
    labels: GROUP,
    from: 'cluster',
  },
  mpp_hold_max_wait_seconds: {
    type: 'gauge',
    help: 'How long the session that has waited longest for the hold of the group has waited.',
    unit: 'seconds',
    labels: GROUP,
    from: 'cluster',
  },
  mpp_last_switchover_timestamp_seconds: {
    type: 'gauge',
    help: 'When the primary of the group was last changed; missing where no task of that is kept.',
    unit: 'unix time',
    labels: GROUP,
    from: 'cluster',
  },
  mpp_group_out_of_sync: {
    type: 'gauge',
    help: 'Whether a member says that it is the primary of the group, and pg_dist_node has another one.',
    unit: '0 or 1',
    labels: GROUP,
    from: 'cluster',
  },
  mpp_group_members: {
    type: 'gauge',
    help: 'Nodes of the group as they are reported; each counts once, by the newest report of it.',
    unit: 'count',
    labels: { ...GROUP, role: MEMBER_ROLES, state: MEMBER_STATES },
    from: 'cluster',
  },
  mpp_group_metadata_synced: {
    type: 'gauge',
    help: 'Whether each node of the group that has metadata has it as the coordinator does.',
    unit: '0 or 1',
    labels: GROUP,
    from: 'cluster',
  },
  mpp_topology_source_up: {
    type: 'gauge',
    help: 'Whether the source has reported a node within MPP_MEMBER_TTL; for each source of MPP_TOPOLOGY but table.',
    unit: '0 or 1',
    labels: { source: undefined },
    from: 'cluster',
  },
  mpp_topology_last_success_timestamp_seconds: {
    type: 'gauge',
    help: 'When the source last reported a node; missing until it has.',
    unit: 'unix time',
    labels: { source: undefined },
    from: 'cluster',
  },
  mpp_maintenance: {
    type: 'gauge',
    help: 'Whether a group, or all, are in maintenance: no tasks are made by the comparison and the probe.',
    unit: '0 or 1',
    labels: {},
    from: 'cluster',
  },
  mpp_database_connections: {
    type: 'gauge',
    help: 'Sessions of controllers in this database of the coordinator.',
    unit: 'count',
    labels: { purpose: PURPOSES },
    from: 'cluster',
  },
} as const satisfies Record<`mpp_${string}`, MetricDefinition>;

export type MetricName = keyof typeof METRICS;
