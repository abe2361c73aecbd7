import type { LockSession } from '../../../drain/lock-session.js';
import { Watch } from '../../../drain/watch.js';
import { DatabaseStateError, SessionLostError } from '../../../errors.js';
import type { Queryable } from '../../../postgres/queryable.js';
import { linkSignals } from '../../../linked-signal.js';
import { errorText } from '../../../postgres/session.js';
import type { Outcome } from '../../../postgres/transaction.js';
import type {
  Anticipation,
  LikelyPause,
  Pausing,
  PauseRequest,
  TrafficControl,
  TrafficOptions,
} from '../../abstract.js';
import { Anticipated } from './anticipated.js';
import { Lane } from './lane.js';
import { readPrimaries, type PrimaryRow, type TrafficNode } from './node.js';
import { TrafficNodes, type OtherNode } from './nodes.js';
import { openLanes, type SideLane } from './opening.js';
import { tellBlockers } from './long-blockers.js';
import { inTime, watched } from './shared-set.js';
import { STRATEGIES, type PauseStrategy } from './strategies.js';
import { waitUntilSynced } from './synced.js';
import { warmNodes } from './warming.js';

/** How long a node that has not got the new row keeps its traffic waiting after the commit. */
const SYNC_MOST_MS = 10_000;

/** The lanes of one hold. */
interface Lanes {
  readonly main: Lane;
  readonly side: readonly SideLane[];
}

/** Makes the traffic of groups wait, on every node through which queries can enter. */
export class CitusTraffic implements TrafficControl {
  readonly #options: TrafficOptions;
  readonly #watch: Watch;
  readonly #nodes: TrafficNodes;
  readonly #endings = new Set<Promise<void>>();
  readonly #stopping = new AbortController();
  #warming: Promise<void> | undefined;

  constructor(options: TrafficOptions) {
    this.#options = options;
    const { logger } = options;
    this.#watch = new Watch({
      onEnded: ({ ended, pid, ...session }, waitedMs) => {
        // pid is the controller's own in every line of the log.
        const fields = { sessionPid: pid, ...session, waitedMs: Math.round(waitedMs) };
        if (ended) logger.warn(fields, 'ended a session that was in the way of a hold');
        else logger.warn(fields, 'this role may not end a session that is in the way of a hold');
      },
      onError: (server, error) => {
        logger.debug({ err: error, server: server.name }, 'a look at lock waits failed');
      },
    });
    this.#nodes = new TrafficNodes(options, this.#watch);
  }

  async pause(request: PauseRequest): Promise<Pausing> {
    const end = tellBlockers(request, this.#watch);
    try {
      return await this.#pause(request);
    } finally {
      end();
    }
  }

  async #pause(request: PauseRequest): Promise<Pausing> {
    const began = performance.now();
    const looks = this.#watch.looks;
    const { primaries, readAt } = await primariesFor(request);
    const coordinator = this.#nodes.coordinator(primaries);
    const entries = this.#entries(primaries, request.node.groupid);
    this.#nodes.closeUnseen(readAt);
    const locks = watched(coordinator.server, this.#watch, request.session);
    let fellBack: string | null = null;
    for (const strategy of usableStrategies(request)) {
      try {
        const lanes = await this.#open(request, strategy, coordinator, entries, locks);
        request.session.onEnd((outcome) => this.#end(coordinator, lanes, outcome));
        const held = pausing(request, strategy, lanes, fellBack);
        this.#options.logger.info(
          {
            groupid: request.node.groupid,
            strategy: strategy.name,
            pause: request.pause,
            nodes: 1 + lanes.side.length,
            tookMs: Math.round(performance.now() - began),
            yields: lanes.main.yields + lanes.side.reduce((sum, { lane }) => sum + lane.yields, 0),
            looks: this.#watch.looks - looks,
            ...(held.reason !== null && { reason: held.reason }),
          },
          held.reason === null ? 'traffic waits' : 'less traffic waits than was asked for',
        );
        return held;
      } catch (error) {
        // A table of another owner may have come since the strategy was chosen.
        if (!(error instanceof DatabaseStateError) || error.code !== 'NOT_OWNER') throw error;
        if (strategy.coversShared) throw error;
        fellBack = error.message;
      }
    }
    throw new DatabaseStateError('NO_STRATEGY', fellBack ?? 'no way to make traffic wait is left');
  }

  anticipate(likely: LikelyPause): Anticipation {
    const coordinator = this.#nodes.coordinator();
    return new Anticipated(likely, readPrimaries(coordinator.looks), (primaries) => [
      coordinator,
      ...this.#entries(primaries, likely.groupid).map(({ node }) => node),
    ]);
  }

  /** The other nodes whose traffic of the group enters there: the group's own needs no other's leave. */
  #entries(primaries: readonly PrimaryRow[], groupid: number): OtherNode[] {
    return this.#nodes.others(primaries).filter(({ row }) => row.entry && row.groupid !== groupid);
  }

  /** Whoever is asked while it is at it joins in. */
  async warm(db: Queryable): Promise<void> {
    this.#warming ??= this.#warm(db).finally(() => (this.#warming = undefined));
    await this.#warming;
  }

  async #warm(db: Queryable): Promise<void> {
    try {
      const primaries = await readPrimaries(db);
      const others = this.#nodes.others(primaries).filter(({ row }) => row.entry);
      const nodes = [this.#nodes.coordinator(primaries), ...others.map(({ node }) => node)];
      const groupids = primaries.map(({ groupid }) => groupid);
      const onFailure = (node: TrafficNode, error: unknown): void => this.#sayCold(node, error);
      await warmNodes(nodes, groupids, onFailure, this.#stopping.signal);
    } catch (error) {
      this.#options.logger.debug({ err: error }, 'no sessions were opened ahead');
    }
  }

  #sayCold({ server }: TrafficNode, error: unknown): void {
    const fields = { err: error, server: server.name };
    this.#options.logger.debug(fields, 'a node could not be connected to ahead of a hold');
  }

  async stop(): Promise<void> {
    this.#stopping.abort();
    await this.#warming;
    await Promise.all(this.#endings);
    await this.#nodes.close();
  }

  async #open(
    request: PauseRequest,
    strategy: PauseStrategy,
    coordinator: TrafficNode,
    entries: readonly OtherNode[],
    locks: LockSession,
  ): Promise<Lanes> {
    const { node, nodes, pause, planned, cooldownMs, remainingMs, means } = request;
    const order = { groupid: node.groupid, pause, planned, cooldownMs, remainingMs };
    let open = false;
    const lost = new AbortController();
    const onLost = (): void =>
      open
        ? request.onLost()
        : lost.abort(new SessionLostError('a session that makes traffic wait was lost'));
    request.session.onLost(onLost);
    const main = new Lane(
      coordinator,
      this.#watch,
      { ...order, onLost },
      {
        locks,
        coversShared: strategy.coversShared,
        unitsFor: (targets) => {
          const forceAfterMs = means.maySignal ? undefined : cooldownMs;
          return strategy.units({ node, nodes, targets, forceAfterMs });
        },
      },
    );
    const side = entries.map(({ row, node: place }) => {
      const onLost = (): void => this.#sideLost(lane);
      const lane: Lane = new Lane(place, this.#watch, { ...order, onLost });
      return { nodeid: row.nodeid, lane };
    });
    const link = linkSignals([request.signal, lost.signal]);
    const opening = { planned, cooldownMs, remainingMs, signal: link.signal };
    try {
      const lanes = { main, side: await openLanes(main, side, opening) };
      open = true;
      return lanes;
    } finally {
      link.release();
    }
  }

  /** The node may be gone: nobody waits for it any more, neither its traffic nor the hold. */
  #sideLost(lane: Lane): void {
    this.#options.logger.warn(
      { server: lane.node.server.name },
      'a session that made traffic wait on another node was lost; what enters there goes on',
    );
    void lane.leaveOut('its session was lost');
  }

  /** The coordinator's traffic goes on at once, that of other nodes once they know the new row. */
  #end(coordinator: TrafficNode, { main, side }: Lanes, outcome: Outcome): void {
    const ending = Promise.all([main.release(), this.#endSide(coordinator, side, outcome)])
      .catch((error: unknown) => {
        this.#options.logger.warn(
          { err: error },
          `a hold was not ended cleanly: ${errorText(error)}`,
        );
      })
      .then(() => undefined)
      .finally(() => this.#endings.delete(ending));
    this.#endings.add(ending);
  }

  async #endSide(
    { looks }: TrafficNode,
    side: readonly SideLane[],
    outcome: Outcome,
  ): Promise<void> {
    // A node that is down gets no metadata, and must not keep the others waiting.
    const nodeids = side.filter(({ lane }) => lane.isHeld).map(({ nodeid }) => nodeid);
    try {
      if (outcome !== 'rolled back' && nodeids.length > 0) {
        const late = await waitUntilSynced(looks, nodeids, SYNC_MOST_MS, this.#stopping.signal);
        if (late.length > 0) {
          const fields = { nodeids: late, waitedMs: SYNC_MOST_MS };
          this.#options.logger.warn(
            fields,
            'nodes have not got the metadata; their traffic goes on',
          );
        }
      }
    } finally {
      await Promise.all(side.map(({ lane }) => lane.release()));
    }
  }
}

async function primariesFor({
  ahead,
  session,
}: PauseRequest): Promise<{ primaries: readonly PrimaryRow[]; readAt: number }> {
  if (ahead instanceof Anticipated) {
    const { primaries, readAt } = ahead;
    const read = await primaries;
    if (read) return { primaries: read, readAt };
  }
  const readAt = performance.now();
  return { primaries: await readPrimaries(session.client), readAt };
}

function usableStrategies({ means }: PauseRequest): PauseStrategy[] {
  return STRATEGIES.filter(({ name }) => means.strategies.includes(name));
}

function pausing(
  { session }: PauseRequest,
  strategy: PauseStrategy,
  { main, side }: Lanes,
  fellBack: string | null,
): Pausing {
  const instead = fellBack === null ? null : `held with ${strategy.name}: ${fellBack}`;
  const reasons = [instead, main.reason, ...side.map(({ lane }) => lane.reason)];
  return {
    reason: reasons.filter((reason) => reason !== null).join('; ') || null,
    strategy: strategy.name,
    locksNodes: strategy.locksNodes,
    retarget: (held, nodes, target, cooldownMs) =>
      strategy.retarget(session.client, held, nodes, target, cooldownMs),
    async extend(remainingMs) {
      await main.extend(remainingMs);
      // A node that has fallen silent must not keep what comes next from the group's turn.
      await Promise.all(side.map(({ lane }) => inTime(lane.extend(remainingMs))));
    },
  };
}
