import type { Pool } from 'pg';
import { LockTable } from '../../../locks/lock-table.js';
import { Server } from '../../../locks/server.js';
import type { Watch } from '../../../locks/watch.js';
import { queryAgain, type Queryable } from '../../../postgres/queries.js';
import { createPool, fill, type PoolOptions } from '../../../postgres/pool.js';
import type { Connection } from '../../../postgres/session.js';
import type { Transaction } from '../../../postgres/transaction.js';
import { type Address, formatAddress } from '../../../address.js';
import { nodeConnection } from '../../../postgres/connection/database-url.js';
import type { TrafficOptions } from '../../abstract.js';
import { TargetsReader } from './targets-reader.js';
import { targetsQuery } from './targets.js';

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

/** A node as pg_dist_node has it. */
export interface PrimaryRow {
  readonly nodeid: number;
  readonly groupid: number;
  readonly address: Address;
  /** True when clients' queries can enter through it. */
  readonly entry: boolean;
}

/** @returns every active primary; group 0 is the coordinator itself. */
export async function readPrimaries(db: Queryable): Promise<PrimaryRow[]> {
  const { rows } = await db.query<{
    nodeid: number;
    groupid: number;
    nodename: string;
    nodeport: number;
    entry: boolean;
  }>({ name: 'mpp-primaries', text: PRIMARIES });
  return rows.map(({ nodeid, groupid, nodename, nodeport, entry }) => ({
    nodeid,
    groupid,
    address: { host: nodename, port: nodeport },
    entry,
  }));
}

const PRIMARIES = `
  SELECT n.nodeid, n.groupid, n.nodename, n.nodeport, n.hasmetadata AS entry
  FROM pg_catalog.pg_dist_node AS n
  WHERE n.noderole = 'primary' AND n.isactive AND n.nodecluster = 'default'
  ORDER BY n.nodeid`;

export interface PauseNodeOptions {
  readonly key: string;
  readonly name: string;
  readonly connection: Connection;
  readonly schema: string;
  readonly watch: Watch;
  readonly connectMs: number;
  readonly sessions: NodeSessions;
  readonly severed: AbortSignal | undefined;
  /** Which server it must be, where that matters. */
  readonly check: Pick<PoolOptions, 'identity' | 'onOtherServer'> | undefined;
  readonly onIdleError: (error: Error) => void;
}

/** How many sessions there may be with one node. */
export interface NodeSessions {
  /** With locks. */
  readonly pause: number;
  /** To read lock waits. */
  readonly watch: number;
  /** Kept open while there is no hold. */
  readonly kept: { readonly pause: number; readonly watch: number };
}

/** What is kept for one node from hold to hold: its sessions, idle while there is none. */
export class PauseNode {
  readonly server: Server;
  /** For transactions that have locks. */
  readonly sessions: Pool;
  /** For statements that wait for nothing. */
  readonly checks: Pool;
  /** What holds lock here. */
  readonly locks: LockTable;
  readonly targets: TargetsReader;
  /** What holds need of the server's lock table. */
  readonly lockSpace = new LockSpace();
  readonly #watch: Watch;
  readonly #kept: NodeSessions['kept'];
  #ping: Promise<unknown> | undefined;
  /** By performance.now(). */
  #unreachedUntil = 0;

  constructor({
    key,
    name,
    connection,
    schema,
    watch,
    connectMs,
    sessions: most,
    severed,
    onIdleError,
    check,
  }: PauseNodeOptions) {
    const login = { ...connection, connectionTimeoutMillis: connectMs };
    const common = { schema, onIdleError, ...check, ...(severed && { severed }) };
    this.#kept = most.kept;
    this.checks = createPool(login, {
      purpose: 'watch',
      max: most.watch,
      min: most.kept.watch,
      statementTimeoutMs: CHECK_MOST_MS,
      silenceMs: CHECK_MOST_MS / 2,
      ...common,
    });
    this.sessions = createPool(login, {
      ...common,
      purpose: 'pause',
      max: most.pause,
      min: most.kept.pause,
    });
    this.targets = new TargetsReader(this.sessions);
    this.server = new Server({ key, name, watch: this.checks });
    const { server, sessions } = this;
    this.locks = new LockTable({
      ...{ server, sessions, watch },
      setup: OWN_TRANSACTION_ID,
      most: MOST_SHARED,
    });
    this.#watch = watch;
    watch.addServer(this.server);
  }

  /**
   * Has as many sessions open as a hold takes, so that it need not connect first, and knows the targets
   * of these groups. Where that failed it is left alone for a while.
   *
   * @throws when the node cannot be reached
   */
  async prewarm(groupids: readonly number[]): Promise<void> {
    if (performance.now() < this.#unreachedUntil) return;
    try {
      const { watch, pause } = this.#kept;
      await fill(this.checks, watch, (client) => client.query('SELECT'));
      await fill(this.sessions, pause, (client) => client.query(targetsQuery([])));
      await this.targets.refresh(groupids);
    } catch (error) {
      this.#unreachedUntil = performance.now() + UNREACHED_MS;
      throw error;
    }
  }

  /** Gives a transaction of a hold that began elsewhere what those of this node begin with. */
  async setUp({ client }: Transaction): Promise<void> {
    await client.query(OWN_TRANSACTION_ID);
  }

  /** @throws when it does not answer, or not soon. */
  async ping(): Promise<void> {
    this.#ping ??= queryAgain(this.checks, { text: 'SELECT' }).finally(
      () => (this.#ping = undefined),
    );
    await this.#ping;
  }

  async close(): Promise<void> {
    this.#watch.removeServer(this.server);
    await Promise.all([this.checks.end(), this.sessions.end()]);
  }
}

const UNREACHED_MS = 60_000;
/** Sessions for what holds share: four that queue, beside four that keep something. */
const MOST_SHARED = 8;
/** A server that takes longer to read its own locks is as good as unreachable. */
const CHECK_MOST_MS = 1_000;

/**
 * To Citus's detector of distributed deadlocks all local transactions of a node are one. A client that waits for
 * one session of a hold, while another session of a hold waits for that client, would be a cycle to it, and be
 * cancelled. So each transaction of a hold has an id of its own, which Citus gives to none: its numbers count from 1.
 */
const OWN_TRANSACTION_ID = `
  SELECT CASE WHEN (pg_catalog.get_current_transaction_id()).transaction_number = 0
    THEN pg_catalog.assign_distributed_transaction_id(
      l.groupid, ${2 ** 52} + pg_backend_pid(), clock_timestamp())
    END
  FROM pg_catalog.pg_dist_local_group AS l`;

/**
 * How many locks of one server's lock table holds have or are about to take, so that many small ones that
 * are opened together are not more than there is room for. Locks on tables are had in common: not counted.
 */
export class LockSpace {
  readonly #claims = new Map<object, number>();

  claim(holder: object, locks: number): void {
    this.#claims.set(holder, locks);
  }

  release(holder: object): void {
    this.#claims.delete(holder);
  }

  /** What all but this one have claimed. */
  claimedBeside(holder: object): number {
    let sum = 0;
    for (const [other, locks] of this.#claims) if (other !== holder) sum += locks;
    return sum;
  }
}
