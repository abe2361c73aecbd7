import type pg from 'pg';
import type { Queryable } from '../postgres/queries.js';
import type { AskNode } from '../mpp/abstract.js';
import type { NodeCheck } from '../mpp/node-answer.js';
import { nodeConnection, type NodeCredentials } from '../postgres/connection/database-url.js';
import { errorText, openSession } from '../postgres/session.js';
import { formatAddress, type Address } from '../address.js';
import { within } from '../wait.js';

/** How long a node may take to answer, in milliseconds. */
export const CHECK_MS = 2_000;
/** How long a session with a node is kept for the next question. */
const KEEP_MS = 60_000;
/** Nodes that one list has asked at the same time. */
const AT_ONCE = 16;

interface NodeCheckerOptions {
  readonly credentials: NodeCredentials;
  /** See AbstractMPP.prepareAsking. */
  readonly prepareAsking: (session: pg.Client) => Promise<AskNode>;
}

const NOT_ASKED: NodeCheck = { silence: 'others did not answer, so it was not asked yet' };
const STOPPING: NodeCheck = { silence: 'this controller is stopping' };

/** A session with one node, and how it is asked. */
interface Opened {
  readonly session: pg.Client;
  readonly ask: AskNode;
}

interface Entry {
  readonly opening: Promise<Opened>;
  /** False while it serves a list of nodes alone. */
  isKept: boolean;
  opened: Opened | undefined;
  idle: NodeJS.Timeout | undefined;
}

/**
 * Asks nodes what they are. The session with a node is kept for a minute, so that a node that was asked
 * before, or that `prefetch` has named, answers in one round trip.
 */
export class NodeChecker {
  readonly #options: NodeCheckerOptions;
  readonly #entries = new Map<string, Entry>();
  readonly #waiting = new Set<() => void>();
  #stopped = false;

  constructor(options: NodeCheckerOptions) {
    this.#options = options;
  }

  /** Begins to open the session with a node that will be asked soon. */
  prefetch(address: Address): void {
    if (!this.#stopped) this.#enter(address).isKept = true;
  }

  /**
   * Asks one node. Never throws.
   *
   * @param waitMs after how long it counts as silent. Opening its session goes on meanwhile.
   */
  async ask(address: Address, waitMs = CHECK_MS): Promise<NodeCheck> {
    this.prefetch(address);
    return this.#askWithin(address, waitMs);
  }

  /**
   * Asks many nodes, a few at a time, and keeps no session for it.
   *
   * @param waitMs how long all of it may take; who has not been asked by then counts as silent.
   */
  async askAll(addresses: readonly Address[], waitMs: number): Promise<NodeCheck[]> {
    const until = performance.now() + waitMs;
    const checks = new Array<NodeCheck>(addresses.length).fill(NOT_ASKED);
    const queue = [...addresses.entries()];
    const work = async (): Promise<void> => {
      for (let next = queue.shift(); next !== undefined; next = queue.shift()) {
        const left = until - performance.now();
        if (left <= 0) return;
        const [index, address] = next;
        checks[index] = await this.#askWithin(address, Math.ceil(left));
        const key = formatAddress(address);
        if (this.#entries.get(key)?.isKept === false) this.#discard(key);
      }
    };
    await Promise.all(Array.from({ length: AT_ONCE }, work));
    return checks;
  }

  /** Closes all sessions. Idempotent. */
  stop(): void {
    this.#stopped = true;
    for (const key of [...this.#entries.keys()]) this.#discard(key);
    for (const giveUp of this.#waiting) giveUp();
  }

  async #askWithin(address: Address, waitMs: number): Promise<NodeCheck> {
    let giveUp = (): void => undefined;
    const asked = new Promise<NodeCheck>((resolve) => {
      giveUp = () => resolve(STOPPING);
      void this.#ask(address).then(resolve);
    });
    this.#waiting.add(giveUp);
    try {
      return await within(waitMs, asked, { silence: `no answer within ${waitMs} ms` });
    } finally {
      this.#waiting.delete(giveUp);
    }
  }

  async #ask(address: Address): Promise<NodeCheck> {
    const key = formatAddress(address);
    for (;;) {
      if (this.#stopped) return STOPPING;
      const entry = this.#enter(address);
      const wasKept = entry.opened !== undefined;
      try {
        const { ask } = await entry.opening;
        return { answer: await ask() };
      } catch (error) {
        this.#discard(key, entry);
        // A kept session may have been terminated; a new one tells whether the server is there.
        if (!wasKept) return { silence: errorText(error) };
      }
    }
  }

  #enter(address: Address): Entry {
    const key = formatAddress(address);
    const entry = this.#entries.get(key) ?? this.#open(key, address);
    clearTimeout(entry.idle);
    entry.idle = setTimeout(() => this.#discard(key, entry), KEEP_MS);
    entry.idle.unref();
    return entry;
  }

  #open(key: string, address: Address): Entry {
    const entry: Entry = {
      opening: this.#connect(address),
      isKept: false,
      opened: undefined,
      idle: undefined,
    };
    this.#entries.set(key, entry);
    entry.opening.then(
      (opened) => {
        entry.opened = opened;
        if (this.#entries.get(key) !== entry) close(opened);
        else opened.session.once('end', () => this.#discard(key, entry));
      },
      // The next question opens a new one. A question that waits for this one reports the error.
      () => this.#discard(key, entry),
    );
    return entry;
  }

  async #connect(address: Address): Promise<Opened> {
    const { credentials, prepareAsking } = this.#options;
    const bounds = { connectionTimeoutMillis: CHECK_MS, query_timeout: CHECK_MS };
    const session = await openSession(
      { ...nodeConnection(credentials, address), ...bounds },
      'check',
    );
    try {
      return { session, ask: inTurn(await prepareAsking(session)) };
    } catch (error) {
      session.connection.stream.destroy();
      throw error;
    }
  }

  #discard(key: string, entry = this.#entries.get(key)): void {
    if (entry === undefined) return;
    clearTimeout(entry.idle);
    if (this.#entries.get(key) === entry) this.#entries.delete(key);
    if (entry.opened) close(entry.opened);
  }
}

/** A session takes one statement at a time; each question is asked by itself, since an earlier answer may be stale. */
function inTurn(ask: AskNode): AskNode {
  let last: Promise<unknown> = Promise.resolve();
  return async () => {
    const answer = last.then(ask);
    last = answer.catch(() => undefined);
    return answer;
  };
}

/** A goodbye would wait for a host that has vanished. */
function close({ session }: Opened): void {
  session.connection.stream.destroy();
}

/**
 * Makes a task that registers the server that the controller works on as the coordinator, if pg_dist_node has it at another address: so
 * after a failover of the coordinator, when no other source says so. Not when it has no row at all: to
 * register it is a decision.
 *
 * @param nodesQuery see AbstractMPP.nodesQuery
 * @param host by which the workers reach this server
 * @param port undefined for the one that it listens on
 * @returns true when it was reported.
 */
export async function reportOurselves(
  db: Queryable,
  nodesQuery: string,
  host: string,
  port: number | undefined,
): Promise<boolean> {
  const { rowCount } = await db.query({
    name: 'mpp-report-ourselves',
    text: `
      WITH node AS (${nodesQuery}), here AS (
        SELECT coalesce($2::integer, current_setting('port')::integer) AS port,
               ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::integer AS timeline
      )
      SELECT @mpp.mpp_submit('after_promote'::text, 0, $1::text, here.port, NULL::text[],
               NULL::interval, NULL::interval, NULL::text, 'sync'::text)
      FROM here
      JOIN node AS n ON n.in_cluster AND n.groupid = 0 AND n.noderole = 'primary'
      WHERE (n.nodename, n.nodeport) <> ($1::text, here.port)
        AND NOT EXISTS (
          SELECT FROM @mpp.mpp_tasks AS t WHERE t.finished_at IS NULL AND t.groupid = 0)
        AND NOT EXISTS (
          SELECT
          FROM @mpp.mpp_members AS m
          WHERE m.groupid = 0 AND m.role = 'primary' AND @mpp.mpp_is_up(m.state) AND m.timeline > here.timeline)
        AND NOT EXISTS (
          SELECT
          FROM (
            SELECT t.status, t.finished_at, t.nodename, t.nodeport
            FROM @mpp.mpp_tasks AS t
            WHERE t.groupid = 0 AND t.event = 'after_promote' AND t.source = 'sync'
            ORDER BY t.id DESC
            LIMIT 1
          ) AS last
          WHERE last.status IN ('failed', 'discarded', 'cancelled')
            AND last.finished_at > statement_timestamp() - interval '5 minutes'
            AND (last.nodename, last.nodeport) = ($1::text, here.port))`,
    values: [host, port],
  });
  return (rowCount ?? 0) > 0;
}
