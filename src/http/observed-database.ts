import type { Settings } from '../config/settings.js';
import { ControllerHealth } from '../controller/health.js';
import type { Overview } from '../controller/overview.js';
import type { Status } from '../controller/status.js';
import type { Logger } from '../logger.js';
import { createMPP } from '../mpp/index.js';
import {
  CONTROLLER_STATES,
  type ControllerState,
  type LeadershipChange,
  type ObservedServer,
  type Observer,
  SWITCHOVER_KINDS,
} from '../tasks/observer.js';
import { TASK_EVENTS } from '../tasks/task.js';
import type { ClusterState } from './cluster-state.js';
import { combinations, type DatabaseMetrics, type Metrics } from './metrics.js';
import { METRICS, PURPOSES } from './metric-table.js';
import { ServerReader } from './server-reader.js';

interface DatabaseOptions {
  readonly settings: Settings;
  /** Its name where there are several; undefined without MPP_DATABASES. */
  readonly database: string | undefined;
  readonly metrics: Metrics;
  readonly logger: Logger;
}

/** What this process knows of its controller in one database: its metrics, its health, and a reader of the rest. */
export class ObservedDatabase {
  readonly database: string | undefined;
  readonly #options: DatabaseOptions;
  readonly #metrics: DatabaseMetrics;
  readonly #groups = new Set<number>();
  readonly #health: ControllerHealth;
  #server: ObservedServer | undefined;
  #reader: ServerReader | undefined;
  /** The reading that was counted last. */
  #counted: ClusterState | undefined;

  constructor(options: DatabaseOptions) {
    this.#options = options;
    this.database = options.database;
    this.#health = new ControllerHealth(options.settings.pollMs);
    this.#metrics = options.metrics.of(options.database);
    this.#showState();
  }

  get state(): ControllerState {
    return this.#health.state;
  }

  get isActive(): boolean {
    return this.#health.isActive;
  }

  get isReady(): boolean {
    return this.#health.isReady;
  }

  get isStuck(): boolean {
    return this.#health.isStuck;
  }

  /** @returns undefined where there is nothing to show: this controller does not lead, or the database is silent. */
  async clusterState(): Promise<ClusterState | undefined> {
    const reader = this.#reader;
    if (!this.isReady || reader === undefined) return undefined;
    if (!this.isActive) return undefined;
    return reader.state().catch(() => undefined);
  }

  /** Shows what was read, after Metrics.forgetCluster. */
  show(state: ClusterState | undefined): void {
    this.#metrics.set('mpp_database_up', {}, this.isReady && (!this.isActive || state) ? 1 : 0);
    if (state === undefined) return;
    if (state !== this.#counted) {
      this.#counted = state;
      for (const { count, ...labels } of state.ended) {
        this.#metrics.add('mpp_tasks_total', { ...labels }, count);
      }
    }
    this.#showQueue(state);
    this.#showGroups(state);
    this.#showMembers(state);
  }

  /** @throws when there is no session, or the database does not answer in time. */
  async status(): Promise<Status> {
    if (this.#reader === undefined) throw new Error(`this controller is ${this.state}`);
    return this.#reader.status();
  }

  /** @throws when there is no session, or the database does not answer in time. */
  async overview(): Promise<Overview> {
    if (this.#reader === undefined) throw new Error(`this controller is ${this.state}`);
    return this.#reader.overview();
  }

  async stop(): Promise<void> {
    await this.#dropReader();
  }

  get observer(): Observer {
    const metrics = this.#metrics;
    return {
      connected: (server) => this.#connected(server),
      stateIs: (state) => this.#enter(state),
      leadershipChanged: (change) => this.#leadershipChanged(change),
      turned: () => this.#health.turned(),
      heartbeatWritten: () =>
        metrics.set('mpp_controller_last_heartbeat_timestamp_seconds', {}, Date.now() / 1_000),
      taskRetried: (event) => metrics.add('mpp_task_retries_total', { event }),
      holdOpened: ({ pause, openMs }) =>
        metrics.observe('mpp_hold_open_duration_seconds', { pause }, openMs / 1_000),
      pauseDegraded: (reason) => metrics.add('mpp_pause_degraded_total', { reason }),
      holdEnded: ({ kind, outcome, heldMs }) =>
        metrics.observe('mpp_hold_duration_seconds', { kind, outcome }, heldMs / 1_000),
      switchedOver: ({ groupid, kind, stepsMs }) => {
        this.#knowGroup(groupid);
        metrics.add('mpp_switchovers_total', { groupid, kind });
        for (const [step, ms] of Object.entries(stepsMs)) {
          metrics.observe('mpp_switchover_duration_seconds', { kind, step }, ms / 1_000);
        }
      },
      sessionTerminated: (kind) => metrics.add('mpp_sessions_terminated_total', { kind }),
      listenerReconnected: () => metrics.add('mpp_listen_reconnects_total', {}),
      probed: (result, ms) => metrics.observe('mpp_probe_duration_seconds', { result }, ms / 1_000),
      verificationFailed: (reason) => metrics.add('mpp_verify_failures_total', { reason }),
    };
  }

  #connected(server: ObservedServer): void {
    this.#server = server;
    void this.#dropReader();
    const { settings, logger } = this.#options;
    this.#reader = new ServerReader({
      ...{ server, logger, schema: settings.schema },
      nodesQuery: createMPP(settings).nodesQuery,
      ttlMs: settings.memberTtlMs,
      sources: settings.topology,
    });
  }

  #enter(state: ControllerState): void {
    this.#health.enter(state);
    if (state === 'connecting') void this.#dropReader();
    this.#showState();
  }

  #leadershipChanged(change: LeadershipChange): void {
    if (change === 'gained') this.#reader?.beginCounting();
    this.#metrics.add('mpp_leadership_changes_total', { reason: change });
  }

  async #dropReader(): Promise<void> {
    const reader = this.#reader;
    this.#reader = undefined;
    await reader?.stop();
  }

  #showState(): void {
    for (const state of CONTROLLER_STATES) {
      this.#metrics.set('mpp_controller_state', { state }, state === this.state ? 1 : 0);
    }
    this.#metrics.set('mpp_controller_active', {}, this.isActive ? 1 : 0);
  }

  /** The counters of a group begin with 0 when it is first seen. */
  #knowGroup(groupid: number): void {
    if (this.#groups.has(groupid)) return;
    this.#groups.add(groupid);
    for (const kind of SWITCHOVER_KINDS) {
      this.#metrics.add('mpp_switchovers_total', { groupid, kind }, 0);
    }
  }

  #showQueue(state: ClusterState): void {
    const { pending, oldestPending, connections, isInMaintenance } = state;
    this.#metrics.set('mpp_maintenance', {}, isInMaintenance ? 1 : 0);
    for (const event of TASK_EVENTS) {
      this.#metrics.set('mpp_tasks_pending', { event }, pending[event] ?? 0);
    }
    this.#metrics.set('mpp_oldest_pending_task_age_seconds', {}, Math.max(0, oldestPending ?? 0));
    const counts = new Map<string, number>(PURPOSES.map((purpose) => [purpose, 0]));
    for (const { application, count } of connections) {
      const purpose = purposeOf(application);
      counts.set(purpose, (counts.get(purpose) ?? 0) + count);
    }
    for (const [purpose, count] of counts) {
      this.#metrics.set('mpp_database_connections', { purpose }, count);
    }
  }

  #showGroups({ groups, holds }: ClusterState): void {
    const held = new Map(holds.map((hold) => [hold.groupid, hold]));
    for (const { groupid, isSynced, isOutOfSync, switchedAt } of groups) {
      const hold = held.get(groupid);
      this.#knowGroup(groupid);
      const show: DatabaseMetrics['set'] = (...one) => this.#metrics.set(...one);
      show('mpp_group_held', { groupid }, hold ? 1 : 0);
      show('mpp_hold_waiting_sessions', { groupid }, hold?.waiting ?? 0);
      show('mpp_hold_max_wait_seconds', { groupid }, hold?.longest ?? 0);
      if (hold) show('mpp_hold_deadline_timestamp_seconds', { groupid }, hold.deadline);
      show('mpp_group_metadata_synced', { groupid }, isSynced ? 1 : 0);
      show('mpp_group_out_of_sync', { groupid }, isOutOfSync ? 1 : 0);
      if (switchedAt !== null) {
        show('mpp_last_switchover_timestamp_seconds', { groupid }, switchedAt);
      }
    }
  }

  #showMembers({ groups, members, sources }: ClusterState): void {
    const known = new Set(groups.map(({ groupid }) => groupid));
    const { role, state } = METRICS.mpp_group_members.labels;
    for (const groupid of known) {
      for (const labels of combinations({ role, state })) {
        this.#metrics.set('mpp_group_members', { groupid, ...labels }, 0);
      }
    }
    // Any client may report members of groups that are none.
    for (const { count, ...labels } of members.filter(({ groupid }) => known.has(groupid))) {
      this.#metrics.set('mpp_group_members', { ...labels }, count);
    }
    for (const source of this.#options.settings.topology.filter((name) => name !== 'table')) {
      const seen = sources.find((one) => one.source === source);
      this.#metrics.set('mpp_topology_source_up', { source }, seen?.isFresh ? 1 : 0);
      if (seen === undefined) continue;
      const name = 'mpp_topology_last_success_timestamp_seconds';
      this.#metrics.set(name, { source }, seen.reportedAt);
    }
  }
}

/** Any role may give a session such a name: what is not known is `other`. */
export function purposeOf(application: string): string {
  const name = application
    .replace(/^mpp-controller /, '')
    .replace(/^(pause of )?group \d+$/, (_, pause) => (pause ? 'pause' : 'group'));
  return PURPOSES.find((purpose) => purpose === name) ?? 'other';
}
