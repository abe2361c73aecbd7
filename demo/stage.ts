import { dirname } from 'node:path';
import { runCli } from '../test/kit/cli.js';
import { ControllerProcess } from '../test/kit/controller-process.js';
import { startCluster, type Cluster, type Group, type Server } from '../test/kit/servers/index.js';
import { prepareCluster } from '../test/kit/standin/prepare.js';
import { startTraffic, type Traffic } from '../test/kit/traffic/traffic.js';

/** What a controller has without any setting; the test support would make it quicker. */
const DEFAULT_SETTINGS = { MPP_POLL: '1s', MPP_HEARTBEAT: '10s', MPP_LOG_LEVEL: 'info' };

/** Every act inserts ids of a range of its own. */
const IDS_PER_ACT = 10_000;
const ACTS = 5;

/** Clients of each entry node. */
const CLIENTS = { writers: 3, readers: 3, transactions: 3 };
const THINK_MS = 20;

/** All that runs for the demo: servers, controller, traffic. `close` ends whatever there is of it. */
export class Stage {
  readonly #env: NodeJS.ProcessEnv;
  readonly #traffic = new Set<Traffic>();
  #closed = false;
  #starting: Promise<Cluster> | undefined;
  #cluster: Cluster | undefined;
  #controller: ControllerProcess | undefined;
  #restoring: Promise<void> | undefined;
  #groupOf = new Map<number, number>();
  #acts = 0;

  /** @param env where `MPP_PG_BIN` and the like are read */
  constructor(env: NodeJS.ProcessEnv) {
    this.#env = env;
  }

  /** @throws Error before `startServers` */
  get cluster(): Cluster {
    if (this.#cluster === undefined) throw new Error('the servers are not started yet');
    return this.#cluster;
  }

  get coordinator(): Server {
    return this.cluster.coordinator;
  }

  /** The worker group whose primary moves. @throws Error before `startServers` */
  get group(): Group {
    return this.cluster.group(1);
  }

  /** The nodes where the clients' statements enter. */
  get entries(): readonly Server[] {
    return [this.coordinator, this.cluster.group(2).primary];
  }

  /** How many clients an act has. */
  get clients(): number {
    const { writers, readers, transactions } = CLIENTS;
    return this.entries.length * (writers + readers + transactions);
  }

  /** Where the data and the log of each server are. */
  get folder(): string {
    return dirname(dirname(this.coordinator.data));
  }

  get url(): string {
    return `postgresql://postgres@${this.coordinator.address}/postgres`;
  }

  async startServers(): Promise<void> {
    this.#starting = startCluster({ groups: 2, standbys: true, env: this.#env });
    this.#cluster = await this.#starting;
  }

  /** The nodes, standbys included, and the tables that the traffic uses. */
  async registerNodes(): Promise<void> {
    await prepareCluster(this.cluster, { secondaries: true });
    this.#groupOf = await this.coordinator.withSession(async (session) => {
      const { rows } = await session.query<{ id: number; groupid: number }>(GROUP_OF_IDS, [
        IDS_PER_ACT * ACTS,
      ]);
      return new Map(rows.map(({ id, groupid }) => [id, groupid]));
    });
  }

  /** Null on the stand-in. */
  async citusVersion(): Promise<string | null> {
    if (!this.cluster.hasCitus) return null;
    return this.coordinator.withSession(async (session) => {
      const { rows } = await session.query<{ version: string }>(CITUS_VERSION);
      return rows[0]?.version ?? null;
    });
  }

  /** By the command that a DBA has. */
  async migrate(): Promise<void> {
    const { exitCode, stderr } = await runCli(['migrate'], { DATABASE_URL: this.url });
    if (exitCode !== 0) throw new Error(`mpp-controller migrate failed: ${stderr.trim()}`);
  }

  /** @returns the process id, once the controller is active */
  async startController(): Promise<number> {
    this.#controller = ControllerProcess.start({
      coordinator: this.coordinator,
      reaper: this.cluster.testBed.reaper,
      env: DEFAULT_SETTINGS,
    });
    await this.#controller.active();
    return this.#controller.pid;
  }

  /** Clients that work on the group that moves, through every entry node. */
  startTraffic(): Traffic {
    const { groupid } = this.group;
    const traffic = startTraffic({
      connection: this.entries.map(({ connection }) => connection),
      clients: CLIENTS,
      thinkMs: THINK_MS,
      firstId: this.#acts * IDS_PER_ACT + 1,
      accepts: (id) => (this.#groupOf.get(id) ?? groupid) === groupid,
    });
    this.#acts += 1;
    this.#traffic.add(traffic);
    return traffic;
  }

  /** Light traffic on all groups, for as long as the demo is kept. */
  startLightTraffic(): Traffic {
    const traffic = startTraffic({
      connection: this.coordinator.connection,
      clients: { writers: 4, readers: 2 },
      thinkMs: 50,
      firstId: ACTS * IDS_PER_ACT + 1,
    });
    this.#traffic.add(traffic);
    return traffic;
  }

  /** Brings the old primary back as a standby. @returns false when there is nothing to do */
  async restoreStandby(group: Group): Promise<boolean> {
    if (this.#closed) throw new Error('the demo is about to end');
    if (group.standby.isRunning) return false;
    this.#restoring = group.rejoin();
    await this.#restoring;
    return true;
  }

  /** Why nobody takes reports any more; undefined while the controller runs. */
  get controllerFailure(): string | undefined {
    const controller = this.#controller;
    if (controller === undefined || controller.exitCode === null) return undefined;
    const lines = controller.stderr.split('\n');
    const reason = lines.find((line) => /^\S*error: /i.test(line)) ?? 'it did not say why';
    return `the controller ended with exit code ${controller.exitCode}: ${reason}`;
  }

  /** True once `close` was called. */
  get closed(): boolean {
    return this.#closed;
  }

  /** Ends and removes everything, also what is only just starting. Idempotent. */
  async close(): Promise<void> {
    this.#closed = true;
    const cluster = await this.#starting?.catch(() => undefined);
    // A server that is only just starting would start after all have been stopped.
    await this.#restoring?.catch(() => undefined);
    // Traffic that had only just begun may not have got as far as its first rows.
    const quiet = Promise.allSettled([...this.#traffic].map((traffic) => traffic.stop()));
    await this.#controller?.end('SIGKILL');
    await cluster?.stop();
    await quiet;
  }
}

const GROUP_OF_IDS = `
  SELECT id, placement.groupid
  FROM generate_series(1, $1::integer) AS id
  JOIN pg_dist_placement AS placement
    ON placement.shardid = get_shard_id_for_distribution_column('items', id::bigint)`;

const CITUS_VERSION = "SELECT extversion AS version FROM pg_extension WHERE extname = 'citus'";
