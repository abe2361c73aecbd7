import { DatabaseStateError, SessionLostError } from '../../../errors.js';
import { linkSignals } from '../../../linked-signal.js';
import { Watch } from '../../../locks/watch.js';
import { errorText } from '../../../postgres/session.js';
import type { Logger } from '../../../observe/logger.js';
import type { Queryable } from '../../../postgres/queryable.js';
import type { Outcome } from '../../../postgres/transaction.js';
import type {
  LikelyPause,
  Pausing,
  PauseRequest,
  Prefetch,
  TrafficControl,
  TrafficOptions,
} from '../../abstract.js';
import { within } from '../../../within.js';
import { GroupPause } from './group-pause.js';
import { readPrimaries, type PauseNode, type PrimaryRow } from './node.js';
import { PauseNodes, type OtherNode } from './nodes.js';
import { Prefetched } from './prefetch.js';
import { prewarmNodes } from './prewarm.js';
import { STRATEGIES, type PauseStrategy } from './strategies.js';
import { waitUntilSynced } from './synced.js';

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
    const { node, nodes, pause, cooldownMs, means, session } = request;
    const { logger } = this.#options;
    const group = new GroupPause({
      ...{ request, coordinator, logger },
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
    const lost = new AbortController();
    session.onLost(() => lost.abort(new SessionLostError('the session of the group was lost')));
    const link = linkSignals([request.signal, lost.signal]);
    await group.open(link.signal).finally(() => link.release());
    const ending = new HoldEnd(coordinator, group, logger);
    session.onEnd((outcome) => this.#end(ending, outcome));
    const instead = fellBack === null ? null : `held with ${strategy.name}: ${fellBack}`;
    const reasonNow = (): string | null =>
      [instead, group.reason].filter((one) => one !== null).join('; ') || null;
    const reason = reasonNow();
    logger.info(
      {
        groupid: node.groupid,
        strategy: strategy.name,
        pause,
        nodes: 1 + entries.length,
        tookMs: Math.round(performance.now() - began),
        yields: group.yields,
        checks: this.#watch.checks - checks,
        ...(reason !== null && { reason }),
      },
      reason === null ? 'traffic waits' : 'traffic waits; see its reason',
    );
    return {
      get reason() {
        return reasonNow();
      },
      whole: () => group.whole(),
      waiters: () => group.waiters(),
      strategy: strategy.name,
      locksNodes: strategy.locksNodes,
      retarget: (held, rows, target, ms) =>
        strategy.retarget(session.client, held, rows, target, ms),
      expectCommit: () => ending.expectCommit(),
      extend: (remainingMs) => group.extend(remainingMs),
    };
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
