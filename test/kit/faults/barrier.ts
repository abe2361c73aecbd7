import type { Client } from 'pg';
import type { Harness } from '../harness.js';
import { waitFor } from '../servers/index.js';

/** A session whose open transaction stops the controller at one place, without a sleep anywhere. */
export class Barrier {
  readonly #harness: Harness;
  readonly #session: Client;
  readonly #pid: number;

  private constructor(harness: Harness, session: Client, pid: number) {
    this.#harness = harness;
    this.#session = session;
    this.#pid = pid;
  }

  /** Lifts what a failed test has left, so that it does not fail the next one. */
  static async liftAll(harness: Harness): Promise<void> {
    await harness.db.query(LIFT_ALL);
  }

  /** Begins a transaction and runs the statement that is to be in the way. */
  static async raise(
    harness: Harness,
    statement: string,
    values: readonly unknown[] = [],
  ): Promise<Barrier> {
    const session = await harness.cluster.coordinator.connect('barrier');
    await session.query('BEGIN');
    await session.query(statement, [...values]);
    const { rows } = await session.query<{ pid: number }>('SELECT pg_backend_pid() AS pid');
    return new Barrier(harness, session, rows[0]?.pid ?? 0);
  }

  /** In the way of a claim, and of nobody who reports: the claim reads this table, too. */
  static async beforeClaim(harness: Harness): Promise<Barrier> {
    return Barrier.raise(harness, 'LOCK TABLE mpp_controllers IN ACCESS EXCLUSIVE MODE');
  }

  /** In the way of a claimed task that reads the group's rows. */
  static async afterClaim(harness: Harness): Promise<Barrier> {
    return Barrier.raise(harness, 'LOCK TABLE pg_catalog.pg_dist_node IN ACCESS EXCLUSIVE MODE');
  }

  /** In the way of a hold: a client in the middle of a transaction that wrote to the group of `key`. */
  static async beforeHold(harness: Harness, key: number): Promise<Barrier> {
    return Barrier.raise(harness, 'INSERT INTO notes VALUES ($1, 0)', [key]);
  }

  /** In the way of citus_update_node. Its cooldown must be long, or it ends this session. */
  static async beforeUpdate(harness: Harness): Promise<Barrier> {
    return Barrier.raise(harness, 'LOCK TABLE pg_catalog.pg_dist_node IN ROW SHARE MODE');
  }

  /** Stops an acknowledgement or a commit: a trigger keeps the task from getting its status. */
  static async beforeCommit(harness: Harness, taskId: string): Promise<Barrier> {
    await harness.db.query(STOP_AT_DONE);
    return Barrier.raise(harness, 'SELECT pg_advisory_xact_lock(4711, $1::integer)', [taskId]);
  }

  /** The server process. */
  get pid(): number {
    return this.#pid;
  }

  /** Waits until a session of the controller waits for this one. @returns its server process. */
  async reached(): Promise<number> {
    return waitFor('the controller to be stopped by the barrier', async () => {
      const { rows } = await this.#harness.db.query<{ pid: number }>(STOPPED, [this.#pid]);
      return rows[0]?.pid;
    });
  }

  /** Lets the controller go on. Idempotent; a barrier whose server has gone is lifted already. */
  async lift(): Promise<void> {
    await this.#session.query('ROLLBACK').catch(() => undefined);
    await this.#session.end().catch(() => undefined);
  }
}

/** One advisory lock a task, which its end waits for. */
const STOP_AT_DONE = `
  CREATE OR REPLACE FUNCTION barrier_at_done() RETURNS trigger LANGUAGE plpgsql AS $$
  BEGIN
    PERFORM pg_advisory_xact_lock_shared(4711, NEW.id::integer);
    RETURN NEW;
  END
  $$;
  CREATE OR REPLACE TRIGGER barrier_at_done BEFORE UPDATE ON mpp_tasks
    FOR EACH ROW WHEN (NEW.status IN ('holding', 'done')) EXECUTE FUNCTION barrier_at_done()`;

const LIFT_ALL = `
  SELECT pg_terminate_backend(pid, 5000)
  FROM pg_stat_activity
  WHERE application_name = 'mpp-controller barrier'`;

/** Sessions that work; that of the heartbeat may wait here, too, and does not count. */
const STOPPED = `
  SELECT a.pid
  FROM pg_stat_activity AS a
  WHERE a.application_name ~ '^mpp-controller (queue|group|shared)'
    AND $1::integer = ANY (pg_blocking_pids(a.pid))`;
