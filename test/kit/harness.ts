import type { Client } from 'pg';
import { applyMigrations } from '../../src/postgres/migrate.js';
import { builtCli, type Program } from './cli.js';
import { ControllerProcess } from './controller-process.js';
import { startCluster, waitFor, type Cluster, type ClusterOptions } from './servers/index.js';
import {
  addDatabase,
  installWhereNeeded,
  prepareCluster,
  type PrepareOptions,
} from './standin/prepare.js';

/** What a test reports; undefined columns take their defaults. */
export interface ReportInput {
  readonly event: 'before_demote' | 'before_promote' | 'after_promote' | 'suspect';
  readonly groupid: number;
  readonly node: { readonly host: string; readonly port: number };
  readonly secondaries?: readonly string[] | null;
  readonly timeout?: string;
  readonly cooldown?: string;
  readonly pause?: 'writes' | 'all' | 'none';
}

/** A row of mpp_tasks as tests look at it. */
export interface TaskRow {
  readonly id: string;
  readonly event: string;
  readonly groupid: number;
  readonly status: string;
  readonly reason: string | null;
  readonly nodeid: number | null;
  readonly attempt: number;
}

/** A row of pg_dist_node as tests compare it. */
export interface NodeRow {
  readonly nodeid: number;
  readonly groupid: number;
  readonly node: string;
  readonly role: string;
}

export interface HarnessOptions extends Omit<ClusterOptions, 'env'>, PrepareOptions {
  /** MPP_* settings of controllers that the harness starts. */
  readonly env?: Readonly<Record<string, string>>;
  /** Leaves pg_dist_node empty, for tests that register nodes themselves. */
  readonly register?: boolean;
}

/** A cluster with our schema, a session on its coordinator, and the controllers of a test. */
export class Harness {
  readonly cluster: Cluster;
  readonly #env: Readonly<Record<string, string>>;
  readonly #controllers: ControllerProcess[] = [];
  #session: Client;

  private constructor(cluster: Cluster, session: Client, env: Readonly<Record<string, string>>) {
    this.cluster = cluster;
    this.#session = session;
    this.#env = env;
  }

  static async start(options: HarnessOptions): Promise<Harness> {
    // The settings of controllers are not what servers are started with.
    const { env, ...servers } = options;
    const cluster = await startCluster(servers);
    try {
      if (options.register === false) await installWhereNeeded(cluster);
      else await prepareCluster(cluster, options);
      await cluster.coordinator.withSession((session) =>
        applyMigrations(session, { schema: 'public', lockTimeoutMs: 10_000 }),
      );
      const session = await cluster.coordinator.connect();
      return new Harness(cluster, session, env ?? {});
    } catch (error) {
      await cluster.stop();
      throw error;
    }
  }

  /**
   * Makes a further Citus database on the same servers, as the first one is, with our schema.
   *
   * @returns a harness whose session is in it; its controllers are those of this one, and it need not
   *   be stopped.
   */
  async addDatabase(database: string): Promise<Harness> {
    await addDatabase(this.cluster, database);
    await prepareCluster(this.cluster, { database });
    const session = await this.cluster.coordinator.connect('test', database);
    await this.cluster.coordinator.withSession(
      (client) => applyMigrations(client, { schema: 'public', lockTimeoutMs: 10_000 }),
      database,
    );
    return new Harness(this.cluster, session, this.#env);
  }

  /** Makes a role that may log in to every node; Citus makes it on those that are registered. */
  async createLogin(name: string): Promise<void> {
    const statement = `CREATE ROLE ${this.#session.escapeIdentifier(name)} LOGIN`;
    await this.#session.query(statement);
    await Promise.all(
      this.cluster.workers.map(({ primary }) =>
        primary.withSession(async (session) => {
          const { rowCount } = await session.query('SELECT FROM pg_roles WHERE rolname = $1', [
            name,
          ]);
          if (rowCount === 0) await session.query(statement);
        }),
      ),
    );
  }

  /** The test's own session on the coordinator. */
  get db(): Client {
    return this.#session;
  }

  /** Opens it anew, after the coordinator has been restarted or replaced. */
  async reconnect(): Promise<void> {
    await this.#session.end().catch(() => undefined);
    const { database } = this.#session;
    this.#session = await waitFor('the coordinator', () =>
      this.cluster.coordinator.connect('test', database),
    );
  }

  /** Starts a controller and waits until it is active. */
  async startController(env: Readonly<Record<string, string>> = {}): Promise<ControllerProcess> {
    const controller = this.spawnController(env);
    await controller.active();
    return controller;
  }

  /**
   * @param coordinator whose address it gets in DATABASE_URL; a proxy's, for one.
   * @param program another installation than this checkout.
   */
  spawnController(
    env: Readonly<Record<string, string>> = {},
    coordinator: { readonly host: string; readonly port: number } = this.cluster.coordinator,
    program: Program = builtCli(),
  ): ControllerProcess {
    const controller = ControllerProcess.start({
      coordinator,
      program,
      reaper: this.cluster.testBed.reaper,
      env: { ...this.#env, ...env },
    });
    this.#controllers.push(controller);
    return controller;
  }

  /** Inserts a report as any SQL client does. @returns the task's id. */
  async report(input: ReportInput): Promise<string> {
    const { rows } = await this.#session.query<{ id: string }>(INSERT, [
      input.event,
      input.groupid,
      input.node.host,
      input.node.port,
      input.secondaries ?? null,
      input.timeout ?? null,
      input.cooldown ?? '1s',
      input.pause ?? null,
    ]);
    return String(rows[0]?.id);
  }

  /** Reports, and waits until the task is acknowledged. */
  async request(input: ReportInput): Promise<TaskRow> {
    return this.acknowledged(await this.report(input));
  }

  async task(id: string): Promise<TaskRow> {
    const { rows } = await this.#session.query<TaskRow>(SELECT_TASK, [id]);
    const [task] = rows;
    if (task === undefined) throw new Error(`there is no task ${id}`);
    return task;
  }

  /** Waits until the task is holding or has ended. */
  async acknowledged(id: string): Promise<TaskRow> {
    return this.#taskWhen(id, 'be acknowledged', ({ status }) => !OPEN.has(status));
  }

  /** Waits until the task has ended. */
  async ended(id: string): Promise<TaskRow> {
    return this.#taskWhen(id, 'end', ({ status }) => !OPEN.has(status) && status !== 'holding');
  }

  async #taskWhen(id: string, what: string, test: (task: TaskRow) => boolean): Promise<TaskRow> {
    let seen: TaskRow | undefined;
    return waitFor(
      `task ${id} to ${what}`,
      async () => {
        seen = await this.task(id);
        return test(seen) && seen;
      },
      { timeoutMs: 60_000 },
    );
  }

  /** The rows of pg_dist_node of one group, or of all; of any node's copy. */
  async nodes(groupid?: number, db: Client = this.#session): Promise<NodeRow[]> {
    const { rows } = await db.query<NodeRow>(SELECT_NODES, [groupid ?? null]);
    return rows;
  }

  /** The statuses that a task has gone through, oldest first. */
  async history(id: string): Promise<string[]> {
    const { rows } = await this.#session.query<{ status: string }>(
      'SELECT status FROM mpp_task_log WHERE task_id = $1 ORDER BY id',
      [id],
    );
    return rows.map(({ status }) => status);
  }

  /** Number of groups whose hold has a live session on the server. */
  async holds(): Promise<number> {
    const { rows } = await this.#session.query<{ count: number }>(
      'SELECT count(pid)::integer AS count FROM mpp_holds',
    );
    return rows[0]?.count ?? 0;
  }

  async stop(): Promise<void> {
    await Promise.all(this.#controllers.map((controller) => controller.end('SIGKILL')));
    await this.#session.end().catch(() => undefined);
    await this.cluster.stop();
  }
}

const OPEN = new Set(['pending', 'claimed']);

const INSERT = `
  INSERT INTO mpp_tasks (event, groupid, nodename, nodeport, secondaries, timeout, cooldown, pause)
  VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
  RETURNING id`;

const SELECT_TASK = `
  SELECT id, event, groupid, status, reason, nodeid, attempt
  FROM mpp_tasks
  WHERE id = $1`;

const SELECT_NODES = `
  SELECT nodeid, groupid, format('%s:%s', nodename, nodeport) AS node, noderole::text AS role
  FROM pg_dist_node
  WHERE groupid = $1 OR $1 IS NULL
  ORDER BY nodeid`;
