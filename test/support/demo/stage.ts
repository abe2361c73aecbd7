import { dirname } from 'node:path';
import { runCli } from '../cli.js';
import { ControllerProcess } from '../controller-process.js';
import { startCluster, type Cluster } from '../servers/index.js';
import { prepareCluster } from '../standin/prepare.js';
import { startTraffic, type Traffic } from '../traffic/traffic.js';
import type { Server } from '../servers/server.js';

/** What a controller has without any setting; the test support would make it quicker. */
const DEFAULT_SETTINGS = { MPP_POLL: '1s', MPP_HEARTBEAT: '10s', MPP_LOG_LEVEL: 'info' };

/** Every phase of the traffic inserts ids of a range of its own. */
const IDS_PER_PHASE = 20_000;
const PHASES = 2;

/** Clients of one group. */
const CLIENTS = { writers: 3, readers: 2 };
const THINK_MS = 5;

/** All that runs for the demo: servers, controller, traffic. `close` ends whatever there is of it. */
export class Stage {
  readonly #env: NodeJS.ProcessEnv;
  readonly #traffic = new Set<Traffic>();
  #closed = false;
  #starting: Promise<Cluster> | undefined;
  #cluster: Cluster | undefined;
  #controller: ControllerProcess | undefined;
  #groupOf = new Map<number, number>();

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
        IDS_PER_PHASE * PHASES,
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

  /** Clients of one group alone. @param phase 0 or 1, for ids that no other phase has */
  startTraffic(groupid: number, phase: number): Traffic {
    const traffic = startTraffic({
      connection: this.coordinator.connection,
      clients: CLIENTS,
      thinkMs: THINK_MS,
      firstId: phase * IDS_PER_PHASE + 1,
      accepts: (id) => (this.#groupOf.get(id) ?? groupid) === groupid,
    });
    this.#traffic.add(traffic);
    return traffic;
  }

  /** Light traffic on all groups, for as long as the demo is kept. */
  startLightTraffic(): Traffic {
    const traffic = startTraffic({
      connection: this.coordinator.connection,
      clients: { writers: 4, readers: 2 },
      thinkMs: 50,
      firstId: PHASES * IDS_PER_PHASE + 1,
    });
    this.#traffic.add(traffic);
    return traffic;
  }

  /** True once `close` was called. */
  get closed(): boolean {
    return this.#closed;
  }

  /** Ends and removes everything, also what is only just starting. Idempotent. */
  async close(): Promise<void> {
    this.#closed = true;
    const cluster = await this.#starting?.catch(() => undefined);
    const quiet = Promise.all([...this.#traffic].map((traffic) => traffic.stop()));
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
