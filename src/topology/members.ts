import type { AbstractMPP } from '../mpp/abstract.js';
import type { Logger } from '../logger.js';
import type { Queryable } from '../postgres/queries.js';
import { type Address, formatAddress } from '../address.js';

/** Who fills mpp_members beside the hooks, whose source is `table`. */
type SourceName = 'probe' | 'patroni';

/** What a source says of one node. */
export interface MemberReport {
  readonly groupid: number;
  readonly address: Address;
  readonly role: 'primary' | 'secondary';
  /** `running` and `streaming` count as up; `removed` and any other word do not. */
  readonly state: string;
  readonly timeline?: number | null;
  readonly noloadbalance?: boolean;
  readonly systemIdentifier?: string | null;
  /** One sentence, when the state does not explain itself. */
  readonly reason?: string | null;
  /** When it was seen, as performance.now() has it: what is seen waits for a moment to be written. */
  readonly seenAt: number;
}

/**
 * Writes what a source has seen, in one statement. A row is written when something changed, when a
 * third of the time that a report counts has passed, or when anything else of its group has changed
 * since: whether a report is older than that change must be seen from it.
 *
 * @returns whether a node has another group or role, or came up or went down.
 */
export async function writeMembers(
  db: Queryable,
  source: SourceName,
  reports: readonly MemberReport[],
  ttlMs: number,
): Promise<boolean> {
  if (reports.length === 0) return false;
  const now = performance.now();
  const { rows } = await db.query<{ changed: boolean }>({
    name: 'mpp-write-members',
    text: WRITE_MEMBERS,
    values: [
      source,
      ttlMs,
      reports.map(({ groupid }) => groupid),
      reports.map(({ address }) => address.host),
      reports.map(({ address }) => address.port),
      reports.map(({ role }) => role),
      reports.map(({ state }) => state),
      reports.map(({ timeline }) => timeline ?? null),
      reports.map(({ noloadbalance }) => noloadbalance ?? false),
      reports.map(({ systemIdentifier }) => systemIdentifier ?? null),
      reports.map(({ reason }) => reason ?? null),
      reports.map(({ seenAt }) => Math.max(0, now - seenAt)),
    ],
  });
  return rows.some(({ changed }) => changed);
}

/** Whether the group of a row `m` has a suspect of the probe open: what is seen after it may end its hold. */
function hasSuspect(and = ''): string {
  return `EXISTS (
           SELECT
           FROM @mpp.mpp_tasks AS t
           WHERE t.finished_at IS NULL AND t.groupid = m.groupid AND t.event = 'suspect' AND t.source = 'probe'
             ${and})`;
}

/** The time of a report is by the server's clock, less how long ago it was seen here. */
const WRITE_MEMBERS = `
  INSERT INTO @mpp.mpp_members AS m (nodename, nodeport, source, groupid, role, state, timeline, noloadbalance,
    system_identifier, reason, since, reported_at)
  SELECT r.nodename, r.nodeport, $1, r.groupid, r.role, r.state, r.timeline, r.noloadbalance,
         r.system_identifier, r.reason, seen.at, seen.at
  FROM unnest($3::integer[], $4::text[], $5::integer[], $6::text[], $7::text[], $8::integer[], $9::boolean[],
              $10::text[], $11::text[], $12::float8[])
    AS r (groupid, nodename, nodeport, role, state, timeline, noloadbalance, system_identifier, reason, age_ms)
  CROSS JOIN LATERAL (
    SELECT statement_timestamp() - r.age_ms * interval '1 millisecond' AS at
  ) AS seen
  ORDER BY r.nodename, r.nodeport
  ON CONFLICT (nodename, nodeport, source) DO UPDATE
  SET groupid = excluded.groupid,
      role = excluded.role,
      state = excluded.state,
      timeline = excluded.timeline,
      noloadbalance = excluded.noloadbalance,
      system_identifier = excluded.system_identifier,
      reason = excluded.reason,
      reported_at = excluded.reported_at
  -- A row of the future was written by a server whose clock was ahead: it would outlive all reports.
  WHERE (excluded.reported_at > m.reported_at OR m.reported_at > clock_timestamp())
    AND ((m.groupid, m.role, m.state, m.timeline, m.noloadbalance, m.system_identifier, m.reason)
           IS DISTINCT FROM
         (excluded.groupid, excluded.role, excluded.state, excluded.timeline, excluded.noloadbalance,
          excluded.system_identifier, excluded.reason)
         OR m.reported_at < statement_timestamp() - $2::float8 / 3 * interval '1 millisecond'
         OR m.reported_at > clock_timestamp()
         OR EXISTS (
           SELECT
           FROM @mpp.mpp_members AS o
           WHERE o.groupid = m.groupid AND o.since > m.reported_at)
         OR ${hasSuspect('AND t.created_at > m.reported_at')})
  RETURNING m.since = m.reported_at OR ${hasSuspect()} AS changed`;

/**
 * Marks as removed what a source no longer lists of a group, and keeps saying so for an hour.
 *
 * @param listed all nodes that the group has.
 * @returns whether there was any that had not been marked.
 */
export async function removeUnlisted(
  db: Queryable,
  source: SourceName,
  groupid: number,
  listed: readonly Address[],
  ttlMs: number,
): Promise<boolean> {
  const { rows } = await db.query<{ changed: boolean }>({
    name: 'mpp-remove-unlisted',
    text: REMOVE_UNLISTED,
    values: [
      source,
      groupid,
      listed.map(({ host }) => host),
      listed.map(({ port }) => port),
      ttlMs,
    ],
  });
  return rows.some(({ changed }) => changed);
}

const REMOVE_UNLISTED = `
  UPDATE @mpp.mpp_members AS m
  SET state = 'removed', reason = NULL, reported_at = statement_timestamp()
  WHERE m.source = $1
    AND m.groupid = $2
    AND (m.nodename, m.nodeport) NOT IN (SELECT * FROM unnest($3::text[], $4::integer[]))
    AND (m.state <> 'removed'
         OR (m.since > statement_timestamp() - interval '1 hour'
             AND m.reported_at < statement_timestamp() - $5::float8 / 3 * interval '1 millisecond'))
  RETURNING m.since = m.reported_at AS changed`;

/** A node that the probe asks. */
export interface KnownNode {
  readonly groupid: number;
  readonly address: Address;
  /** Its role in the catalog, or null where it has no row. */
  readonly registered: 'primary' | 'secondary' | null;
}

/** All nodes that the catalog or any source names, and what is known of their groups. */
export interface KnownCluster {
  readonly nodes: readonly KnownNode[];
  /** System identifier of each group, as far as mpp_systems has it. */
  readonly identifiers: ReadonlyMap<number, string>;
}

/** @param nodesQuery SELECT of the catalog's rows, see AbstractMPP.nodesQuery. */
export async function readCluster(db: Queryable, nodesQuery: string): Promise<KnownCluster> {
  const { rows } = await db.query<{
    groupid: number;
    nodename: string;
    nodeport: number;
    registered: KnownNode['registered'];
    identifier: string | null;
  }>({ name: 'mpp-read-cluster', text: clusterStatement(nodesQuery) });
  return {
    nodes: rows.map(({ groupid, nodename, nodeport, registered }) => ({
      groupid,
      address: { host: nodename, port: nodeport },
      registered,
    })),
    identifiers: new Map(
      rows.flatMap(({ groupid, identifier }) =>
        identifier === null ? [] : [[groupid, identifier] as const],
      ),
    ),
  };
}

/** A node of the catalog is in the group that it has there, any other in the one reported last. */
function clusterStatement(nodesQuery: string): string {
  return `
  WITH node AS MATERIALIZED (
    ${nodesQuery}
  ), known AS (
    SELECT coalesce(p.groupid, n.groupid) AS groupid, n.nodename, n.nodeport,
           CASE WHEN n.cloneof IS NULL THEN n.noderole END AS registered
    FROM node AS n
    LEFT JOIN node AS p ON p.nodeid = n.cloneof
    WHERE n.in_cluster AND (n.noderole <> 'unavailable' OR p.nodeid IS NOT NULL)
    UNION ALL
    (SELECT DISTINCT ON (m.nodename, m.nodeport) m.groupid, m.nodename, m.nodeport, NULL
     FROM @mpp.mpp_members AS m
     WHERE m.state <> 'removed'
       AND NOT EXISTS (SELECT FROM node AS n WHERE n.nodename = m.nodename AND n.nodeport = m.nodeport)
     ORDER BY m.nodename, m.nodeport, m.reported_at DESC)
  )
  SELECT k.groupid, k.nodename, k.nodeport, k.registered, s.system_identifier AS identifier
  FROM known AS k
  LEFT JOIN @mpp.mpp_systems AS s ON s.groupid = k.groupid`;
}

/**
 * Reports that a primary does not answer, as a task `suspect` of source `probe`, unless the catalog has
 * another primary, or one such task is open.
 *
 * @param timeoutMs how long its hold may last
 * @returns id of the task, if one was made.
 */
export async function reportSuspect(
  db: Queryable,
  nodesQuery: string,
  { groupid, address }: KnownNode,
  timeoutMs: number,
): Promise<string | undefined> {
  const { rows } = await db.query<{ id: string }>({
    name: 'mpp-suspect',
    text: suspectStatement(nodesQuery),
    values: [groupid, address.host, address.port, timeoutMs],
  });
  return rows[0]?.id;
}

function suspectStatement(nodesQuery: string): string {
  return `
  WITH node AS (
    ${nodesQuery}
  ), primary_node AS (
    SELECT n.groupid, n.nodename, n.nodeport
    FROM node AS n
    WHERE n.in_cluster AND n.noderole = 'primary' AND n.groupid = $1 AND n.nodename = $2 AND n.nodeport = $3
      AND NOT @mpp.mpp_in_maintenance(n.groupid)
      AND NOT EXISTS (
        SELECT
        FROM @mpp.mpp_tasks AS t
        WHERE t.finished_at IS NULL AND t.groupid = n.groupid AND t.event = 'suspect')
  )
  SELECT @mpp.mpp_submit('suspect'::text, t.groupid, t.nodename, t.nodeport, NULL::text[],
           $4::float8 * interval '1 millisecond', NULL::interval, NULL::text, 'probe'::text) AS id
  FROM primary_node AS t`;
}

/** Forgets what was not reported, or what has been down, for longer than `retentionMs`. */
export async function pruneMembers(db: Queryable, retentionMs: number): Promise<void> {
  await db.query({ name: 'mpp-prune-members', text: PRUNE_MEMBERS, values: [retentionMs] });
}

const PRUNE_MEMBERS = `
  DELETE FROM @mpp.mpp_members AS m
  WHERE m.reported_at < statement_timestamp() - $1::float8 * interval '1 millisecond'
     OR (m.state NOT IN ('running', 'streaming')
         AND m.since < statement_timestamp() - $1::float8 * interval '1 millisecond')`;

/** Tells the views how long a report counts, and whether nodes are asked before one is believed. */
export async function announceSettings(
  db: Queryable,
  controller: string,
  { memberTtlMs, verify }: { readonly memberTtlMs: number; readonly verify: 'on' | 'off' },
): Promise<void> {
  await db.query({
    name: 'mpp-announce-settings',
    text: ANNOUNCE_SETTINGS,
    values: [controller, memberTtlMs, verify === 'on'],
  });
}

/** A row that another session has locked is skipped: it is announced again. */
const ANNOUNCE_SETTINGS = `
  UPDATE @mpp.mpp_controllers
  SET member_ttl = $2::float8 * interval '1 millisecond', verify = $3
  WHERE id IN (SELECT c.id FROM @mpp.mpp_controllers AS c WHERE c.id = $1 FOR UPDATE SKIP LOCKED)`;

/**
 * Writes the reports of one source. While a statement runs, what comes in is collected for the next:
 * a node that is slow to answer delays no other, and many that answer at once cost one statement.
 */
export class MemberWriter {
  readonly #context: SourceContext;
  readonly #source: SourceName;
  readonly #waiting = new Map<string, MemberReport>();
  #writing: Promise<void> | undefined;
  #failing = false;

  constructor(source: SourceName, context: SourceContext) {
    this.#source = source;
    this.#context = context;
  }

  /** The newest report of a node replaces one that has not been written yet. */
  submit(reports: readonly MemberReport[]): void {
    for (const report of reports) this.#waiting.set(formatAddress(report.address), report);
    this.#writing ??= this.#write().finally(() => {
      this.#writing = undefined;
      if (this.#waiting.size > 0 && !this.#context.signal.aborted) this.submit([]);
    });
  }

  /** Resolves when all that was handed over has been written, or could not be. */
  async settle(): Promise<void> {
    await this.#writing;
  }

  async #write(): Promise<void> {
    // What else is handed over in this turn of the event loop goes into the same statement.
    await Promise.resolve();
    const { db, ttlMs, logger, onChange, signal } = this.#context;
    while (this.#waiting.size > 0 && !signal.aborted) {
      const reports = [...this.#waiting.values()];
      this.#waiting.clear();
      try {
        if (await writeMembers(db, this.#source, reports, ttlMs)) onChange();
        this.#failing = false;
      } catch (error) {
        // The next round has them again.
        if (!this.#failing) logger.warn({ err: error }, 'what was seen could not be written');
        this.#failing = true;
      }
    }
  }
}

/** A part that finds out how the cluster is, and writes it to mpp_members for as long as it runs. */
export interface TopologySource {
  /** Begins in the background. Idempotent. */
  start(): void;
  /** Ends it and closes what it has open. Idempotent. */
  stop(): Promise<void>;
}

/** What every source needs. */
export interface SourceContext {
  readonly db: Queryable;
  /** See AbstractMPP.nodesQuery. */
  readonly nodesQuery: AbstractMPP['nodesQuery'];
  /** MPP_MEMBER_TTL in milliseconds. */
  readonly ttlMs: number;
  /** Ends the source like `stop`. */
  readonly signal: AbortSignal;
  readonly logger: Logger;
  /** Called when what was written may change the comparison. */
  readonly onChange: () => void;
}
