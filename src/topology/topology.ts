import type { Settings } from '../config/settings.js';
import { formatDuration } from '../config/formats.js';
import { ConfigError } from '../errors.js';
import type { AbstractMPP } from '../mpp/abstract.js';
import { componentLogger, type Logger } from '../logger.js';
import type { Queryable } from '../postgres/queries.js';
import { errorText } from '../postgres/session.js';
import type { Observer } from '../tasks/observer.js';
import { Loop } from '../wait.js';
import { compareMembers, type Problem } from './compare.js';
import {
  announceSettings,
  pruneMembers,
  type SourceContext,
  type TopologySource,
} from './members.js';
import { Patroni, readAuthority } from './patroni.js';
import { Probe } from './probe.js';
import { OtherDatabaseMembers } from './other-database-members.js';

/** The settings that it reads. */
type TopologySettings = Pick<
  Settings,
  | 'heartbeatMs'
  | 'coordinatorHost'
  | 'coordinatorPort'
  | 'retentionMs'
  | 'topology'
  | 'memberTtlMs'
  | 'verify'
  | 'node'
  | 'probeIntervalMs'
  | 'probeTimeoutMs'
  | 'probeSuspect'
  | 'suspectTimeoutMs'
  | 'patroni'
  | 'patroniIntervalMs'
  | 'patroniCa'
  | 'patroniAuth'
>;

interface TopologyOptions {
  readonly db: Queryable;
  readonly mpp: Pick<AbstractMPP, 'nodesQuery'>;
  /** Id of this controller. */
  readonly controller: string;
  readonly settings: TopologySettings;
  /** Other databases on the same nodes; hooks may report there. */
  readonly otherDatabases: readonly { readonly database: string; readonly db: Queryable }[];
  readonly logger: Logger;
  readonly observer: Observer;
  /** Ends it like `stop`. */
  readonly signal: AbortSignal;
}

const PRUNE_EVERY_MS = 3_600_000;
/** A task that is reported at the same time comes first. */
const WAKE_AFTER_MS = 100;
/** A report of a hook must still count when it is compared, though the heartbeat before was just over. */
const LEAST_HEARTBEATS = 2;

/**
 * Keeps the catalog as the cluster is, when no report comes: fills mpp_members from its sources, and
 * compares it with the catalog at each heartbeat and whenever a source has seen a change. Runs beside
 * the active controller only; a standby has nothing to write to.
 */
export class Topology {
  readonly #options: TopologyOptions;
  readonly #logger: Logger;
  readonly #sources: readonly TopologySource[];
  readonly #heartbeat: Loop;
  #problems = new Map<number, string>();
  #failure: string | undefined;
  #prunedAt: number | undefined;
  #wakeUp: NodeJS.Timeout | undefined;

  /** @throws ConfigError when a source lacks what it needs. */
  constructor(options: TopologyOptions) {
    const { settings, signal } = options;
    this.#options = options;
    this.#logger = componentLogger(options.logger, 'topology');
    this.#heartbeat = new Loop({
      intervalMs: settings.heartbeatMs,
      signal,
      work: () => this.#beat(),
    });
    const context: SourceContext = {
      db: options.db,
      nodesQuery: options.mpp.nodesQuery,
      ttlMs: settings.memberTtlMs,
      signal,
      logger: this.#logger,
      onChange: () => this.#heartbeat.wake(),
    };
    const otherDatabases = options.otherDatabases.map(
      ({ database, db }) =>
        new OtherDatabaseMembers({
          ...context,
          database,
          otherDb: db,
          intervalMs: settings.heartbeatMs,
        }),
    );
    this.#sources = [...otherDatabases, ...createSources(settings, context, options.observer)];
  }

  start(): void {
    for (const source of this.#sources) source.start();
    this.#heartbeat.start();
  }

  /** Something may have been reported: compares soon, once for all that comes until then. */
  wake(): void {
    this.#wakeUp ??= setTimeout(() => {
      this.#wakeUp = undefined;
      this.#heartbeat.wake();
    }, WAKE_AFTER_MS);
  }

  async stop(): Promise<void> {
    clearTimeout(this.#wakeUp);
    await Promise.all([this.#heartbeat.stop(), ...this.#sources.map((source) => source.stop())]);
  }

  async #beat(): Promise<void> {
    const { db, mpp, settings } = this.#options;
    try {
      const { coordinatorHost, coordinatorPort } = settings;
      if (coordinatorHost !== undefined) {
        await reportOurselves(db, mpp.nodesQuery, coordinatorHost, coordinatorPort);
      }
      const { tasks, problems } = await compareMembers(db, {
        nodesQuery: mpp.nodesQuery,
        ttlMs: settings.memberTtlMs,
        sources: settings.topology,
      });
      for (const { id, ...task } of tasks) {
        this.#logger.info({ task: id, ...task }, 'the members differ; made a task');
      }
      // There may be more of them than one comparison deals with.
      if (tasks.length > 0) this.#heartbeat.wake();
      this.#sayProblems(problems);
      await this.#tidy();
      this.#failure = undefined;
    } catch (error) {
      const text = errorText(error);
      if (text !== this.#failure) this.#logger.warn({ err: error }, `no comparison: ${text}`);
      this.#failure = text;
    }
  }

  async #tidy(): Promise<void> {
    const { db, controller, settings } = this.#options;
    const now = performance.now();
    if (this.#prunedAt !== undefined && now - this.#prunedAt < PRUNE_EVERY_MS) return;
    await announceSettings(db, controller, settings);
    await pruneMembers(db, settings.retentionMs);
    this.#prunedAt = now;
  }

  /** Once for each change, not each heartbeat. */
  #sayProblems(problems: readonly Problem[]): void {
    const now = new Map(problems.map(({ groupid, problem }) => [groupid, problem]));
    for (const [groupid, problem] of now) {
      if (this.#problems.get(groupid) === problem) continue;
      this.#logger.warn({ groupid, problem }, 'the group is left as it is');
    }
    for (const groupid of this.#problems.keys()) {
      if (!now.has(groupid)) this.#logger.info({ groupid }, 'the group is clear again');
    }
    this.#problems = now;
  }
}

/** @throws ConfigError when a source lacks what it needs. */
export function checkTopology(settings: TopologySettings): void {
  const { topology, patroni, patroniCa, patroniIntervalMs, probeIntervalMs } = settings;
  const { memberTtlMs, heartbeatMs } = settings;
  const least = LEAST_HEARTBEATS * heartbeatMs;
  if (memberTtlMs < least) {
    throw new ConfigError(
      `MPP_MEMBER_TTL is ${formatDuration(memberTtlMs)}, and MPP_HEARTBEAT ${formatDuration(heartbeatMs)}: a ` +
        `report could be stale before it is looked at; give MPP_MEMBER_TTL ${formatDuration(least)} or more, ` +
        'or a shorter MPP_HEARTBEAT',
    );
  }
  const intervals = { probe: probeIntervalMs, patroni: patroniIntervalMs, table: 0 };
  for (const source of topology) {
    if (memberTtlMs > intervals[source]) continue;
    throw new ConfigError(
      `MPP_MEMBER_TTL is ${formatDuration(memberTtlMs)}, and ${source} reports every ` +
        `${formatDuration(intervals[source])}: every report would be stale; give a longer MPP_MEMBER_TTL, ` +
        `or a shorter MPP_${source.toUpperCase()}_INTERVAL`,
    );
  }
  if (!topology.includes('patroni')) return;
  if (patroni === undefined) {
    throw new ConfigError(
      'MPP_TOPOLOGY has patroni, and MPP_PATRONI is not set; give 1=http://a:8008,http://b:8008;2=...',
    );
  }
  readAuthority(patroniCa);
}

/** `table` needs no part: hooks write it. */
function createSources(
  settings: TopologySettings,
  context: SourceContext,
  observer: Observer,
): TopologySource[] {
  checkTopology(settings);
  const sources: TopologySource[] = [];
  if (settings.topology.includes('probe')) {
    sources.push(
      new Probe({
        ...context,
        logger: componentLogger(context.logger, 'probe'),
        credentials: settings.node,
        intervalMs: settings.probeIntervalMs,
        timeoutMs: settings.probeTimeoutMs,
        suspect: settings.probeSuspect === 'on',
        suspectTimeoutMs: settings.suspectTimeoutMs,
        onProbed: (result, ms) => observer.probed(result, ms),
      }),
    );
  }
  if (settings.topology.includes('patroni')) {
    sources.push(
      new Patroni({
        ...context,
        logger: componentLogger(context.logger, 'patroni'),
        groups: settings.patroni ?? [],
        intervalMs: settings.patroniIntervalMs,
        access: { ca: readAuthority(settings.patroniCa), auth: settings.patroniAuth },
      }),
    );
  }
  return sources;
}

/**
 * Makes a task that registers the server that the controller works on as the coordinator, if pg_dist_node has it at
 * another address: so after a failover of the coordinator, when no other source says so. Not when it has no row at all: to
 * register it is a decision.
 *
 * @param nodesQuery see AbstractMPP.nodesQuery
 * @param host by which the workers reach this server
 * @param port undefined for the one that it listens on
 * @returns true when it was reported.
 */
async function reportOurselves(
  db: Queryable,
  nodesQuery: string,
  host: string,
  port: number | undefined,
): Promise<boolean> {
  const { rowCount } = await db.query({
    name: 'mpp-report-ourselves',
    text: reportOurselvesStatement(nodesQuery),
    values: [host, port],
  });
  return (rowCount ?? 0) > 0;
}

function reportOurselvesStatement(nodesQuery: string): string {
  return `
  WITH node AS (${nodesQuery}), here AS (
    SELECT coalesce($2::integer, current_setting('port')::integer) AS port,
           ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::integer AS timeline
  )
  SELECT @mpp.mpp_submit('after_promote'::text, 0, $1::text, here.port, NULL::text[],
           NULL::interval, NULL::interval, NULL::text, 'sync'::text)
  FROM here
  JOIN node AS n ON n.in_cluster AND n.groupid = 0 AND n.noderole = 'primary'
  WHERE (n.nodename, n.nodeport) <> ($1::text, here.port)
    AND NOT @mpp.mpp_in_maintenance(0)
    AND NOT EXISTS (
      SELECT FROM @mpp.mpp_tasks AS t WHERE t.finished_at IS NULL AND t.groupid = 0)
    AND NOT EXISTS (
      SELECT
      FROM @mpp.mpp_members AS m
      WHERE m.groupid = 0 AND m.role = 'primary' AND @mpp.mpp_is_up(m.state) AND m.timeline > here.timeline)
    AND NOT EXISTS (
      SELECT
      FROM (
        SELECT t.status, t.finished_at, t.nodename, t.nodeport
        FROM @mpp.mpp_tasks AS t
        WHERE t.groupid = 0 AND t.event = 'after_promote' AND t.source = 'sync'
        ORDER BY t.id DESC
        LIMIT 1
      ) AS last
      WHERE last.status IN ('failed', 'discarded', 'cancelled')
        AND last.finished_at > statement_timestamp() - interval '5 minutes'
        AND (last.nodename, last.nodeport) = ($1::text, here.port))`;
}
