import { setTimeout as delay } from 'node:timers/promises';
import type { Pool } from 'pg';
import { queryAgain, queryOnce } from '../postgres/queries.js';
import { partsOf, vertexOf, type Edge, type Vertex } from './decisions.js';

/** A session, or a prepared transaction (pid 0), that blocks a lock. */
export interface BlockingSession {
  readonly pid: number;
  /** Tells what it does now from what it did before and will do later; a prepared transaction's gid. */
  readonly transaction: string;
  readonly user: string;
  readonly application: string;
  /** As in pg_stat_activity; null where this role may not see it. */
  readonly state: string | null;
  /** Since when, as HH:MM:SS in UTC; null where this role may not see it. */
  readonly since: string | null;
  /** For how long, in milliseconds; null where this role may not see it. */
  readonly lastsMs: number | null;
  /** The command, such as VACUUM, where it is maintenance that can be repeated; else null. */
  readonly maintenance: string | null;
  /** Whether this role may end the session. */
  readonly mayEnd: boolean;
}

/** One server on which locks are taken, or whose lock waits say which sessions block which. */
export class Server {
  #key: string;
  #name: string;
  readonly #watch: Pool;

  /** @param watch sessions that read, cancel and terminate; none of them waits for a lock. */
  constructor(options: { key: string; name: string; watch: Pool }) {
    this.#key = options.key;
    this.#name = options.name;
    this.#watch = options.watch;
  }

  /** Its nodeid, by which sessions that work for its clients are known on other servers. */
  get key(): string {
    return this.#key;
  }

  /** host:port, for people. */
  get name(): string {
    return this.#name;
  }

  /** The coordinator has neither until it is registered. */
  isKnownAs(key: string, name: string): void {
    this.#key = key;
    this.#name = name;
  }

  vertexOf(pid: number): Vertex {
    return vertexOf(this.key, pid);
  }

  /** @returns the process of a vertex; undefined where that is on another server. */
  pidOf(vertex: Vertex): number | undefined {
    const { key, pid } = partsOf(vertex);
    return key === this.key ? pid : undefined;
  }

  /**
   * The blockers of the controller's waiting processes, and theirs in turn, on this server alone. Interrupts
   * at once those processes of the controller that are in a blocked cycle: each message between a cycle and
   * its end is time in which a detector of deadlocks may find it.
   *
   * @param own all processes of the controller here
   * @param waiting those that wait
   * @param yielding those of them that may be interrupted
   * @throws SessionLostError when the session broke that ran the query. It may have interrupted some by
   *   then, so this is not run again here.
   */
  async chains(
    own: readonly number[],
    waiting: readonly number[],
    yielding: readonly number[],
  ): Promise<{ edges: Edge[]; interrupted: number[] }> {
    const { rows } = await queryOnce<EdgeRow & { interrupted: boolean }>(this.#watch, {
      name: 'mpp-chains',
      text: CHAINS,
      values: [waiting, own, yielding],
    });
    const interrupted = rows.filter((row) => row.interrupted).map(({ blocker }) => blocker);
    return { edges: this.#edgesOf(rows), interrupted: [...new Set(interrupted)] };
  }

  /** All that wait for a lock here, with the blockers of each. */
  async waits(): Promise<Edge[]> {
    const query = { name: 'mpp-waits', text: WAITS };
    const { rows } = await queryAgain<EdgeRow>(this.#watch, query);
    return this.#edgesOf(rows);
  }

  #edgesOf(rows: readonly EdgeRow[]): Edge[] {
    return rows.map((row) => ({
      waiter: row.waiter_origin ?? this.vertexOf(row.waiter),
      blocker: row.blocker_origin ?? this.vertexOf(row.blocker),
      pid: row.waiter,
    }));
  }

  /** Whether any of `waiting` still waits for `pid`. */
  async blocks(pid: number, waiting: readonly number[]): Promise<boolean> {
    const { rows } = await queryAgain<{ blocks: boolean }>(this.#watch, {
      name: 'mpp-blocks',
      text: BLOCKS,
      values: [pid, waiting],
    });
    return rows[0]?.blocks ?? false;
  }

  /**
   * The clients' sessions that wait for one of these processes. The sessions that other nodes open here for their
   * clients are not counted: the client waits there.
   *
   * @param pids of the controller
   */
  async waitingClients(
    pids: readonly number[],
  ): Promise<{ sessions: number; longestMs: number | null }> {
    const { rows } = await queryAgain<{ sessions: number; longestMs: number | null }>(this.#watch, {
      name: 'mpp-waiting-clients',
      text: WAITING_CLIENTS,
      values: [pids],
    });
    return rows[0] ?? { sessions: 0, longestMs: null };
  }

  /** Whether a process waits for a lock that another has, or for its place in the queue. */
  async isBlocked(pid: number): Promise<boolean> {
    const query = { name: 'mpp-is-blocked', text: IS_BLOCKED, values: [pid] };
    const { rows } = await queryAgain<{ blocked: boolean }>(this.#watch, query);
    return rows[0]?.blocked ?? false;
  }

  /**
   * Whether a process blocks DDL: what waits for a table lock that no read or write needs, or a statement like this.
   *
   * @param pattern a regular expression, case-insensitive
   */
  async isBlockingDdl(pids: readonly number[], pattern: string): Promise<boolean> {
    const query = { name: 'mpp-is-blocking-ddl', text: IS_BLOCKING_DDL, values: [pids, pattern] };
    const { rows } = await queryAgain<{ blocking: boolean }>(this.#watch, query);
    return rows[0]?.blocking ?? false;
  }

  /** Interrupts the statement that a process runs, if it runs one. @throws where this role may not. */
  async cancel(pid: number): Promise<void> {
    await queryAgain(this.#watch, { name: 'mpp-cancel', text: CANCEL, values: [pid] });
  }

  /**
   * @param pids of blocking sessions; 0 stands for prepared transactions
   * @param waiting processes of the controller, to tell which prepared transactions block them
   * @returns those that are there now.
   */
  async describe(
    pids: readonly number[],
    waiting: readonly number[] = [],
  ): Promise<BlockingSession[]> {
    const sessions = await queryAgain<BlockingSession>(this.#watch, {
      name: 'mpp-describe',
      text: DESCRIBE,
      values: [pids],
    });
    if (!pids.includes(0) || waiting.length === 0) return sessions.rows;
    const prepared = await queryAgain<BlockingSession>(this.#watch, {
      name: 'mpp-describe-prepared',
      text: DESCRIBE_PREPARED,
      values: [waiting],
    });
    return [...sessions.rows, ...prepared.rows];
  }

  /** Whether prepared transactions with these gids are there. @returns those that are. */
  async prepared(gids: readonly string[]): Promise<string[]> {
    const query = { name: 'mpp-prepared', text: PREPARED, values: [gids] };
    const { rows } = await queryAgain<{ gid: string }>(this.#watch, query);
    return rows.map(({ gid }) => gid);
  }

  /** Terminates a session if it is still in this transaction. @returns false when it is not, or is not this role's to end. */
  async terminate(pid: number, transaction: string): Promise<boolean> {
    const { rows } = await queryOnce<{ terminated: boolean }>(this.#watch, {
      name: 'mpp-terminate',
      text: TERMINATE,
      values: [pid, transaction],
    });
    return rows[0]?.terminated ?? false;
  }
}

interface EdgeRow {
  readonly waiter: number;
  readonly blocker: number;
  readonly waiter_origin: string | null;
  readonly blocker_origin: string | null;
}

/**
 * The session of another server that a process works for, from the name that Citus gives its own
 * connections: nodeid * 10^10 + pid (source: backend_data.c). NULL for a client's own session.
 */
function originOf(alias: string): string {
  const gpid = `substring(${alias}.application_name FROM '^citus_[a-z_]+ gpid=([0-9]+)$')::numeric`;
  return `div(${gpid}, 10000000000) || ':' || mod(${gpid}, 10000000000)`;
}

/**
 * pg_blocking_pids looks at one lock alone, unlike pg_locks, which copies the whole table: a hold may
 * have thousands. A pid 0 stands for a prepared transaction.
 */
const CHAINS = `
  WITH RECURSIVE chain (waiter, blocker) AS (
    SELECT w.pid, b.pid
    FROM unnest($1::integer[]) AS w (pid), unnest(pg_blocking_pids(w.pid)) AS b (pid)
    UNION
    SELECT c.blocker, b.pid
    FROM chain AS c, unnest(pg_blocking_pids(c.blocker)) AS b (pid)
    WHERE c.blocker <> 0
  ), cycle AS MATERIALIZED (
    SELECT k.pid, pg_cancel_backend(k.pid) AS interrupted
    FROM (
      SELECT DISTINCT c.blocker AS pid
      FROM chain AS c
      WHERE c.blocker = ANY ($3::integer[]) AND c.waiter <> ALL ($2::integer[])
    ) AS k
  )
  SELECT c.waiter, c.blocker, NULL AS waiter_origin, NULL AS blocker_origin,
         coalesce(k.interrupted AND c.waiter <> ALL ($2::integer[]), false) AS interrupted
  FROM chain AS c
  LEFT JOIN cycle AS k ON k.pid = c.blocker`;

/** A role without pg_read_all_stats sees no wait events: then every process is asked. */
const WAITS = `
  WITH session AS MATERIALIZED (
    SELECT s.pid, s.application_name, s.wait_event_type
    FROM pg_stat_get_activity(NULL) AS s
    -- Locks of other databases do not conflict with the hold's, and their nodes have other nodeids.
    WHERE s.datid = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
  )
  SELECT w.pid AS waiter, b.pid AS blocker,
         ${originOf('w')} AS waiter_origin,
         ${originOf('o')} AS blocker_origin
  FROM session AS w
  CROSS JOIN LATERAL unnest(pg_blocking_pids(w.pid)) AS b (pid)
  LEFT JOIN session AS o ON o.pid = b.pid
  WHERE coalesce(w.wait_event_type, 'Lock') = 'Lock'`;

/** A role without pg_read_all_stats sees no wait events, and no times. */
const WAITING_CLIENTS = `
  SELECT count(*)::integer AS sessions,
         (1000 * max(extract(epoch FROM clock_timestamp() - s.query_start)))::float8 AS "longestMs"
  FROM pg_stat_get_activity(NULL) AS s
  WHERE s.datid = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
    AND coalesce(s.wait_event_type, 'Lock') = 'Lock'
    AND s.application_name !~ '^(citus_|mpp-controller )'
    AND pg_blocking_pids(s.pid) && $1::integer[]`;

const BLOCKS = `
  SELECT coalesce(bool_or($1::integer = ANY (pg_blocking_pids(w.pid))), false) AS blocks
  FROM unnest($2::integer[]) AS w (pid)`;

const IS_BLOCKED = 'SELECT cardinality(pg_blocking_pids($1::integer)) > 0 AS blocked';

/** Once for each hold that ends: it copies the lock table. */
const IS_BLOCKING_DDL = `
  SELECT EXISTS (
    SELECT
    FROM pg_locks AS w
    JOIN pg_stat_get_activity(w.pid) AS s ON true
    WHERE w.locktype = 'relation' AND NOT w.granted
      AND w.database = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
      AND (w.mode NOT IN ('AccessShareLock', 'RowShareLock', 'RowExclusiveLock')
        OR s.query ~* $2)
      AND pg_blocking_pids(w.pid) && $1::integer[]) AS blocking`;

/** Citus has another function of this name, for the processes of all nodes. */
const CANCEL = 'SELECT pg_cancel_backend($1::integer)';

/**
 * A statement that runs several transactions, such as CREATE INDEX CONCURRENTLY, may keep its locks from one to
 * the next: its own start counts for all of them. A role without pg_read_all_stats sees neither; the virtual id
 * of a transaction is public.
 */
function startOf(alias: string): string {
  return `least(${alias}.xact_start, CASE WHEN ${alias}.state = 'active' THEN ${alias}.query_start END)`;
}

function transactionOf(alias: string): string {
  return `coalesce(${startOf(alias)}::text, (
    SELECT v.virtualxid
    FROM pg_locks AS v
    WHERE v.pid = ${alias}.pid AND v.locktype = 'virtualxid' AND v.virtualtransaction = v.virtualxid
    LIMIT 1), '')`;
}

/** Ending a session takes its role, or pg_signal_backend and a session that is no superuser's. */
const MAY_END = `
  ((SELECT m.rolsuper FROM pg_roles AS m WHERE m.rolname = current_user)
    OR pg_has_role(r.oid, 'USAGE')
    OR (NOT r.rolsuper AND pg_has_role('pg_signal_backend', 'USAGE')))`;

/** CREATE INDEX CONCURRENTLY is not here: cancelled, it leaves an invalid index. */
const MAINTENANCE = '^\\s*(VACUUM|ANALYZE|REINDEX|CLUSTER)\\M';

const DESCRIBE = `
  SELECT s.pid, ${transactionOf('s')} AS transaction, coalesce(r.rolname, '') AS user,
         coalesce(s.application_name, '') AS application, s.state,
         to_char(${startOf('s')}, 'HH24:MI:SS') AS since,
         round(1000 * extract(epoch FROM clock_timestamp() - ${startOf('s')}))::float8 AS "lastsMs",
         CASE WHEN s.backend_type = 'autovacuum worker' THEN 'autovacuum'
              WHEN s.state = 'active' THEN upper(substring(s.query FROM '(?i)${MAINTENANCE}'))
         END AS maintenance,
         coalesce(${MAY_END}, false) AS "mayEnd"
  FROM unnest($1::integer[]) AS b (pid)
  JOIN pg_stat_get_activity(b.pid) AS s ON true
  LEFT JOIN pg_roles AS r ON r.oid = s.usesysid
  WHERE b.pid <> 0
  ORDER BY s.pid`;

/** In pg_locks a prepared transaction has no pid, and the lock of its own xid. */
const DESCRIBE_PREPARED = `
  SELECT DISTINCT 0 AS pid, p.gid AS transaction, p.owner AS user, '' AS application,
         'prepared' AS state, to_char(p.prepared, 'HH24:MI:SS') AS since,
         round(1000 * extract(epoch FROM clock_timestamp() - p.prepared))::float8 AS "lastsMs",
         NULL AS maintenance, false AS "mayEnd"
  FROM pg_locks AS w
  JOIN pg_locks AS h
    ON h.granted AND h.pid IS NULL AND h.locktype = w.locktype
   AND h.database IS NOT DISTINCT FROM w.database AND h.relation IS NOT DISTINCT FROM w.relation
   AND h.classid IS NOT DISTINCT FROM w.classid AND h.objid IS NOT DISTINCT FROM w.objid
   AND h.objsubid IS NOT DISTINCT FROM w.objsubid
   AND h.transactionid IS NOT DISTINCT FROM w.transactionid
  JOIN pg_locks AS x
    ON x.pid IS NULL AND x.locktype = 'transactionid' AND x.granted
   AND x.virtualtransaction = h.virtualtransaction
  JOIN pg_prepared_xacts AS p ON p.transaction = x.transactionid
  WHERE w.pid = ANY ($1::integer[]) AND NOT w.granted`;

const PREPARED = `
  SELECT p.gid FROM pg_prepared_xacts AS p WHERE p.gid = ANY ($1::text[])`;

const TERMINATE = `
  SELECT pg_terminate_backend(s.pid) AS terminated
  FROM pg_stat_get_activity($1::integer) AS s
  LEFT JOIN pg_roles AS r ON r.oid = s.usesysid
  WHERE ${transactionOf('s')} = $2 AND ${MAY_END}`;

const CANCEL_AGAIN_MS = 10;

/** Interrupts the statement of one process, and knows whether it was the controller that did. */
export class Interrupter {
  readonly #server: Server;
  readonly #pid: number;
  #cancelling: Promise<void> | undefined;
  /** A query that may interrupt the process by itself. */
  #snapshot: Promise<unknown> | undefined;
  #interrupted = false;

  constructor(server: Server, pid: number) {
    this.#server = server;
    this.#pid = pid;
  }

  /** Repeats it: a signal that reaches the server before the statement does is lost. */
  interrupt(isWaiting: () => boolean): void {
    this.#cancelling ??= this.#cancel(isWaiting);
  }

  /** A query is under way that interrupts the process if it finds it in a cycle. */
  expect(snapshot: Promise<unknown>): void {
    // One that fails may have interrupted it all the same.
    this.#snapshot = snapshot.catch(() => this.hit());
  }

  /** That query has interrupted the process. */
  hit(): void {
    this.#interrupted = true;
  }

  /**
   * Waits until no signal is on its way: one that comes late must not hit the next statement.
   *
   * @returns true when the controller has interrupted the statement before.
   */
  async quiet(): Promise<boolean> {
    const asked = this.#cancelling !== undefined;
    await Promise.all([this.#cancelling, this.#snapshot]);
    const isInterrupted = asked || this.#interrupted;
    this.#cancelling = undefined;
    this.#snapshot = undefined;
    this.#interrupted = false;
    return isInterrupted;
  }

  async #cancel(isWaiting: () => boolean): Promise<void> {
    while (isWaiting()) {
      await this.#server.cancel(this.#pid).catch(() => undefined);
      if (isWaiting()) await delay(CANCEL_AGAIN_MS);
    }
  }
}
