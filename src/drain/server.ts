import type { Pool } from 'pg';
import { queryAgain, queryOnce } from '../postgres/again.js';
import { vertexOf, type Edge, type Vertex } from './wait-graph.js';

/** A session that was ended because it was in the way of a lock. */
export interface Ended {
  readonly server: string;
  readonly pid: number;
  readonly user: string;
  readonly application: string;
  /** False when this role may not end it. */
  readonly ended: boolean;
}

/** One server on which locks are taken, or whose lock waits say who is in the way of whom. */
export class Server {
  #key: string;
  #name: string;
  readonly #watch: Pool;

  /** @param watch sessions that only look, cancel and end; none of them waits for a lock. */
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

  /** It may get others: the coordinator has neither until it is registered. */
  isKnownAs(key: string, name: string): void {
    this.#key = key;
    this.#name = name;
  }

  vertexOf(pid: number): Vertex {
    return vertexOf(this.key, pid);
  }

  /**
   * Who is in the way of our waiting processes, and whom those wait for in turn, on this server alone.
   * Interrupts at once those that somebody waits for whom one of ours waits for: each hop between a
   * cycle and its end is time in which a detector of deadlocks may find it.
   *
   * @param ours all our processes here
   * @param waiting those that wait
   * @param yielding those of them that may be interrupted
   * @throws SessionLostError when the session broke that looked. It may have interrupted some by then,
   *   so this is not run again here.
   */
  async chains(
    ours: readonly number[],
    waiting: readonly number[],
    yielding: readonly number[],
  ): Promise<{ edges: Edge[]; interrupted: number[] }> {
    const { rows } = await queryOnce<EdgeRow & { interrupted: boolean }>(this.#watch, {
      name: 'mpp-chains',
      text: CHAINS,
      values: [waiting, ours, yielding],
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

  /** Whether a process waits for a lock that somebody has, or for its place in the queue. */
  async isBlocked(pid: number): Promise<boolean> {
    const query = { name: 'mpp-is-blocked', text: IS_BLOCKED, values: [pid] };
    const { rows } = await queryAgain<{ blocked: boolean }>(this.#watch, query);
    return rows[0]?.blocked ?? false;
  }

  /** Interrupts the statement that a process runs, if it runs one. */
  async cancel(pid: number): Promise<void> {
    await queryAgain(this.#watch, { name: 'mpp-cancel', text: CANCEL, values: [pid] });
  }

  /** Ends the sessions directly in the way of `pid`, but for those of `spared`. */
  async endBlockers(pid: number, spared: readonly number[]): Promise<Ended[]> {
    const { rows } = await queryOnce<Omit<Ended, 'server'>>(this.#watch, {
      name: 'mpp-end-blockers',
      text: END_BLOCKERS,
      values: [pid, spared],
    });
    return rows.map((row) => ({ ...row, server: this.name }));
  }

  /** Transactions directly in the way of `pid`, by a name that tells each from every other, for people. */
  async blockersOf(pid: number): Promise<ReadonlyMap<string, string>> {
    const query = { name: 'mpp-blockers-of', text: BLOCKERS_OF, values: [pid] };
    const { rows } = await queryAgain<BlockerRow>(this.#watch, query);
    return new Map(rows.map(({ transaction, described }) => [transaction, described]));
  }

  /** For people: the sessions directly blocking `pid` that are not a controller's. */
  async clientsBlocking(pid: number): Promise<BlockingClient[]> {
    const query = { name: 'mpp-clients-blocking', text: CLIENTS_BLOCKING, values: [pid] };
    const { rows } = await queryAgain<BlockingClient>(this.#watch, query);
    return rows.map(({ transaction, described }) => ({
      transaction: `${this.name} ${transaction}`,
      described: `${described} on ${this.name}`,
    }));
  }

  /** The same of these processes, as far as they are there. */
  async describe(pids: readonly number[]): Promise<string[]> {
    const query = { name: 'mpp-describe', text: DESCRIBE, values: [pids] };
    const { rows } = await queryAgain<{ described: string }>(this.#watch, query);
    return rows.map(({ described }) => described);
  }
}

/** A client's transaction that blocks a lock. */
export interface BlockingClient {
  /** Tells it from every other, also from one that the same session began later. */
  readonly transaction: string;
  /** For people. */
  readonly described: string;
}

interface BlockerRow {
  readonly transaction: string;
  readonly described: string;
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
 * have thousands. What a pid 0 blocks is a prepared transaction.
 */
const CHAINS = `
  WITH RECURSIVE chain (waiter, blocker) AS (
    SELECT w.pid, b.pid
    FROM unnest($1::integer[]) AS w (pid), unnest(pg_blocking_pids(w.pid)) AS b (pid)
    UNION
    SELECT c.blocker, b.pid
    FROM chain AS c, unnest(pg_blocking_pids(c.blocker)) AS b (pid)
    WHERE c.blocker <> 0
  ), knot AS MATERIALIZED (
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
  LEFT JOIN knot AS k ON k.pid = c.blocker`;

/** A role without pg_read_all_stats sees no wait events: then every process is asked. */
const WAITS = `
  WITH session AS MATERIALIZED (
    SELECT s.pid, s.application_name, s.wait_event_type
    FROM pg_stat_get_activity(NULL) AS s
    -- Locks of other databases have nothing to do with ours, and their nodes have other nodeids.
    WHERE s.datid = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
  )
  SELECT w.pid AS waiter, b.pid AS blocker,
         ${originOf('w')} AS waiter_origin,
         ${originOf('o')} AS blocker_origin
  FROM session AS w
  CROSS JOIN LATERAL unnest(pg_blocking_pids(w.pid)) AS b (pid)
  LEFT JOIN session AS o ON o.pid = b.pid
  WHERE coalesce(w.wait_event_type, 'Lock') = 'Lock'`;

const BLOCKS = `
  SELECT coalesce(bool_or($1::integer = ANY (pg_blocking_pids(w.pid))), false) AS blocks
  FROM unnest($2::integer[]) AS w (pid)`;

const IS_BLOCKED = 'SELECT cardinality(pg_blocking_pids($1::integer)) > 0 AS blocked';

/** Citus has another function of this name, for the processes of all nodes. */
const CANCEL = 'SELECT pg_cancel_backend($1::integer)';

/** Only what runs for a client: autovacuum and its like give way by themselves. */
function clientsIn(pids: string): string {
  return `
  SELECT DISTINCT s.pid, s.usesysid, s.application_name
  FROM unnest(${pids}) AS b (pid)
  JOIN pg_stat_get_activity(b.pid) AS s ON true`;
}

const BLOCKERS = clientsIn('pg_blocking_pids($1::integer)');

/** Ending a session takes its role, or pg_signal_backend and a session that is no superuser's. */
const END_BLOCKERS = `
  WITH blocker AS MATERIALIZED (${BLOCKERS}), judged AS (
    SELECT b.pid, r.rolname, b.application_name,
           (SELECT m.rolsuper FROM pg_roles AS m WHERE m.rolname = current_user)
             OR pg_has_role(r.oid, 'USAGE')
             OR (NOT r.rolsuper AND pg_has_role('pg_signal_backend', 'USAGE')) AS may
    FROM blocker AS b
    JOIN pg_roles AS r ON r.oid = b.usesysid
    WHERE b.pid <> ALL ($2::integer[])
  )
  SELECT j.pid, j.rolname AS user, coalesce(j.application_name, '') AS application,
         CASE WHEN j.may THEN pg_terminate_backend(j.pid) ELSE false END AS ended
  FROM judged AS j`;

const DESCRIPTION = `
         format('pid %s (user %s, application %s)', b.pid, r.rolname,
           coalesce(nullif(b.application_name, ''), 'unnamed')) AS described`;

/** A role without pg_read_all_stats is not told when a transaction began; its virtual id tells as well. */
const BLOCKERS_OF = `
  SELECT format('%s %s', b.pid, v.virtualxid) AS transaction, ${DESCRIPTION}
  FROM (${BLOCKERS}) AS b
  LEFT JOIN pg_locks AS v ON v.pid = b.pid AND v.locktype = 'virtualxid' AND v.virtualtransaction = v.virtualxid
  LEFT JOIN pg_roles AS r ON r.oid = b.usesysid
  ORDER BY b.pid`;

/** The start of a transaction is shown to a role with pg_read_all_stats alone. */
const CLIENTS_BLOCKING = `
  SELECT ${DESCRIPTION.replace(' AS described', '')} || coalesce(
           format(', %s since %s'::text, s.state, to_char(s.xact_start, 'HH24:MI:SS')), '') AS described,
         format('%s %s'::text, b.pid, v.virtualxid) AS transaction
  FROM (${BLOCKERS}) AS b
  LEFT JOIN pg_locks AS v ON v.pid = b.pid AND v.locktype = 'virtualxid' AND v.virtualtransaction = v.virtualxid
  JOIN pg_stat_get_activity(b.pid) AS s ON true
  LEFT JOIN pg_roles AS r ON r.oid = b.usesysid
  WHERE coalesce(b.application_name, '') NOT LIKE 'mpp-controller %'
  ORDER BY b.pid`;

const DESCRIBE = `
  SELECT ${DESCRIPTION}
  FROM (${clientsIn('$1::integer[]')}) AS b
  LEFT JOIN pg_roles AS r ON r.oid = b.usesysid
  ORDER BY b.pid`;
