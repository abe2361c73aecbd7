import type { Watch } from '../../../locks/watch.js';
import { nodeConnection } from '../../../postgres/node-connection.js';
import type { Connection } from '../../../postgres/session.js';
import { formatAddress } from '../../../address.js';
import type { TrafficOptions } from '../../abstract.js';
import { type NodeSessions, PauseNode, type PauseNodeOptions, type PrimaryRow } from './node.js';

/** How long it may take to reach a node, in milliseconds; it is left out of a hold then. */
const CONNECT_MS = 2_000;
/** The coordinator cannot be left out, and may only be busy. */
const CONNECT_COORDINATOR_MS = 10_000;

const COORDINATOR = 'coordinator';

const UNBOUNDED = { groups: 0, pause: 10_000, watch: 4, kept: { pause: 5, watch: 2 } };
type Sessions = Pick<NonNullable<TrafficOptions['sessions']>, 'groups' | 'pause' | 'watch'> & {
  readonly kept: NodeSessions['kept'];
};

/** On other nodes each group that is held has a session of its own beside those that holds share. */
function sideSessions({ groups, pause, watch, kept }: Sessions): NodeSessions {
  return { pause: pause + groups, watch, kept };
}

/** A node that is not the coordinator, and its row. */
export interface OtherNode {
  readonly row: PrimaryRow;
  readonly node: PauseNode;
}

/** The nodes that traffic enters through, or that queries go to; each is kept for as long as its row says so. */
export class PauseNodes {
  readonly #options: TrafficOptions;
  readonly #watch: Watch;
  /** By nodeid and address, with when it was asked for last, by performance.now(). */
  readonly #nodes = new Map<string, { readonly node: PauseNode; seenAt: number }>();

  constructor(options: TrafficOptions, watch: Watch) {
    this.#options = options;
    this.#watch = watch;
  }

  /** It is reached as ever, whatever address its row has: it is the server that the controller works on. */
  coordinator(primaries: readonly PrimaryRow[] = []): PauseNode {
    const row = primaries.find(({ groupid }) => groupid === 0);
    const { connection, identity, onOtherServer } = this.#options;
    const node = this.#node(COORDINATOR, {
      key: '0',
      name: 'the coordinator',
      connection,
      connectMs: CONNECT_COORDINATOR_MS,
      sessions: this.#options.sessions ?? UNBOUNDED,
      check: { identity, onOtherServer },
    });
    if (row) node.server.isKnownAs(String(row.nodeid), formatAddress(row.address));
    return node;
  }

  others(primaries: readonly PrimaryRow[]): OtherNode[] {
    return primaries.filter(({ groupid }) => groupid !== 0).map((row) => this.#other(row));
  }

  /**
   * Sessions with a node that has moved are of no use any more.
   *
   * @param readAt when the rows were asked for that do not have it: another caller may know newer ones.
   */
  closeUnseen(readAt: number): void {
    for (const [id, { node, seenAt }] of this.#nodes) {
      if (id === COORDINATOR || seenAt >= readAt) continue;
      this.#nodes.delete(id);
      void node.close();
    }
  }

  async close(): Promise<void> {
    await Promise.all([...this.#nodes.values()].map(({ node }) => node.close()));
    this.#nodes.clear();
  }

  #other(row: PrimaryRow): OtherNode {
    const [key, name] = [String(row.nodeid), formatAddress(row.address)];
    const connection = nodeConnection(this.#options.node, row.address);
    const sessions = sideSessions(this.#options.sessions ?? UNBOUNDED);
    const options = { key, name, connection, connectMs: CONNECT_MS, sessions, check: undefined };
    return { row, node: this.#node(`${key} at ${name}`, options) };
  }

  #node(
    id: string,
    options: {
      key: string;
      name: string;
      connection: Connection;
      connectMs: number;
      sessions: NodeSessions;
      check: PauseNodeOptions['check'];
    },
  ): PauseNode {
    const known = this.#nodes.get(id);
    if (known) {
      known.seenAt = performance.now();
      return known.node;
    }
    const { schema, logger, severed } = this.#options;
    const node: PauseNode = new PauseNode({
      ...options,
      schema,
      severed,
      watch: this.#watch,
      onIdleError: (error) =>
        logger.debug({ err: error, server: node.server.name }, 'an idle session was lost'),
    });
    this.#nodes.set(id, { node, seenAt: performance.now() });
    return node;
  }
}

/** So many nodes are connected to at the same time. */
const AT_ONCE = 8;
/** Of so many groups, counted for each node, the list of locks is kept: some 40 MB at the most. */
const MOST_KNOWN = 1_024;

/**
 * Makes nodes ready for holds, until the signal.
 *
 * @param onFailure called for each that cannot be connected to
 */
export async function prewarmNodes(
  nodes: readonly PauseNode[],
  groupids: readonly number[],
  onFailure: (node: PauseNode, error: unknown) => void,
  signal: AbortSignal,
): Promise<void> {
  const next = nodes.values();
  const known = nodes.length * groupids.length > MOST_KNOWN ? [] : groupids;
  const work = async (): Promise<void> => {
    for (const node of next) {
      if (signal.aborted) return;
      await node.prewarm(known).catch((error: unknown) => onFailure(node, error));
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, work));
}
