import type { Client } from 'pg';
import type { Server } from '../kit/servers/index.js';

/** How often it looks. */
const EACH_MS = 40;
/** A deadline is kept by a timer, and the server takes a moment to end a session. */
const SLACK_MS = 300;
/** A timer of Node.js rings up to a millisecond late on an idle machine. */
const TIMER_MS = 1;
/** What one answer takes: turns of the client, servers and controllers, each as late as a timer is on average. */
const TURNS = 30;
/** A look takes less on an idle machine, slow as it may be. */
const LOOK_MS = 10;
/** And so many statements one after the other, each as late as a look is. */
const STATEMENTS = 10;

interface Look {
  readonly groupid: number;
  readonly row: string;
  readonly confirmed: string | null;
  readonly holders: number;
  readonly late_ms: number | null;
}

/**
 * Looks at the coordinator time and again, whatever else happens: what must hold at every moment is read in
 * one snapshot.
 */
export class Watcher {
  readonly #server: Server;
  readonly #violations = new Set<string>();
  readonly #initial = new Map<number, string>();
  #session: Client | undefined;
  #looks = 0;
  #mostLagMs = 0;
  #sumLagMs = 0;
  #timers = 0;
  readonly #lookMs: number[] = [];
  #over = false;
  #running: Promise<void> | undefined;

  constructor(server: Server) {
    this.#server = server;
  }

  get violations(): readonly string[] {
    return [...this.#violations];
  }

  get looks(): number {
    return this.#looks;
  }

  /**
   * By how much the machine may have delayed an answer: by what its own timers were late at most, for each turn of a
   * process by what they were late on average, and for each statement by what a look takes too long as a rule. What a
   * lock delays are a few looks, and not their median.
   */
  get lagMs(): number {
    const turns = (TURNS * this.#sumLagMs) / Math.max(this.#timers, 1);
    const sorted = [...this.#lookMs].sort((a, b) => a - b);
    const median = sorted[Math.floor(sorted.length / 2)] ?? 0;
    return this.#mostLagMs + turns + STATEMENTS * Math.max(0, median - LOOK_MS);
  }

  /** @param rows where each group is now, before any report. */
  start(rows: ReadonlyMap<number, string>): void {
    for (const [groupid, row] of rows) this.#initial.set(groupid, row);
    this.#running ??= this.#run();
  }

  async stop(): Promise<void> {
    this.#over = true;
    await this.#running;
    await this.#session?.end().catch(() => undefined);
  }

  async #run(): Promise<void> {
    while (!this.#over) {
      await this.#look();
      const from = performance.now();
      await new Promise((resolve) => setTimeout(resolve, EACH_MS));
      const lagMs = Math.max(0, performance.now() - from - EACH_MS - TIMER_MS);
      this.#mostLagMs = Math.max(this.#mostLagMs, lagMs);
      this.#sumLagMs += lagMs;
      this.#timers += 1;
    }
  }

  async #look(): Promise<void> {
    try {
      this.#session ??= await this.#open();
      const from = performance.now();
      const { rows } = await this.#session.query<Look>({
        name: 'look',
        text: LOOK,
        values: [Math.ceil(SLACK_MS + this.lagMs)],
      });
      this.#looks += 1;
      this.#lookMs.push(performance.now() - from);
      for (const row of rows) this.#judge(row);
    } catch {
      const session = this.#session;
      this.#session = undefined;
      await session?.end().catch(() => undefined);
    }
  }

  #judge({ groupid, row, confirmed, holders, late_ms }: Look): void {
    const expected = confirmed ?? this.#initial.get(groupid);
    if (row !== expected) {
      this.#violations.add(
        `group ${groupid} is at ${row}, and the last confirmed report says ${String(expected)}`,
      );
    }
    if (holders > 1)
      this.#violations.add(`group ${groupid} was held by ${holders} sessions at once`);
    if (late_ms !== null) {
      this.#violations.add(`group ${groupid} was paused for more than a second past its deadline`);
    }
  }

  async #open(): Promise<Client> {
    const session = await this.#server.connect('faults watcher');
    // Rather no look than one that a locked table delays.
    await session.query("SET statement_timeout = '2s'");
    return session;
  }
}

/**
 * A group is paused while a controller's session has locks of its shards. Tasks of a hold that are still
 * open, or ended just now, tell the deadline; a group with a claimed task is being held or committed.
 */
const LOOK = `
  WITH holder AS MATERIALIZED (
    SELECT (regexp_match(a.application_name, '^mpp-controller group ([0-9]+)$'))[1]::integer AS groupid, a.pid
    FROM pg_stat_activity AS a
    WHERE a.application_name ~ '^mpp-controller group [0-9]+$'
      AND EXISTS (
        SELECT FROM pg_locks AS l
        WHERE l.pid = a.pid AND l.locktype = 'advisory' AND l.mode = 'ExclusiveLock' AND l.granted)
  ), held AS (
    SELECT h.groupid, count(DISTINCT h.pid)::integer AS holders FROM holder AS h GROUP BY h.groupid
  )
  SELECT n.groupid,
         format('%s:%s', n.nodename, n.nodeport) AS row,
         (SELECT format('%s:%s', t.nodename, t.nodeport)
          FROM mpp_task_log AS l
          JOIN mpp_tasks AS t ON t.id = l.task_id
          WHERE l.groupid = n.groupid AND l.event = 'after_promote' AND l.status = 'done'
          ORDER BY l.id DESC LIMIT 1) AS confirmed,
         coalesce(held.holders, 0) AS holders,
         CASE WHEN held.holders > 0 THEN (
           SELECT extract(epoch FROM clock_timestamp() - max(t.deadline)) * 1000
           FROM mpp_tasks AS t
           WHERE t.groupid = n.groupid AND t.held_at IS NOT NULL
           HAVING max(t.deadline) + interval '1 s' + $1::integer * interval '1 ms' < clock_timestamp()
              AND NOT EXISTS (
                SELECT FROM mpp_tasks AS c
                WHERE c.groupid = n.groupid AND c.finished_at IS NULL
                  AND (c.status = 'claimed' OR c.deadline IS NULL))
         ) END AS late_ms
  FROM pg_dist_node AS n
  LEFT JOIN held USING (groupid)
  WHERE n.groupid > 0 AND n.noderole = 'primary'`;
