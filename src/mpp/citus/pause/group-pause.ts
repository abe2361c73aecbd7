import { setTimeout as delay } from 'node:timers/promises';
import { DatabaseStateError, SessionLostError } from '../../../errors.js';
import {
  type Blocker,
  BlockingSessions,
  describeBlocker,
  keyOf,
  nameSession,
} from '../../../locks/blocking-sessions.js';
import {
  type AwaitedBlocker,
  decide,
  stayOf,
  type Vertex,
  waitersOf,
  type WaitGraph,
} from '../../../locks/decisions.js';
import { inTime } from '../../../locks/lock-session.js';
import type { Watch } from '../../../locks/watch.js';
import type { Logger } from '../../../logger.js';
import { errorText } from '../../../postgres/session.js';
import type { PauseShortfall } from '../../../tasks/observer.js';
import { linkSignals } from '../../../wait.js';
import type { BlockerNote } from '../../../tasks/task.js';
import type { PauseRequest, WaitingClients } from '../../abstract.js';
import { type GroupLocks, type HoldOrder, type NodeLock, NodePause } from './node-pause.js';
import type { PauseNode } from './nodes.js';
import { readShardMoves } from './targets-reader.js';

/** What another node may take beyond twice the cooldown before the hold goes on without it, in milliseconds. */
const LATE_MS = 2_000;
/** And the part of the hold's own time that it may take: the other nodes' clients wait meanwhile. */
const MOST_OF_HOLD = 0.75;
/** A session that was to be terminated and is still there is terminated again, in milliseconds. */
const TERMINATE_AGAIN_MS = 100;
/** Between two tries to take all locks, where no blocker is known, in milliseconds. */
const BETWEEN_TRIES_MS = 20;

/** A node that is not the coordinator, and its nodeid. */
interface SideNode {
  readonly nodeid: number;
  readonly node: PauseNode;
}

interface GroupPauseOptions {
  readonly request: PauseRequest;
  readonly coordinator: PauseNode;
  readonly sides: readonly SideNode[];
  readonly group: GroupLocks;
  readonly watch: Watch;
  readonly logger: Logger;
}

/** The node pauses of one hold: opens them together, keeps them, and takes again what is lost. */
export class GroupPause {
  readonly #options: GroupPauseOptions;
  readonly #blocking: BlockingSessions;
  readonly #order: HoldOrder;
  readonly #beganAt = performance.now();
  readonly main: NodePause;
  readonly sides: readonly { readonly nodeid: number; readonly pause: NodePause }[];
  #attempt = 1;
  /** Ends the present try: leave the queues for these. */
  #leave: ((blockers: readonly AwaitedBlocker<Vertex>[]) => void) | undefined;
  readonly #terminatedAt = new Map<Vertex, number>();
  readonly #cancelled: string[] = [];
  #moves: readonly string[] = [];
  #isOpen = false;
  /** Sessions that were said to be another role's. */
  readonly #unendable = new Set<string>();

  constructor(options: GroupPauseOptions) {
    this.#options = options;
    const { request, coordinator, sides, group, watch } = options;
    const { node, pause, planned, cooldownMs, remainingMs } = request;
    this.#order = { groupid: node.groupid, pause, planned, cooldownMs, remainingMs };
    const cooledAt = new Date(Date.now() + cooldownMs).toISOString().slice(11, 19);
    this.#blocking = new BlockingSessions({
      watch,
      onCancelled: (blocker) => this.#sayCancelled(blocker),
      onBlocked: (blockers) => {
        this.#sayMayNotEnd(blockers);
        const named = blockers.map(describeBlocker).join('; ');
        const sentence = `waits for ${named}; the cooldown ends at ${cooledAt} UTC`;
        request.onBlocked(
          sentence,
          blockers.map((blocker) => this.#noteOf(blocker)),
        );
      },
    });
    const pauseOf = (on: PauseNode, own?: GroupLocks): NodePause =>
      new NodePause({
        node: on,
        order: this.#order,
        blocking: this.#blocking,
        ...(own && { group: own }),
        onLost: (lost) => this.#sayLost(lost),
        onRegained: (lost, error) => this.#regained(lost, error),
      });
    this.main = pauseOf(coordinator, group);
    this.sides = sides.map(({ nodeid, node }) => ({ nodeid, pause: pauseOf(node) }));
  }

  /** A sentence when less is paused than was asked for, or work of an operator was or may be lost; else null. */
  get reason(): string | null {
    const reasons = this.#all.map((pause) => pause.reason).filter((one) => one !== null);
    return [...reasons, ...this.#cancelled, ...this.#moves].join('; ') || null;
  }

  get shortfalls(): PauseShortfall[] {
    return [...new Set(this.#all.flatMap((pause) => pause.shortfall ?? []))];
  }

  get yields(): number {
    return this.#all.reduce((sum, { yields }) => sum + yields, 0);
  }

  get #all(): NodePause[] {
    return [this.main, ...this.sides.map(({ pause }) => pause)];
  }

  /**
   * Takes the locks on all nodes at the same time, and keeps them once all are there at the same moment.
   * Another node than the coordinator that cannot have its own is left out.
   *
   * @throws what keeps the coordinator from its locks, or the reason of the signal; all is released.
   */
  async open(signal: AbortSignal): Promise<void> {
    const { watch } = this.#options;
    const ended = new AbortController();
    const link = linkSignals([signal, ended.signal]);
    const endListening = watch.listen((graph) => this.#see(graph));
    const endYielding = this.#stopYieldingLater(watch, ended.signal);
    const { cooldownMs, remainingMs } = this.#order;
    const lateMs = Math.min(2 * cooldownMs + LATE_MS, MOST_OF_HOLD * remainingMs);
    const late = delay(lateMs, undefined, { signal: ended.signal });
    late.catch(() => undefined);
    void this.#readMoves();
    try {
      const opening = this.#open(link.signal, late);
      await Promise.race([
        opening,
        rejectOn(link.signal),
        this.#giveUpAt(remainingMs, ended.signal),
      ]);
      this.#isOpen = true;
    } catch (error) {
      ended.abort(error);
      this.#leave = undefined;
      await this.release();
      throw error;
    } finally {
      ended.abort(new Error('the hold is open'));
      endListening();
      endYielding();
      link.release();
    }
  }

  /** The hold does not wait for the answer. */
  async #readMoves(): Promise<void> {
    const { request, logger } = this.#options;
    try {
      this.#moves = await readShardMoves(this.main.node.checks, request.node.address);
      if (this.#moves.length > 0 && this.#isOpen) this.#sayReason();
    } catch (error) {
      logger.debug({ err: error }, 'shard moves under way could not be read');
    }
  }

  #sayReason(): void {
    const { reason } = this;
    if (reason !== null) this.#options.request.onReason(reason);
  }

  async #open(signal: AbortSignal, late: Promise<void>): Promise<void> {
    const each = (
      work: (pause: NodePause) => Promise<void>,
      until: AbortSignal,
    ): Promise<unknown> =>
      Promise.all([
        work(this.main),
        ...this.sides.map(({ pause }) => leaveOutLate(pause, () => work(pause), late, until)),
      ]);
    if (this.#order.planned) await each((pause) => pause.prepare(), signal);
    for (; ; this.#attempt += 1) {
      const attempt = new AbortController();
      const link = linkSignals([signal, attempt.signal]);
      const taking = this.#takeAll(each, link.signal);
      try {
        const left = new Promise<readonly AwaitedBlocker<Vertex>[]>(
          (resolve) => (this.#leave = resolve),
        );
        const blockers = await Promise.race([left, taking]);
        if (blockers === undefined) return;
        this.#leave = undefined;
        attempt.abort(new Error('the hold has left the queue'));
        this.#notify();
        // Nothing may be asked for once the queues have been left.
        await inTime(taking);
        await this.#leaveQueues();
        await this.#waitOutside(blockers, signal);
      } finally {
        link.release();
        this.#notify();
      }
    }
  }

  /** @returns undefined once all is kept. */
  async #takeAll(
    each: (work: (pause: NodePause) => Promise<void>, until: AbortSignal) => Promise<unknown>,
    signal: AbortSignal,
  ): Promise<undefined> {
    const isFirst = this.#attempt === 1;
    await each(async (pause) => {
      if (isFirst && !this.#order.planned) await pause.prepare();
      await pause.take(signal);
    }, signal);
    while (!this.#all.every(({ isComplete }) => isComplete)) {
      await each((pause) => pause.take(signal), signal);
    }
    signal.throwIfAborted();
    this.#leave = undefined;
    for (const pause of this.#all) pause.keep();
    return undefined;
  }

  #notify(): void {
    for (const { node } of this.#all) node.locks.condition.notify();
  }

  async #leaveQueues(): Promise<void> {
    await Promise.all(this.#all.filter((one) => !one.isLeftOut()).map((one) => one.leaveQueue()));
  }

  async #waitOutside(
    blockers: readonly AwaitedBlocker<Vertex>[],
    signal: AbortSignal,
  ): Promise<void> {
    const late = await this.#blocking.waitOutside(blockers, signal);
    const toEnd = late.filter(({ thenTerminate }) => thenTerminate);
    if (toEnd.length === 0) return;
    await Promise.all(toEnd.map(({ blocker }) => this.#terminate(blocker)));
    await delay(BETWEEN_TRIES_MS, undefined, { signal });
  }

  /** Decides about what was seen. */
  #see(graph: WaitGraph): void {
    if (this.#leave === undefined) return;
    const stayMs = stayOf(this.#attempt);
    const waiting = this.#all.flatMap((pause) => pause.sessions).filter(({ waiting }) => waiting);
    this.#blocking.see(graph, waiting, stayMs);
    const { planned, cooldownMs } = this.#order;
    const now = performance.now();
    const pauses = this.#all;
    const nodes = pauses.map((pause) => pause.see(stayMs));
    const decision = decide<Vertex, NodeLock>({
      nodes,
      since: (vertex) => this.#blocking.since(vertex),
      canEnd: (vertex) => this.#blocking.canEnd(vertex),
      isPlanned: planned,
      ageMs: now - this.#beganAt,
      ...{ cooldownMs, now },
    });
    for (const vertex of decision.terminate) void this.#terminate(vertex);
    for (const lock of decision.renounce) {
      const index = nodes.findIndex(({ waited }) => waited.includes(lock));
      pauses[index]?.renounce(lock, this.#nameBlockers(lock.long));
    }
    if (decision.leaveFor.length > 0) this.#leave(decision.leaveFor);
  }

  #nameBlockers(long: readonly Vertex[]): string {
    const named = long.flatMap((vertex) => this.#blocking.blocker(vertex) ?? []);
    if (named.length === 0) return 'sessions that wait for another hold had a conflicting lock';
    const names = named.map((one) => (one.pid === 0 ? 'a prepared transaction' : nameSession(one)));
    return `${names.join(', ')} had a conflicting lock`;
  }

  /** Sessions that wait for the hold are let through by yields; not for ever. */
  #stopYieldingLater(watch: Watch, signal: AbortSignal): () => void {
    let end = (): void => undefined;
    delay(2 * this.#order.cooldownMs, undefined, { signal }).then(
      () => (end = watch.neverYield(() => this.#all.flatMap((pause) => pause.sessions))),
      () => undefined,
    );
    return () => end();
  }

  async #giveUpAt(remainingMs: number, signal: AbortSignal): Promise<never> {
    await delay(remainingMs, undefined, { signal }).catch(() => new Promise(() => undefined));
    const blockers = this.#blocking.present();
    const named = blockers.map(describeBlocker).join('; ') || 'sessions that change all the time';
    throw new DatabaseStateError(
      'BLOCKED',
      `the hold could not be opened within its timeout: ${named} blocked it; end that and report again`,
    );
  }

  async #terminate(vertex: Vertex): Promise<void> {
    const now = performance.now();
    if (now - (this.#terminatedAt.get(vertex) ?? -Infinity) < TERMINATE_AGAIN_MS) return;
    this.#terminatedAt.set(vertex, now);
    const blocker = this.#blocking.blocker(vertex);
    const blockedMs = Math.round(now - this.#blocking.since(vertex));
    const isEnded = await this.#blocking.terminate(vertex).catch(() => false);
    if (!isEnded || blocker === undefined) return;
    this.#options.request.onTerminated();
    const fields = { ...fieldsOf(blocker), blockedMs };
    this.#options.logger.warn(fields, 'ended a session that blocked a hold for the cooldown');
  }

  #noteOf(blocker: Blocker): BlockerNote {
    const { server, pid, user, application, state, lastsMs, mayEnd, readAt } = blocker;
    const since = this.#blocking.since(server.vertexOf(pid));
    const ends = Number.isFinite(since) ? since + this.#order.cooldownMs : undefined;
    return {
      server: server.name,
      pid: pid === 0 ? null : pid,
      usename: user,
      application_name: application,
      state,
      since: lastsMs === null ? null : clockTime(readAt - lastsMs),
      blocks: 'hold',
      ends_at: mayEnd && ends !== undefined ? clockTime(ends) : null,
      described: describeBlocker(blocker),
    };
  }

  #sayCancelled(blocker: Blocker): void {
    const { server, pid, user, maintenance } = blocker;
    const blockedMs = Math.round(performance.now() - this.#blocking.directSince(blocker));
    const fields = { ...fieldsOf(blocker), maintenance, blockedMs };
    this.#options.request.onCancelled();
    this.#options.logger.warn(fields, 'cancelled a maintenance command that blocked a hold');
    this.#cancelled.push(
      `${maintenance ?? 'maintenance'} of pid ${pid} (user ${user}) on ${server.name} was cancelled`,
    );
  }

  /** Such a session, or a prepared transaction, blocks the hold until its timeout. */
  #sayMayNotEnd(blockers: readonly Blocker[]): void {
    for (const blocker of blockers) {
      const key = keyOf(blocker);
      if (blocker.mayEnd || blocker.pid === 0 || this.#unendable.has(key)) continue;
      this.#unendable.add(key);
      this.#options.logger.warn(
        fieldsOf(blocker),
        'this role may not end a session that blocks a hold',
      );
    }
  }

  #sayLost({ node }: NodePause): void {
    this.#options.logger.warn(
      { server: node.server.name },
      'sessions that pause traffic were lost; their locks are taken again',
    );
  }

  #regained(pause: NodePause, error: Error | undefined): void {
    const { logger } = this.#options;
    const fields = { server: pause.node.server.name };
    if (error === undefined) {
      logger.info(fields, 'traffic is paused again');
      return;
    }
    const why = `its session was lost: ${errorText(error)}`;
    logger.warn(
      { ...fields, err: error },
      'locks of a hold that were lost could not be taken again',
    );
    if (pause === this.main) pause.sayLost(why);
    else void pause.leaveOut(why);
    this.#sayReason();
  }

  /**
   * Sessions of the coordinator whose statements wait, on other nodes, for what this hold keeps there. What they
   * have locked is free again only after the hold.
   */
  async waiters(): Promise<ReadonlySet<number>> {
    const { server } = this.main.node;
    const found = await Promise.all(
      this.sides
        .filter(({ pause }) => pause.isHolding)
        .map(async ({ pause: { node, sessions } }) => {
          const own = sessions.map(({ pid }) => node.server.vertexOf(pid));
          // A node that does not answer says nothing of its waits.
          const waits = await node.server.waits().catch(() => []);
          return [...waitersOf(own, waits)];
        }),
    );
    return new Set(found.flat().flatMap((vertex) => server.pidOf(vertex) ?? []));
  }

  /** The clients that wait now for this hold, on each of its nodes. */
  async waitingClients(): Promise<WaitingClients> {
    const holding = this.#all.filter((pause) => pause.isHolding);
    const found = await Promise.all(
      holding.map(async ({ node: { server }, sessions }) =>
        server.waitingClients(sessions.map(({ pid }) => pid)).catch(() => undefined),
      ),
    );
    const answers = found.filter((one) => one !== undefined);
    const longest = answers.flatMap(({ longestMs }) => longestMs ?? []);
    return {
      sessions: answers.reduce((sum, { sessions }) => sum + sessions, 0),
      longestMs: longest.length === 0 ? null : Math.max(...longest),
    };
  }

  /** Resolves once no node pause is taking lost locks again. */
  async whole(): Promise<void> {
    await Promise.all(this.#all.map((pause) => pause.whole()));
  }

  /** The hold may last so many milliseconds from now. */
  extend(remainingMs: number): void {
    for (const pause of this.#all) if (!pause.isLeftOut()) pause.extend(remainingMs);
  }

  async release(): Promise<void> {
    await Promise.all(this.#all.map((pause) => pause.release()));
  }
}

/** @param at by performance.now() @returns ISO 8601 */
function clockTime(at: number): string {
  return new Date(performance.timeOrigin + at).toISOString();
}

/** For the log. pid is the controller's own in every line of it. */
function fieldsOf({ server, pid, user, application }: Blocker): Record<string, unknown> {
  return { server: server.name, sessionPid: pid, user, application };
}

async function leaveOutLate(
  pause: NodePause,
  work: () => Promise<void>,
  late: Promise<void>,
  signal: AbortSignal,
): Promise<void> {
  if (pause.isLeftOut()) return;
  const done = new AbortController();
  const over = linkSignals([done.signal, signal]);
  try {
    const why = await Promise.race([
      work().then(() => null),
      late.then(() => 'its locks could not be had in time'),
      untilSilent(pause.node, over.signal),
    ]);
    if (why !== null) await pause.leaveOut(why);
  } catch (error) {
    if (!signal.aborted) await pause.leaveOut(errorText(error));
  } finally {
    done.abort();
    over.release();
  }
}

async function rejectOn(signal: AbortSignal): Promise<never> {
  return new Promise((_, reject) => {
    const interrupt = (): void =>
      reject(signal.reason instanceof Error ? signal.reason : new SessionLostError('interrupted'));
    if (signal.aborted) interrupt();
    else signal.addEventListener('abort', interrupt, { once: true });
  });
}

/** How often a node is pinged, in milliseconds, once its part takes longer than that. */
const PING_MS = 250;
/** So many pings in a row may fail: a busy server may miss one. */
const MOST_MISSED = 2;

/** Resolves, with a sentence that says why, once a node counts as silent; never while it answers. */
async function untilSilent(node: PauseNode, signal: AbortSignal): Promise<string> {
  let why = '';
  for (let missed = 0; missed < MOST_MISSED;) {
    if (!(await slept(PING_MS, signal))) return new Promise(() => undefined);
    try {
      await node.ping();
      missed = 0;
    } catch (error) {
      missed += 1;
      why = `it has fallen silent: ${errorText(error)}`;
    }
  }
  return why;
}

/** @returns false when it was woken by the signal. */
async function slept(ms: number, signal: AbortSignal): Promise<boolean> {
  return delay(ms, true, { signal }).catch(() => false);
}
