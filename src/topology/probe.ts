import type pg from 'pg';
import { UnreachableError } from '../errors.js';
import { errorText, openSession, type Connection } from '../postgres/session.js';
import { sqlState } from '../postgres/sqlstate.js';
import type { ProbeResult } from '../tasks/observer.js';
import { Loop } from '../wait.js';
import { nodeConnection, type NodeCredentials } from '../postgres/connection/database-url.js';
import { formatAddress } from '../address.js';
import {
  type KnownCluster,
  type KnownNode,
  type MemberReport,
  MemberWriter,
  readCluster,
  reportSuspect,
  type SourceContext,
  type TopologySource,
} from './members.js';

interface ProbeOptions extends SourceContext {
  readonly credentials: NodeCredentials;
  readonly intervalMs: number;
  readonly timeoutMs: number;
  /** Whether a primary that refuses or drops the connection is reported as `suspect`. */
  readonly suspect: boolean;
  /** How long the hold of such a report may last, in milliseconds. */
  readonly suspectTimeoutMs: number;
  /** Called after each look at a node, with what came of it. */
  readonly onProbed: (result: ProbeResult, ms: number) => void;
}

/** A node that is being asked. */
interface Watched {
  node: KnownNode;
  readonly probe: NodeProbe;
  /** True once there was an answer or a failure. */
  seen: boolean;
  /** The last answer, until a failure. */
  answer: Answer | undefined;
  /** True from the report of a suspect until the node answers: one incident, one report. */
  suspected: boolean;
  /** What was logged last. */
  said: string;
}

/** Asks every node that the catalog or mpp_members names what it is. */
export class Probe implements TopologySource {
  readonly #options: ProbeOptions;
  readonly #writer: MemberWriter;
  readonly #loop: Loop;
  readonly #watched = new Map<string, Watched>();
  #identifiers = new Map<number, string>();
  #failing = false;

  constructor(options: ProbeOptions) {
    this.#options = options;
    this.#writer = new MemberWriter('probe', options);
    this.#loop = new Loop({
      intervalMs: options.intervalMs,
      signal: options.signal,
      work: () => this.#refresh(),
    });
  }

  start(): void {
    this.#loop.start();
  }

  async stop(): Promise<void> {
    await this.#loop.stop();
    await Promise.all([...this.#watched.values()].map(({ probe }) => probe.stop()));
    this.#watched.clear();
    await this.#writer.settle();
  }

  async #refresh(): Promise<void> {
    const { db, nodesQuery, logger, signal } = this.#options;
    let cluster: KnownCluster;
    try {
      cluster = await readCluster(db, nodesQuery);
      this.#failing = false;
    } catch (error) {
      if (!this.#failing) logger.warn({ err: error }, 'the nodes to ask could not be read');
      this.#failing = true;
      return;
    }
    if (signal.aborted) return;
    // The table is the truth: an operator who deletes a group's rows has its identifier forgotten.
    this.#identifiers = new Map(cluster.identifiers);
    const known = new Map(cluster.nodes.map((node) => [formatAddress(node.address), node]));
    for (const [key, { probe }] of this.#watched) {
      if (known.has(key)) continue;
      this.#watched.delete(key);
      void probe.stop();
    }
    for (const [key, node] of known) this.#watch(key, node);
  }

  #watch(key: string, node: KnownNode): void {
    const watched = this.#watched.get(key);
    if (watched !== undefined) {
      watched.node = node;
      return;
    }
    const { credentials, intervalMs, timeoutMs, signal } = this.#options;
    const probe = new NodeProbe({
      connection: nodeConnection(credentials, node.address),
      intervalMs,
      timeoutMs,
      signal,
      onObservation: (observation) => this.#observed(key, observation),
    });
    this.#watched.set(key, {
      node,
      probe,
      seen: false,
      answer: undefined,
      suspected: false,
      said: '',
    });
    probe.start();
  }

  #observed(key: string, observation: Observation): void {
    const { seenAt, failure } = observation;
    this.#options.onProbed(failure?.kind ?? 'answered', performance.now() - seenAt);
    const watched = this.#watched.get(key);
    if (watched === undefined) return;
    watched.seen = true;
    watched.answer = observation.answer;
    if (observation.failure === undefined) watched.suspected = false;
    else if (isSuspicious(observation.failure)) this.#suspect(watched);
    const { node } = watched;
    if (!this.#identify(node, observation)) return;
    const alias = this.#otherName(key, watched);
    const report = judge(node, observation, this.#identifiers.get(node.groupid), alias);
    const said = report?.reason ?? observation.failure?.reason ?? '';
    if (said !== watched.said) this.#say(watched, said);
    if (report !== undefined) this.#writer.submit([report]);
  }

  /**
   * The first answer tells a group's system identifier, and that of its registered primary comes first.
   *
   * @returns false while that one has not been heard.
   */
  #identify(node: KnownNode, { answer }: Observation): boolean {
    const { groupid } = node;
    const identifier = answer?.systemIdentifier ?? null;
    if (identifier === null || this.#identifiers.has(groupid)) return true;
    const primary = [...this.#watched.values()].find(
      (other) => other.node.groupid === groupid && other.node.registered === 'primary',
    );
    if (primary !== undefined && !primary.seen) return false;
    this.#identifiers.set(groupid, identifier);
    return true;
  }

  /**
   * Another name of the same server, if that one counts: the catalog's before any other, then the first in
   * the order of names.
   */
  #otherName(key: string, { node, answer }: Watched): string | undefined {
    if (answer === undefined || node.registered !== null) return undefined;
    for (const [name, other] of this.#watched) {
      const isSame =
        other.answer?.startedAt === answer.startedAt &&
        other.answer.systemIdentifier === answer.systemIdentifier;
      if (name !== key && isSame && (other.node.registered !== null || name < key)) return name;
    }
    return undefined;
  }

  #suspect(watched: Watched): void {
    const { db, nodesQuery, suspect, suspectTimeoutMs, logger } = this.#options;
    const { node } = watched;
    if (!suspect || watched.suspected || node.registered !== 'primary' || node.groupid === 0)
      return;
    watched.suspected = true;
    const about = { groupid: node.groupid, node: formatAddress(node.address) };
    reportSuspect(db, nodesQuery, node, suspectTimeoutMs).then(
      (task) => {
        // While an earlier one is open it is tried again: its hold may end before the primary is back.
        if (task === undefined) watched.suspected = false;
        else logger.warn({ ...about, task }, 'the primary does not answer');
      },
      (error: unknown) => {
        watched.suspected = false;
        logger.warn({ ...about, err: error }, 'a suspect could not be reported');
      },
    );
  }

  /** Once for each change, not each round. */
  #say(watched: Watched, said: string): void {
    watched.said = said;
    const { groupid, address } = watched.node;
    const about = { groupid, node: formatAddress(address) };
    if (said === '') this.#options.logger.info(about, 'the node answers again');
    else this.#options.logger.warn(about, said);
  }
}

/**
 * What an observation of a node means; pure.
 *
 * @param identifier system identifier of the node's group, undefined while that is not known.
 * @param alias `host:port` of the node that is the same server and whose name counts, if there is one.
 * @returns undefined for a node that is there but refuses the login: nothing is known of it, so its
 *   last report grows stale.
 */
export function judge(
  { groupid, address, registered }: KnownNode,
  { seenAt, answer, failure }: Observation,
  identifier: string | undefined,
  alias?: string,
): MemberReport | undefined {
  const about = { groupid, address, seenAt };
  if (answer === undefined) {
    if (failure === undefined || failure.kind === 'closed') return undefined;
    // The role of a node that is down is not known; what the catalog has will do, as it claims nothing.
    return { ...about, role: registered ?? 'secondary', state: 'unreachable' };
  }
  const seen = {
    ...about,
    role: answer.standby ? 'secondary' : 'primary',
    timeline: answer.timeline,
    systemIdentifier: answer.systemIdentifier,
  } as const;
  const mine = answer.systemIdentifier;
  if (mine !== null && identifier !== undefined && mine !== identifier) {
    return {
      ...seen,
      state: 'foreign',
      reason:
        `another cluster answers at this address: its system identifier is ${mine}, ` +
        `that of group ${groupid} is ${identifier}`,
    };
  }
  if (alias !== undefined) {
    return {
      ...seen,
      state: 'alias',
      reason: `the same server answers as ${alias}; that name counts`,
    };
  }
  return { ...seen, state: answer.streaming ? 'streaming' : 'running' };
}

/** What a node said of itself. */
export interface Answer {
  readonly standby: boolean;
  /** A standby that receives WAL now; false also where this role may not see it. */
  readonly streaming: boolean;
  readonly timeline: number | null;
  /** null where this role may not ask for it. */
  readonly systemIdentifier: string | null;
  /** When its postmaster started: with the system identifier it names one server. */
  readonly startedAt: string;
}

/** One look at one node. */
export interface Observation {
  /** When the look began, as performance.now() has it. */
  readonly seenAt: number;
  readonly answer?: Answer;
  readonly failure?: Failure;
}

interface NodeProbeOptions {
  readonly connection: Connection;
  readonly intervalMs: number;
  readonly timeoutMs: number;
  readonly signal: AbortSignal;
  readonly onObservation: (observation: Observation) => void;
}

/**
 * Asks one node time and again on a connection that is kept. When the server closes it the node is
 * asked at once, so a crash is seen in the time of a refused connection, not at the next round.
 */
export class NodeProbe {
  readonly #options: NodeProbeOptions;
  readonly #loop: Loop;
  #client: pg.Client | undefined;
  #server: Pick<Answer, 'systemIdentifier' | 'startedAt'> | undefined;
  #dropped = false;

  constructor(options: NodeProbeOptions) {
    this.#options = options;
    this.#loop = new Loop({
      intervalMs: options.intervalMs,
      signal: options.signal,
      work: (signal) => this.#look(signal),
    });
  }

  start(): void {
    this.#loop.start();
  }

  async stop(): Promise<void> {
    const stopped = this.#loop.stop();
    // What is being asked ends with its connection.
    this.#discard();
    await stopped;
    this.#discard();
  }

  async #look(signal: AbortSignal): Promise<void> {
    const { onObservation } = this.#options;
    const seenAt = performance.now();
    let dropped = this.#dropped;
    this.#dropped = false;
    for (;;) {
      const kept = this.#client !== undefined;
      try {
        const answer = await this.#ask();
        if (!signal.aborted) onObservation({ seenAt, answer });
        return;
      } catch (error) {
        this.#discard();
        if (signal.aborted) return;
        const failure = classifyFailure(error);
        if (kept && failure.kind !== 'silent') {
          // This one session may have been terminated; a new one tells whether the server is there.
          dropped = true;
          continue;
        }
        onObservation({ seenAt, failure: dropped ? { ...failure, dropped: true } : failure });
        return;
      }
    }
  }

  async #ask(): Promise<Answer> {
    const client = (this.#client ??= await this.#connect());
    const { rows } = await client.query<Omit<Answer, 'systemIdentifier' | 'startedAt'>>(ASK);
    const [row] = rows;
    if (row === undefined || this.#server === undefined) {
      throw new Error('the statements ASK and STARTED_AT return one row');
    }
    return { ...row, ...this.#server };
  }

  async #connect(): Promise<pg.Client> {
    const { connection, timeoutMs } = this.#options;
    const client = await openSession(
      { ...connection, connectionTimeoutMillis: timeoutMs, query_timeout: timeoutMs },
      'probe',
    );
    const lost = (): void => {
      if (this.#client !== client) return;
      this.#client = undefined;
      this.#discard(client);
      this.#dropped = true;
      this.#loop.wake();
    };
    client.on('error', lost);
    client.on('end', lost);
    try {
      // They cannot change while the server runs, so once a connection is enough.
      this.#server = {
        startedAt: await readStart(client),
        systemIdentifier: await readSystemIdentifier(client),
      };
      return client;
    } catch (error) {
      this.#discard(client);
      throw error;
    }
  }

  /** The socket is closed at once: a goodbye would wait for a host that has vanished. */
  #discard(client = this.#client): void {
    if (client === this.#client) this.#client = undefined;
    client?.connection.stream.destroy();
  }
}

async function readStart(client: pg.Client): Promise<string> {
  const { rows } = await client.query<{ started: string }>(STARTED_AT);
  return rows[0]?.started ?? '';
}

const STARTED_AT = `
  SELECT pg_catalog.date_part('epoch', pg_catalog.pg_postmaster_start_time())::pg_catalog.text AS started`;

async function readSystemIdentifier(client: pg.Client): Promise<string | null> {
  try {
    const { rows } = await client.query<{ identifier: string }>(SYSTEM_IDENTIFIER);
    return rows[0]?.identifier ?? null;
  } catch (error) {
    if (sqlState(error) === INSUFFICIENT_PRIVILEGE) return null;
    throw error;
  }
}

const INSUFFICIENT_PRIVILEGE = '42501';

const SYSTEM_IDENTIFIER =
  'SELECT system_identifier::text AS identifier FROM pg_catalog.pg_control_system()';

/**
 * The timeline of a primary is in the name of the WAL file it writes; that of a standby is the one it
 * receives, or the one it replayed last. CASE keeps the first from being asked for on a standby, where
 * it is an error.
 */
const ASK = `
  SELECT r.standby,
         r.standby AND coalesce(w.status = 'streaming', false) AS streaming,
         CASE
           WHEN NOT r.standby
             THEN ('x' || left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), 8))::bit(32)::integer
           ELSE w.received_tli
         END AS timeline
  FROM (SELECT pg_catalog.pg_is_in_recovery() AS standby OFFSET 0) AS r
  LEFT JOIN pg_catalog.pg_stat_wal_receiver AS w ON true`;

/** How a node failed to answer. */
export interface Failure {
  /**
   * - `down`: no server takes connections there, or the server says that it is going or not yet there.
   * - `silent`: no answer in time. It may be slow, or cut off from the controller alone.
   * - `closed`: it is there, and refuses the login: a password, a right, too many connections.
   */
  readonly kind: 'down' | 'silent' | 'closed';
  readonly reason: string;
  /** A connection that was kept broke before. */
  readonly dropped?: boolean;
}

/** Distinguished by SQLSTATE and the system's codes, never by the text. */
export function classifyFailure(error: unknown): Failure {
  const cause = error instanceof UnreachableError ? error.cause : error;
  const reason = errorText(error);
  const state = sqlState(cause);
  // 57P01 to 57P03: shutting down, crashed, starting up.
  if (state !== undefined) return { kind: state.startsWith('57P') ? 'down' : 'closed', reason };
  const codes = systemCodes(cause);
  if (codes.some((code) => DOWN.has(code))) return { kind: 'down', reason };
  return { kind: 'silent', reason };
}

/** Whether it means that the primary has gone, so that its traffic had better wait. */
export function isSuspicious({ kind, dropped }: Failure): boolean {
  return kind === 'down' || (dropped === true && kind === 'silent');
}

const DOWN = new Set(['ECONNREFUSED', 'ECONNRESET', 'EPIPE', 'ENOENT']);

/** Of a host with several addresses node gives the errors of all. */
function systemCodes(error: unknown): string[] {
  if (error instanceof AggregateError) return error.errors.flatMap(systemCodes);
  return error instanceof Error && 'code' in error && typeof error.code === 'string'
    ? [error.code]
    : [];
}
