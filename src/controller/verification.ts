import type { AbstractMPP, Node } from '../mpp/abstract.js';
import {
  classifyPrimary,
  classifySecondary,
  isSameServer,
  type KnownSystem,
  type NodeAnswer,
  type NodeCheck,
  type Verdict,
} from '../mpp/node-answer.js';
import type { Logger } from '../logger.js';
import type { ServerIdentity } from '../postgres/identity.js';
import type { NodeCredentials } from '../postgres/connection/database-url.js';
import type { Queryable } from '../postgres/queries.js';
import { CHECK_MS, NodeChecker } from '../topology/node-checker.js';
import { confirmSystem, learnSystem, readSystem, SystemLearner } from '../topology/systems.js';
import type { Task } from '../tasks/task.js';
import { formatAddress, sameAddress, type Address } from '../address.js';
import { primaryOf } from './holds.js';

interface VerificationOptions {
  readonly db: Queryable;
  readonly mpp: Pick<AbstractMPP, 'nodesQuery' | 'prepareAsking'>;
  readonly credentials: NodeCredentials;
  /** Of the coordinator that this controller works on. */
  readonly identity: ServerIdentity;
  /** Where an operator has the workers reach the coordinator: MPP_COORDINATOR_HOST and _PORT. */
  readonly coordinator: { readonly host: string | undefined; readonly port: number | undefined };
  /** How often the systems of the groups are looked at. */
  readonly intervalMs: number;
  readonly signal: AbortSignal;
  readonly logger: Logger;
}

/** What is asked of nodes for one task. */
export interface TaskCheck {
  /** Whether the node of the task is the primary that it says, by what the node itself says. */
  primary(nodes: readonly Node[]): Promise<Verdict>;
  /** @returns why each of those that are no standby of the task's group is none. */
  secondaries(addresses: readonly Address[], nodes: readonly Node[]): Promise<Unconfirmed[]>;
  /** Writes down what the primary was confirmed with, once its row says so. Never throws. */
  confirmed(): void;
}

export interface Unconfirmed {
  readonly address: Address;
  readonly reason: string;
}

/** Asks nodes what they are before a report about them is believed. */
export interface Verification {
  start(): void;
  stop(): Promise<void>;
  /** Begins to ask what the task will need, so that the answer is there when it is needed. */
  begin(task: Task): TaskCheck;
}

/** How long a node is waited for that did not answer the attempt before. Its session goes on opening. */
const CHECK_AGAIN_MS = 500;
/** The same for a list of secondaries. */
const SECONDARIES_AGAIN_MS = 1_000;

/** With MPP_VERIFY=off every report is believed. */
export const NO_VERIFICATION: Verification = {
  start: () => undefined,
  stop: () => Promise.resolve(),
  begin: () => ({
    primary: () => Promise.resolve({ kind: 'confirmed' }),
    secondaries: () => Promise.resolve([]),
    confirmed: () => undefined,
  }),
};

export class NodeVerification implements Verification {
  readonly #options: VerificationOptions;
  readonly #checker: NodeChecker;
  readonly #learner: SystemLearner;

  constructor(options: VerificationOptions) {
    this.#options = options;
    const { db, mpp, credentials, intervalMs, signal, logger } = options;
    const checker = new NodeChecker({
      credentials,
      prepareAsking: (node) => mpp.prepareAsking(node),
    });
    this.#checker = checker;
    this.#learner = new SystemLearner({
      ...{ db, checker, intervalMs, signal, logger },
      nodesQuery: mpp.nodesQuery,
    });
  }

  start(): void {
    this.#learner.start();
  }

  async stop(): Promise<void> {
    this.#checker.stop();
    await this.#learner.stop();
  }

  begin(task: Task): TaskCheck {
    // A node that is about to stop cannot be asked later, and one that is about to be promoted will be.
    if (task.event === 'before_demote') this.#learner.wake();
    if (task.event === 'before_promote') this.#checker.prefetch(task.address);
    return new NodeTaskCheck(task, this.#options, this.#checker);
  }
}

class NodeTaskCheck implements TaskCheck {
  readonly #task: Task;
  readonly #options: VerificationOptions;
  readonly #checker: NodeChecker;
  readonly #check: Promise<NodeCheck> | undefined;
  readonly #known: Promise<KnownSystem | null> | undefined;
  #answer: NodeAnswer | undefined;

  constructor(task: Task, options: VerificationOptions, checker: NodeChecker) {
    this.#task = task;
    this.#options = options;
    this.#checker = checker;
    if (task.event !== 'after_promote') return;
    this.#check = checker.ask(task.address, task.attempt > 1 ? CHECK_AGAIN_MS : CHECK_MS);
    this.#known = this.#readKnown();
    // It may end before it is asked for.
    this.#known.catch(() => undefined);
  }

  async primary(nodes: readonly Node[]): Promise<Verdict> {
    const { groupid, address, source } = this.#task;
    const registered = primaryOf(nodes, groupid);
    const isFirst = registered === undefined;
    const check = (await this.#check) ?? (await this.#checker.ask(address));
    const verdict = classifyPrimary({
      ...{ node: formatAddress(address), groupid, check, isFirst },
      known: await this.#knownSystem(nodes),
    });
    if (verdict.kind !== 'confirmed' || !('answer' in check)) return verdict;
    this.#answer = check.answer;
    // An operator may give a node another name. That a member answers under two names says nothing.
    const isChosen = source === 'client' || this.#isCoordinatorsName();
    if (isChosen || isFirst || sameAddress(registered.address, address)) return verdict;
    const other = await this.#checker.ask(registered.address, CHECK_AGAIN_MS);
    if (!('answer' in other) || !isSameServer(other.answer, check.answer)) return verdict;
    const name = formatAddress(registered.address);
    const reason = `${formatAddress(address)} is the same server as ${name}, the name that the catalog has`;
    return { kind: 'alias', reason, cause: 'alias' };
  }

  #isCoordinatorsName(): boolean {
    const { groupid, address } = this.#task;
    const { host, port } = this.#options.coordinator;
    return groupid === 0 && address.host === host && (port ?? address.port) === address.port;
  }

  async secondaries(addresses: readonly Address[], nodes: readonly Node[]): Promise<Unconfirmed[]> {
    if (addresses.length === 0) return [];
    const { groupid } = this.#task;
    const kept = nodes.filter(
      (node) =>
        node.isInCluster &&
        node.groupid === groupid &&
        node.role === 'secondary' &&
        this.#task.secondaries?.some((wanted) => sameAddress(wanted, node.address)),
    );
    const asked = [...kept.map((node) => node.address), ...this.#inTurn(addresses)];
    const waitMs = this.#task.attempt > 1 ? SECONDARIES_AGAIN_MS : CHECK_MS;
    const checks = await this.#checker.askAll(asked, waitMs);
    const known = await this.#knownSystem(nodes);
    const seen = new Map<NodeAnswer, Address>();
    const unconfirmed: Unconfirmed[] = [];
    for (const [index, address] of asked.entries()) {
      const check = checks[index];
      if (check === undefined) continue;
      const node = formatAddress(address);
      if (index >= kept.length) {
        const reason = this.#whyNot(node, check, known, seen);
        if (reason !== undefined) unconfirmed.push({ address, reason });
      }
      if ('answer' in check) seen.set(check.answer, address);
    }
    return unconfirmed;
  }

  confirmed(): void {
    if (this.#answer === undefined) return;
    const { groupid, address } = this.#task;
    const { systemIdentifier, timeline } = this.#answer;
    const seen = { groupid, address, systemIdentifier, timeline };
    // Lost, it is learned at the next heartbeat.
    confirmSystem(this.#options.db, seen).catch((error: unknown) => {
      this.#options.logger.debug(
        { err: error, groupid },
        'the system of a group was not written down',
      );
    });
  }

  /** Another one comes first at each attempt, so that those that do not answer keep none from being asked. */
  #inTurn(addresses: readonly Address[]): Address[] {
    const first = ((this.#task.attempt - 1) * 16) % addresses.length;
    return [...addresses.slice(first), ...addresses.slice(0, first)];
  }

  #whyNot(
    node: string,
    check: NodeCheck,
    known: KnownSystem | null,
    seen: ReadonlyMap<NodeAnswer, Address>,
  ): string | undefined {
    const { groupid } = this.#task;
    const verdict = classifySecondary({ node, groupid, check, known, isFirst: false });
    if (verdict.kind !== 'confirmed') return verdict.reason;
    const twin = [...seen].find(
      ([answer]) => 'answer' in check && isSameServer(answer, check.answer),
    );
    return twin && `${node} is the same server as ${formatAddress(twin[1])}`;
  }

  async #readKnown(): Promise<KnownSystem | null> {
    const { db, identity } = this.#options;
    if (this.#task.groupid !== 0) return readSystem(db, this.#task.groupid);
    return { ...identity, isAccepted: false };
  }

  /** Where nothing is known yet, a registered node of the group tells it, if one is up. */
  async #knownSystem(nodes: readonly Node[]): Promise<KnownSystem | null> {
    const { groupid, address } = this.#task;
    const known = (await this.#known) ?? (await this.#readKnown());
    if (groupid === 0) return known;
    const primary = primaryOf(nodes, groupid);
    if (primary === undefined) return null;
    if (known !== null) return known;
    const others = nodes.filter(
      (node) => node.isInCluster && node.groupid === groupid && node.role === 'secondary',
    );
    const registered = [primary, ...others].filter((node) => !sameAddress(node.address, address));
    const checks = await this.#checker.askAll(
      registered.map((node) => node.address),
      CHECK_AGAIN_MS,
    );
    for (const [index, node] of registered.entries()) {
      const check = checks[index];
      if (check === undefined || !('answer' in check)) continue;
      const { systemIdentifier, timeline } = check.answer;
      if (systemIdentifier === null) continue;
      const seen = { groupid, address: node.address, systemIdentifier, timeline };
      await learnSystem(this.#options.db, seen);
      return { systemIdentifier, timeline, isAccepted: false };
    }
    return null;
  }
}
