import { Loop } from '../../loop.js';
import { nodeConnection, type NodeCredentials } from '../../postgres/node-connection.js';
import { formatAddress } from '../../address.js';
import {
  type KnownCluster,
  type KnownNode,
  type MemberReport,
  MemberWriter,
  readCluster,
  reportSuspect,
} from '../members.js';
import type { SourceContext, TopologySource } from '../source.js';
import { isSuspicious } from './failure.js';
import { type Answer, NodeProbe, type Observation } from './node-probe.js';

interface ProbeOptions extends SourceContext {
  readonly credentials: NodeCredentials;
  readonly intervalMs: number;
  readonly timeoutMs: number;
  /** Whether a primary that refuses or drops the connection is reported as `suspect`. */
  readonly suspect: boolean;
  /** How long the hold of such a report may last, in milliseconds. */
  readonly suspectTimeoutMs: number;
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
