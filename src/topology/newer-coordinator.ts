import type pg from 'pg';
import { DatabaseStateError } from '../errors.js';
import { Loop, within } from '../wait.js';
import { readStanding, type ServerIdentity } from '../postgres/identity.js';
import { nodeConnection, type NodeCredentials } from '../postgres/connection/database-url.js';
import { nameSchema } from '../postgres/schema-name.js';
import { type Connection, eachServer, openSession } from '../postgres/session.js';
import { type Address, formatAddress } from '../address.js';

/** A server of the same cluster that takes writes, on a later timeline: it was promoted after this one. */
interface NewerCoordinator {
  /** `host:port` where it answers. */
  readonly node: string;
  readonly timeline: number;
}

interface NewerCoordinatorSearch {
  /** SELECT of the catalog's rows, see AbstractMPP.nodesQuery: a constant, never input. */
  readonly nodesQuery: string;
  /** The schema of mpp-controller's objects. */
  readonly schema: string;
  /** The controller's, with all its servers; an address may reach another server by now. */
  readonly connection: Connection;
  /** As whom the other nodes are asked. */
  readonly credentials: NodeCredentials;
  /** Of the server that the controller works on. */
  readonly identity: ServerIdentity;
}

/** How long one server may take. An old coordinator that acts for want of an answer does harm. */
const ASK_MS = 2_000;

/**
 * Looks for a server that has taken the coordinator's place, and proves it: it is not in recovery, has
 * the same system identifier, and a later timeline. Who does not answer in time proves nothing; neither does
 * a server that does not tell its system identifier. Asked are
 *
 * - each address of the controller's own connection, which may be that of a proxy;
 * - the members of group 0, in the catalog here and in mpp_members;
 * - those that other nodes have for group 0. The new coordinator has sent it to them, and those that can be
 *   harmed by an old one can be asked by it.
 */
async function findNewerCoordinator(
  search: NewerCoordinatorSearch,
): Promise<NewerCoordinator | undefined> {
  const { connection, credentials, identity } = search;
  if (identity.systemIdentifier === null) return undefined;
  const asked = new Set<string>();
  const ask = async (addresses: readonly Address[]): Promise<NewerCoordinator | undefined> => {
    const fresh = addresses.filter(({ host, port }) => !asked.has(`${host} ${port}`));
    for (const { host, port } of fresh) asked.add(`${host} ${port}`);
    const answers = await Promise.all(
      fresh.map((address) =>
        visit(nodeConnection(credentials, address), (session) =>
          judge(session, formatAddress(address), identity),
        ),
      ),
    );
    return answers.find((newer) => newer !== undefined);
  };

  const answers = await Promise.all(
    eachServer(connection).map((server) =>
      visit({ ...server, targetSessionAttrs: 'any' }, async (session) => {
        const newer = await judge(session, 'the address of the connection', identity);
        return newer ? { newer } : { known: await readKnown(session, search) };
      }),
    ),
  );
  const newerHere = answers.find((answer) => answer?.newer)?.newer;
  if (newerHere) return newerHere;
  const known = answers.find((answer) => answer?.known)?.known;
  if (known === undefined) return undefined;
  const [newer, ...listed] = await Promise.all([
    ask(known.members),
    ...known.witnesses.map((address) =>
      visit(nodeConnection(credentials, address), (session) =>
        readCoordinator(session, search.nodesQuery),
      ),
    ),
  ]);
  return newer ?? ask(listed.flatMap((addresses) => addresses ?? []));
}

async function judge(
  session: pg.Client,
  node: string,
  { systemIdentifier, timeline }: ServerIdentity,
): Promise<NewerCoordinator | undefined> {
  const other = await readStanding(session);
  if (other.timeline === null || other.timeline <= timeline) return undefined;
  if (other.systemIdentifier !== systemIdentifier) return undefined;
  return { node, timeline: other.timeline };
}

/** @returns undefined when the node does not answer, or not in time. */
async function visit<T>(
  connection: Connection,
  work: (session: pg.Client) => Promise<T>,
): Promise<T | undefined> {
  let session: pg.Client | undefined;
  try {
    session = await openSession(
      { ...connection, connectionTimeoutMillis: ASK_MS, query_timeout: ASK_MS },
      'coordinator check',
    );
    return await work(session);
  } catch {
    return undefined;
  } finally {
    // A goodbye would wait for a host that has vanished.
    session?.connection.stream.destroy();
  }
}

interface Known {
  readonly members: readonly Address[];
  /** Nodes that have a copy of the catalog. */
  readonly witnesses: readonly Address[];
}

async function readKnown(session: pg.Client, search: NewerCoordinatorSearch): Promise<Known> {
  const { rows } = await nameSchema(session, search.schema).query<Address & { member: boolean }>(
    knownStatement(search.nodesQuery),
  );
  return {
    members: rows.filter(({ member }) => member),
    witnesses: rows.filter(({ member }) => !member),
  };
}

/** Other witnesses each time: in a large cluster a few tell, and a wrong one is not asked for ever. */
function knownStatement(nodesQuery: string): string {
  return `
  WITH node AS MATERIALIZED (
    ${nodesQuery}
  )
  (SELECT n.nodename AS host, n.nodeport AS port, true AS member
   FROM node AS n
   WHERE n.in_cluster AND n.groupid = 0)
  UNION ALL
  (SELECT m.nodename, m.nodeport, true
   FROM @mpp.mpp_members AS m
   WHERE m.groupid = 0 AND m.state <> 'removed'
   ORDER BY m.reported_at DESC
   LIMIT 10)
  UNION ALL
  (SELECT n.nodename, n.nodeport, false
   FROM node AS n
   WHERE n.in_cluster AND n.groupid <> 0 AND n.noderole = 'primary'
   ORDER BY random()
   LIMIT 5)`;
}

async function readCoordinator(session: pg.Client, nodesQuery: string): Promise<Address[]> {
  const { rows } = await session.query<Address>(`
    SELECT n.nodename AS host, n.nodeport AS port
    FROM (${nodesQuery}) AS n
    WHERE n.in_cluster AND n.groupid = 0 AND n.noderole = 'primary'`);
  return rows;
}

interface NewerCoordinatorWatchOptions extends NewerCoordinatorSearch {
  readonly intervalMs: number;
  /** Ends it like `stop`. */
  readonly signal: AbortSignal;
}

const STOP_MS = 500;

/**
 * Looks time and again whether another server has taken the place of the one that the controller works on: a
 * coordinator that was cut off, or crashed and came back as it was, does not know that it was replaced,
 * and what its controller did would reach the workers.
 *
 * It runs beside a standby, too, so that one that takes over need not look first.
 */
export class NewerCoordinatorWatch {
  readonly #options: NewerCoordinatorWatchOptions;
  readonly #loop: Loop;
  readonly #found = new AbortController();
  #first: Promise<void> | undefined;

  constructor(options: NewerCoordinatorWatchOptions) {
    this.#options = options;
    this.#loop = new Loop({
      intervalMs: options.intervalMs,
      signal: options.signal,
      work: () => this.#look(),
    });
  }

  /** Resolves when it has looked once. */
  async start(): Promise<void> {
    this.#first ??= this.#look().then(() => this.#loop.start());
    await this.#first;
  }

  /** A search that is under way asks servers that may not answer; it ends by itself soon. */
  async stop(): Promise<void> {
    await within(STOP_MS, this.#loop.stop(), undefined);
  }

  /** Aborted when there is one; its reason is a DatabaseStateError `REPLACED` that names it. */
  get found(): AbortSignal {
    return this.#found.signal;
  }

  async #look(): Promise<void> {
    const newer = await findNewerCoordinator(this.#options);
    if (newer === undefined) return;
    const { timeline } = this.#options.identity;
    const error = new DatabaseStateError(
      'REPLACED',
      `another server has become the coordinator: ${newer.node} takes writes on timeline ` +
        `${newer.timeline}, and this one is on ${timeline}; make this one its standby, or stop that one`,
      { retryable: true },
    );
    this.#found.abort(error);
  }
}
