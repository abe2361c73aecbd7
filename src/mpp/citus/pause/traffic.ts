import { setTimeout as delay } from 'node:timers/promises';
import type { Pool } from 'pg';
import { DatabaseStateError, SessionLostError } from '../../../errors.js';
import { type LockHolder, QUEUES } from '../../../locks/lock-table.js';
import { Watch } from '../../../locks/watch.js';
import type { Logger } from '../../../logger.js';
import { queryAgain, type Queryable } from '../../../postgres/queries.js';
import { errorText } from '../../../postgres/session.js';
import type { Outcome } from '../../../postgres/transaction.js';
import type { PauseShortfall } from '../../../tasks/observer.js';
import { linkSignals, within } from '../../../wait.js';
import type {
  LikelyPause,
  PauseRequest,
  Pausing,
  Prefetch,
  TrafficControl,
  TrafficOptions,
} from '../../abstract.js';
import { GroupPause } from './group-pause.js';
import {
  type PauseNode,
  type PrimaryRow,
  readPrimaries,
  type OtherNode,
  PauseNodes,
  prewarmNodes,
} from './nodes.js';
import { type PauseStrategy, STRATEGIES } from './strategies.js';

/** How long a node that has not got the new row keeps its traffic waiting after the commit. */
const SYNC_MOST_MS = 10_000;
/** How long the end of a hold waits for the answer whether it blocks DDL. */
const DDL_CHECK_MS = 50;

/** Citus looks at a table that it is to drop, or to refer to, with the lock of a read. */
const DDL =
  '^\\s*(ALTER|CREATE|DROP|GRANT|REVOKE|COMMENT)\\M|\\m(create|alter|undistribute)_\\w*table\\w*\\s*\\(';

/** Makes the traffic of groups wait, on every node through which queries can enter. */
export class CitusTraffic implements TrafficControl {
  readonly #options: TrafficOptions;
  readonly #watch: Watch;
  readonly #nodes: PauseNodes;
  readonly #endings = new Set<Promise<void>>();
  readonly #stopping = new AbortController();
  #prewarming: Promise<void> | undefined;

  constructor(options: TrafficOptions) {
    this.#options = options;
    const { logger } = options;
    this.#watch = new Watch({
      onError: (server, error) => {
        logger.debug({ err: error, server: server.name }, 'a check of lock waits failed');
      },
    });
    this.#nodes = new PauseNodes(options, this.#watch);
  }

  async pause(request: PauseRequest): Promise<Pausing> {
    const { primaries, readAt } = await primariesFor(request);
    const coordinator = this.#nodes.coordinator(primaries);
    const entries = this.#entries(primaries, request.node.groupid);
    this.#nodes.closeUnseen(readAt);
    let fellBack: string | null = null;
    for (const strategy of usableStrategies(request)) {
      try {
        return await this.#pauseWith(strategy, request, coordinator, entries, fellBack);
      } catch (error) {
        // A table of another owner may have come since the strategy was chosen.
        if (!(error instanceof DatabaseStateError) || error.code !== 'NOT_OWNER') throw error;
        if (strategy.coversShared) throw error;
        fellBack = error.message;
      }
    }
    throw new DatabaseStateError('NO_STRATEGY', fellBack ?? 'no way to make traffic wait is left');
  }

  async #pauseWith(
    strategy: PauseStrategy,
    request: PauseRequest,
    coordinator: PauseNode,
    entries: readonly OtherNode[],
    fellBack: string | null,
  ): Promise<Pausing> {
    const began = performance.now();
    const { checks } = this.#watch;
    const { pause, session } = request;
    const group = this.#groupPause(strategy, request, coordinator, entries);
    await openUnlessLost(group, request);
    const ending = new HoldEnd(coordinator, group, this.#options.logger);
    session.onEnd((outcome) => this.#end(ending, outcome));
    const instead = fellBack === null ? [] : [`held with ${strategy.name}: ${fellBack}`];
    const reasonNow = (): string | null =>
      [...instead, ...(group.reason === null ? [] : [group.reason])].join('; ') || null;
    const tookMs = Math.round(performance.now() - began);
    const counts = { tookMs, yields: group.yields, checks: this.#watch.checks - checks };
    const how = { strategy: strategy.name, pause, nodes: 1 + entries.length };
    const fields = { groupid: request.node.groupid, ...how, ...counts };
    sayWaits(this.#options.logger, fields, reasonNow());
    return {
      get reason() {
        return reasonNow();
      },
      get shortfalls() {
        return shortfallsOf(group, fellBack);
      },
      ...{ strategy: strategy.name, locksNodes: strategy.locksNodes },
      whole: () => group.whole(),
      ...{ waiters: () => group.waiters(), waitingClients: () => group.waitingClients() },
      retarget: (held, rows, to, ms) => strategy.retarget(session.client, held, rows, to, ms),
      expectCommit: () => ending.expectCommit(),
      extend: (remainingMs) => group.extend(remainingMs),
    };
  }

  #groupPause(
    strategy: PauseStrategy,
    request: PauseRequest,
    coordinator: PauseNode,
    entries: readonly OtherNode[],
  ): GroupPause {
    const { node, nodes, cooldownMs, means, session } = request;
    return new GroupPause({
      ...{ request, coordinator, logger: this.#options.logger },
      watch: this.#watch,
      sides: entries.map(({ row, node: side }) => ({ nodeid: row.nodeid, node: side })),
      group: {
        transaction: session,
        coversShared: strategy.coversShared,
        locksFor: (targets) => {
          const forceAfterMs = means.maySignal ? undefined : cooldownMs;
          return strategy.locks({ node, nodes, targets, forceAfterMs });
        },
      },
    });
  }

  prefetch(likely: LikelyPause): Prefetch {
    const coordinator = this.#nodes.coordinator();
    return new Prefetched(likely, readPrimaries(coordinator.checks), (primaries) => [
      coordinator,
      ...this.#entries(primaries, likely.groupid).map(({ node }) => node),
    ]);
  }

  /** The other nodes whose traffic of the group enters there: the group's own needs no other's leave. */
  #entries(primaries: readonly PrimaryRow[], groupid: number): OtherNode[] {
    return this.#nodes.others(primaries).filter(({ row }) => row.entry && row.groupid !== groupid);
  }

  /** One at a time: a second call waits for the first. */
  async prewarm(db: Queryable): Promise<void> {
    this.#prewarming ??= this.#prewarm(db).finally(() => (this.#prewarming = undefined));
    await this.#prewarming;
  }

  async #prewarm(db: Queryable): Promise<void> {
    try {
      const primaries = await readPrimaries(db);
      const others = this.#nodes.others(primaries).filter(({ row }) => row.entry);
      const groupids = primaries.map(({ groupid }) => groupid);
      const onFailure = (node: PauseNode, error: unknown): void => this.#sayUnreached(node, error);
      // A hold cannot do without the coordinator.
      for (const nodes of [[this.#nodes.coordinator(primaries)], others.map(({ node }) => node)]) {
        await prewarmNodes(nodes, groupids, onFailure, this.#stopping.signal);
      }
    } catch (error) {
      this.#options.logger.debug({ err: error }, 'no sessions were opened ahead');
    }
  }

  #sayUnreached({ server }: PauseNode, error: unknown): void {
    const fields = { err: error, server: server.name };
    this.#options.logger.debug(fields, 'a node could not be connected to ahead of a hold');
  }

  async stop(): Promise<void> {
    this.#stopping.abort();
    await this.#prewarming;
    await Promise.all(this.#endings);
    await this.#nodes.close();
  }

  #end(hold: HoldEnd, outcome: Outcome): void {
    const sync = (nodeids?: readonly number[]): Promise<void> =>
      outcome === 'rolled back' ? Promise.resolve() : this.#untilSynced(hold.coordinator, nodeids);
    const ending = hold
      .end(sync)
      .catch((error: unknown) => {
        this.#options.logger.warn(
          { err: error },
          `a hold was not ended cleanly: ${errorText(error)}`,
        );
      })
      .finally(() => this.#endings.delete(ending));
    this.#endings.add(ending);
  }

  async #untilSynced({ checks }: PauseNode, nodeids?: readonly number[]): Promise<void> {
    if (nodeids?.length === 0) return;
    const late = await waitUntilSynced(checks, nodeids, SYNC_MOST_MS, this.#stopping.signal);
    if (late.length === 0) return;
    const fields = { nodeids: late, waitedMs: SYNC_MOST_MS };
    this.#options.logger.warn(fields, 'nodes have not got the metadata; their traffic goes on');
  }
}

/** The group's session may be lost meanwhile. */
async function openUnlessLost(group: GroupPause, { session, signal }: PauseRequest): Promise<void> {
  const lost = new AbortController();
  session.onLost(() => lost.abort(new SessionLostError('the session of the group was lost')));
  const link = linkSignals([signal, lost.signal]);
  await group.open(link.signal).finally(() => link.release());
}

/** How the node pauses of one hold end. */
class HoldEnd {
  readonly coordinator: PauseNode;
  readonly #group: GroupPause;
  readonly #logger: Logger;
  #isBlockingDdl: Promise<boolean> | undefined;

  constructor(coordinator: PauseNode, group: GroupPause, logger: Logger) {
    this.coordinator = coordinator;
    this.#group = group;
    this.#logger = logger;
  }

  /** The change is about to be committed. */
  expectCommit(): void {
    this.#isBlockingDdl ??= this.#group.main.isBlockingDdl(DDL).catch(() => false);
  }

  /**
   * The coordinator's traffic goes on at once, that of another node once it has the new row: before, it would
   * send statements to the old primary. Where DDL waits on the coordinator, which Citus refuses until all
   * nodes have the row, the tables stay locked until then: what queues behind the DDL would wait for it in
   * any case.
   *
   * @param synced resolves once these nodes have the new row, or all
   */
  async end(synced: (nodeids?: readonly number[]) => Promise<void>): Promise<void> {
    const { main, sides } = this.#group;
    // A node that is down gets no metadata, and must not keep the others waiting.
    const holding = sides.filter(({ pause }) => pause.isHolding);
    const waitsForDdl =
      this.#isBlockingDdl && (await within(DDL_CHECK_MS, this.#isBlockingDdl, false));
    const endMain = async (): Promise<void> => {
      try {
        if (waitsForDdl) {
          this.#logger.info(
            { server: main.node.server.name },
            'DDL waits for tables of a hold: they stay locked here until all nodes have the new row',
          );
          await synced();
        }
      } finally {
        await main.release();
      }
    };
    const endSides = async (): Promise<void> => {
      try {
        await synced(holding.map(({ nodeid }) => nodeid));
      } finally {
        await Promise.all(sides.map(({ pause }) => pause.release()));
      }
    };
    await Promise.all([endMain(), endSides()]);
  }
}

async function primariesFor({
  prefetch,
  session,
}: PauseRequest): Promise<{ primaries: readonly PrimaryRow[]; readAt: number }> {
  if (prefetch instanceof Prefetched) {
    const { primaries, readAt } = prefetch;
    const read = await primaries;
    if (read) return { primaries: read, readAt };
  }
  const readAt = performance.now();
  return { primaries: await readPrimaries(session.client), readAt };
}

function usableStrategies({ means }: PauseRequest): PauseStrategy[] {
  return STRATEGIES.filter(({ name }) => means.strategies.includes(name));
}

/** A transaction that is shared with a hold must not be bounded by less than the hold needs. */
const LONGER_MS = 1_000;

/** The sessions and reads of a hold that may come to be. */
class Prefetched implements Prefetch {
  /** Undefined when they could not be read. */
  readonly primaries: Promise<readonly PrimaryRow[] | undefined>;
  /** When they were asked for, by performance.now(). */
  readonly readAt = performance.now();
  #isOver = false;
  readonly #holders: LockHolder[] = [];

  /**
   * @param read the primaries of all groups
   * @param entriesOf the nodes where traffic of the group may have to wait
   */
  constructor(
    likely: LikelyPause,
    read: Promise<readonly PrimaryRow[]>,
    entriesOf: (primaries: readonly PrimaryRow[]) => readonly PauseNode[],
  ) {
    this.primaries = read.then(
      (primaries) => {
        for (const node of entriesOf(primaries)) this.#prepare(node, likely);
        return primaries;
      },
      () => undefined,
    );
  }

  end(): void {
    this.#isOver = true;
    for (const holder of this.#holders.splice(0)) void holder.leave();
  }

  #prepare(node: PauseNode, { groupid, remainingMs }: LikelyPause): void {
    if (this.#isOver) return;
    // What fails here fails again where it is needed, and is reported there.
    node.targets.known(groupid).targets.catch(() => undefined);
    const holder = node.locks.join({
      purpose: `pause of group ${groupid}`,
      remainingMs: remainingMs + LONGER_MS,
      onLost: () => undefined,
      onFailure: () => undefined,
    });
    this.#holders.push(holder);
    holder.open(QUEUES).catch(() => undefined);
  }
}

/** Citus takes 50 to 230 ms; each look is a read of a few rows. */
const LOOK_MS = 5;

/**
 * Waits until nodes have the metadata of the last commit.
 *
 * @param looks sessions with the coordinator
 * @param nodeids undefined: all that have metadata
 * @param mostMs how long to wait
 * @returns the nodes that have not got it by then
 */
export async function waitUntilSynced(
  looks: Pool,
  nodeids: readonly number[] | undefined,
  mostMs: number,
  signal: AbortSignal,
): Promise<number[]> {
  const until = performance.now() + mostMs;
  for (;;) {
    const { rows } = await queryAgain<{ nodeid: number }>(looks, {
      name: 'mpp-unsynced',
      text: UNSYNCED,
      values: [nodeids ?? null],
    });
    if (rows.length === 0 || signal.aborted || performance.now() >= until) {
      return rows.map(({ nodeid }) => nodeid);
    }
    await delay(LOOK_MS, undefined, { signal }).catch(() => undefined);
  }
}

const UNSYNCED = `
  SELECT n.nodeid
  FROM pg_catalog.pg_dist_node AS n
  WHERE n.hasmetadata AND n.isactive AND NOT n.metadatasynced
    AND ($1::integer[] IS NULL OR n.nodeid = ANY ($1::integer[]))`;

function sayWaits(logger: Logger, fields: object, reason: string | null): void {
  if (reason === null) logger.info(fields, 'traffic waits');
  else logger.info({ ...fields, reason }, 'traffic waits; see its reason');
}

function shortfallsOf(group: GroupPause, fellBack: string | null): PauseShortfall[] {
  return [...(fellBack === null ? [] : ['strategy' as const]), ...group.shortfalls];
}
