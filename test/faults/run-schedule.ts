import type { Client } from 'pg';
import { waitUntilNothingHeld } from '../kit/faults/hold-sessions.js';
import { waitFor } from '../kit/servers/index.js';
import { readChanges, takeRecorded } from './recorder.js';
import { Reporter } from './reporter.js';
import { describe, type Fault, type FaultKind, type Step } from './schedule.js';
import { POLL_MS, text, type Address, type Stage } from './stage.js';
import { strike, type Lift } from './strikes.js';
import { judge, type EndedTask, type Evidence, type LogEntry, type Span } from './verdict.js';
import { Watcher } from './watcher.js';

/** How long a step may take for reports to get into the table, before the next step comes all the same. */
const STEP_MS = 150;
/** How long the end of all tasks may take, from when the last fault is lifted. */
const SETTLE_MS = 20_000;

export interface Outcome {
  readonly violations: readonly string[];
  /** How many faults were made, by kind. */
  readonly struck: ReadonlyMap<FaultKind, number>;
  /** The steps so far, each with the milliseconds since the start. */
  readonly trace: readonly string[];
  readonly looks: number;
  /** By how much the machine was late at most, which the bounds allow for. */
  readonly lagMs: number;
  readonly ms: number;
}

/** One schedule: steps and faults, then the end of all faults, then what must hold. */
export async function runSchedule(stage: Stage, steps: readonly Step[]): Promise<Outcome> {
  return new Run(stage).all(steps);
}

class Run {
  readonly #stage: Stage;
  readonly #db: Client;
  readonly #started = performance.now();
  readonly #trace: string[] = [];
  readonly #violations: string[] = [];
  readonly #struck = new Map<FaultKind, number>();
  readonly #lifts = new Map<number, { lift: Lift; from: number; fault: Fault }>();
  readonly #impaired: Span[] = [];
  readonly #reporters = new Map<number, Reporter>();
  readonly #watcher: Watcher;

  constructor(stage: Stage) {
    this.#stage = stage;
    this.#db = stage.harness.db;
    this.#watcher = new Watcher(stage.harness.cluster.coordinator);
  }

  async all(steps: readonly Step[]): Promise<Outcome> {
    const initial = await primaries(this.#db);
    for (const groupid of this.#stage.groups) this.#openReporter(groupid, initial);
    const watcher = this.#watcher;
    watcher.start(initial);
    try {
      for (const step of steps) await this.#step(step);
      await this.#liftAll();
      await this.#settle(initial);
    } catch (error) {
      this.#violations.push(error instanceof Error ? error.message : String(error));
    } finally {
      await this.#liftAll();
      await watcher.stop();
      await this.#clear();
      for (const reporter of this.#reporters.values()) await reporter.end();
    }
    if (watcher.looks === 0) this.#violations.push('the watcher has not seen anything');
    return {
      violations: [...this.#violations, ...watcher.violations],
      ...{ struck: this.#struck, trace: this.#trace, looks: watcher.looks, lagMs: watcher.lagMs },
      ms: performance.now() - this.#started,
    };
  }

  #openReporter(groupid: number, initial: ReadonlyMap<number, string>): void {
    const stage = this.#stage;
    const port = stage.workers.get(groupid)?.port ?? 0;
    const two: [Address, Address] = [
      { host: '127.0.0.1', port },
      { host: 'localhost', port },
    ];
    const present = two.find((address) => text(address) === initial.get(groupid)) ?? two[0];
    const others = stage.groups.filter((other) => other !== groupid);
    const stranger = {
      host: 'localhost',
      port: stage.workers.get(others[0] ?? groupid)?.port ?? 0,
    };
    // The name of the other group that is not in its row, or the report would fail without a question.
    const taken = [...initial.values()].includes(text(stranger));
    this.#reporters.set(
      groupid,
      new Reporter(stage.harness.cluster.coordinator, groupid, present, {
        two,
        stranger: taken ? { ...stranger, host: '127.0.0.1' } : stranger,
        nowhere: { host: '127.0.0.1', port: 1 },
      }),
    );
  }

  async #step(step: Step): Promise<void> {
    this.#note(describe(step));
    switch (step.do) {
      case 'strike':
        return this.#strike(step.id, step.fault);
      case 'lift':
        return this.#lift(step.id);
      default: {
        const reporter = this.#reporters.get(step.groupid);
        if (step.do === 'report') reporter?.report(step);
        else if (step.do === 'wait') reporter?.wait();
        else if (step.do === 'cancel') reporter?.cancel();
        else reporter?.release();
        // What follows comes when this is done, or soon: a report may wait for a lock or a server.
        await reporter?.drained(STEP_MS).catch(() => undefined);
      }
    }
  }

  async #strike(id: number, fault: Fault): Promise<void> {
    const from = Date.now();
    const lift = await strike(this.#stage, fault);
    if (lift === undefined) {
      this.#note('  nothing to strike');
      return;
    }
    this.#struck.set(fault.kind, (this.#struck.get(fault.kind) ?? 0) + 1);
    this.#lifts.set(id, { lift, from, fault });
  }

  async #lift(id: number): Promise<void> {
    const struck = this.#lifts.get(id);
    if (struck === undefined) return;
    this.#lifts.delete(id);
    await struck.lift();
    this.#impaired.push({ fault: struck.fault, from: struck.from, to: Date.now() });
  }

  async #liftAll(): Promise<void> {
    for (const id of [...this.#lifts.keys()]) await this.#lift(id);
  }

  async #settle(initial: ReadonlyMap<number, string>): Promise<void> {
    const { harness } = this.#stage;
    this.#note('all faults lifted');
    for (const slot of this.#stage.slots) {
      const { controller } = slot;
      if (controller?.exitCode !== null || controller.stderr !== '') {
        this.#violations.push(
          `the controller of ${slot.role} ended by itself (${String(controller?.exitCode)}): ${controller?.stderr ?? ''}`,
        );
        await slot.kill();
        slot.start();
      }
    }
    await harness.db.query('SELECT 1').catch(() => harness.reconnect());
    for (const reporter of this.#reporters.values()) await reporter.drained(SETTLE_MS);
    this.#note('all reports are in the table');
    await this.#stage.ready();
    await this.#ended();
    this.#note('all tasks have ended');
    await waitUntilNothingHeld(harness);
    await this.#synced();
    this.#note('nothing is held, metadata is in sync');
    await this.#judge(initial);
    this.#violations.push(...(await takeRecorded(harness.db)));
    await this.#wakes();
    this.#note('a report wakes the controller');
  }

  async #synced(): Promise<void> {
    const { db, cluster } = this.#stage.harness;
    await waitFor(
      'metadata to be in sync',
      async () => {
        const { rows } = await db.query(
          `SELECT groupid, nodename, nodeport FROM pg_dist_node WHERE hasmetadata AND NOT metadatasynced`,
        );
        if (rows.length === 0) return true;
        // The daemon of Citus tries again by itself; that of the stand-in ends with an error.
        if (!cluster.hasCitus) await db.query('SELECT standin.start_maintenance()');
        throw new Error(JSON.stringify(rows));
      },
      { intervalMs: 50 },
    );
  }

  async #ended(): Promise<void> {
    const { harness } = this.#stage;
    await waitFor(
      'all tasks to end',
      async () => {
        // A report of a node that is not there waits for it; the operator gives it up.
        await harness.db
          .query(
            `SELECT mpp_cancel(t.id) FROM mpp_tasks AS t
           WHERE t.status = 'pending' AND t.nodeport = 1 AND NOT EXISTS (
             SELECT FROM mpp_tasks AS n WHERE n.groupid = t.groupid AND n.id > t.id AND n.status = 'pending')`,
          )
          .catch(() => undefined);
        const { rows } = await harness.db.query(
          'SELECT id, event, groupid, status, attempt, reason FROM mpp_tasks WHERE finished_at IS NULL',
        );
        if (rows.length > 0) throw new Error(JSON.stringify(rows));
        return true;
      },
      { timeoutMs: SETTLE_MS },
    );
  }

  /** What the next schedule looks at is its own. */
  async #clear(): Promise<void> {
    const { db } = this.#stage.harness;
    await db.query('TRUNCATE faults_changes').catch(() => undefined);
    await db.query('DELETE FROM mpp_task_log').catch(() => undefined);
    await db.query('DELETE FROM mpp_tasks WHERE finished_at IS NOT NULL').catch(() => undefined);
  }

  async #judge(initial: ReadonlyMap<number, string>): Promise<void> {
    const evidence = await this.#evidence(initial);
    const found = judge(evidence);
    this.#violations.push(...found);
    // Of the groups that the sentences are about: the rest was as it must be.
    const groups = new Set(found.flatMap((sentence) => sentence.match(/group \d+/g) ?? []));
    for (const change of found.length === 0 ? [] : evidence.changes) {
      const task = evidence.tasks.find(({ id }) => id === change.task_id);
      if (task === undefined || !groups.has(`group ${task.groupid}`)) continue;
      const { status, attempt, controller, changed_by, reason } = change;
      this.#trace.push(
        `group ${task.groupid} task ${task.id} ${task.event} ${task.node}: ${status}, attempt ${attempt} of ` +
          `${controller ?? 'none'} by ${changed_by} ${reason ?? ''}`,
      );
    }
  }

  async #evidence(initial: ReadonlyMap<number, string>): Promise<Evidence> {
    const db = this.#stage.harness.db;
    const { rows: tasks } = await db.query<EndedTask>(TASKS);
    const { rows: log } = await db.query<LogEntry>(LOG);
    const reporters = [...this.#reporters.values()];
    const nowhere = tasks.filter(({ node }) => node.endsWith(':1')).map(({ id }) => id);
    const nodes = [...this.#stage.workers].map(
      ([groupid, { port }]) =>
        [groupid, new Set([`127.0.0.1:${port}`, `localhost:${port}`])] as const,
    );
    return {
      ...{ tasks, log, initial, changes: await readChanges(db), nodes: new Map(nodes) },
      rows: await primaries(db),
      cancelled: new Set([...nowhere, ...reporters.flatMap(({ told }) => [...told.cancelled])]),
      released: new Set(
        reporters.filter(({ told }) => told.released).map(({ groupid }) => groupid),
      ),
      roles: this.#stage.roles,
      impaired: [...this.#impaired].sort((a, b) => a.from - b.from),
      lagMs: this.#watcher.lagMs,
    };
  }

  /** A report is taken by its notification: one that waits for the next look at the table takes longer. */
  async #wakes(): Promise<void> {
    const db = this.#stage.harness.db;
    const [groupid = 1] = this.#stage.groups;
    const row = (await primaries(db)).get(groupid) ?? '';
    const [host, port] = row.split(':');
    const times: number[] = [];
    while (times.length < 3 && !times.some((ms) => ms < POLL_MS / 2)) {
      const from = performance.now();
      const { rows } = await db.query<{ id: string }>(
        "INSERT INTO mpp_tasks (event, groupid, nodename, nodeport) VALUES ('after_promote', $1, $2, $3) RETURNING id",
        [groupid, host, port],
      );
      await waitFor(
        'a report to be taken',
        async () => {
          const { rowCount } = await db.query(
            "SELECT FROM mpp_tasks WHERE id = $1 AND status = 'done'",
            [rows[0]?.id],
          );
          return rowCount === 1;
        },
        { intervalMs: 5 },
      );
      times.push(performance.now() - from);
    }
    if (times.every((ms) => ms >= POLL_MS / 2)) {
      this.#violations.push(
        `no report woke the controller: three in a row took ${times.map(Math.round).join(', ')} ms`,
      );
    }
  }

  #note(what: string): void {
    this.#trace.push(
      `${String(Math.round(performance.now() - this.#started)).padStart(6)} ms  ${what}`,
    );
  }
}

async function primaries(db: Client): Promise<Map<number, string>> {
  const { rows } = await db.query<{ groupid: number; node: string }>(
    `SELECT groupid, format('%s:%s', nodename, nodeport) AS node FROM pg_dist_node
     WHERE groupid > 0 AND noderole = 'primary' ORDER BY groupid`,
  );
  return new Map(rows.map(({ groupid, node }) => [groupid, node]));
}

const TASKS = `
  SELECT t.id, t.event, t.groupid, format('%s:%s', t.nodename, t.nodeport) AS node, t.status, t.reason,
         (extract(epoch FROM t.created_at) * 1000)::float8 AS created_ms,
         (extract(epoch FROM t.timeout) * 1000)::float8 AS timeout_ms
  FROM mpp_tasks AS t
  ORDER BY t.id`;

const PRIMARY_OF = (column: string): string => `
  (SELECT format('%s:%s', n ->> 'nodename', n ->> 'nodeport')
   FROM jsonb_array_elements(l.${column}) AS n
   WHERE n ->> 'noderole' = 'primary')`;

const LOG = `
  SELECT l.task_id, l.status, l.attempt, l.reason,
         (extract(epoch FROM l.logged_at) * 1000)::float8 AS logged_ms,
         ${PRIMARY_OF('node_before')} AS before, ${PRIMARY_OF('node_after')} AS after
  FROM mpp_task_log AS l
  ORDER BY l.id`;
