import type { ControllerProcess } from '../kit/controller-process.js';
import { FaultProxy } from '../kit/faults/proxy.js';
import { Harness } from '../kit/harness.js';
import { waitFor } from '../kit/servers/index.js';
import { primaryNodeId, waitUntilSynced } from '../kit/standin/observe.js';
import { installRecorder } from './recorder.js';

export interface Address {
  readonly host: string;
  readonly port: number;
}

export function text({ host, port }: Address): string {
  return `${host}:${port}`;
}

/** How often the table is looked at without a notification; the probe for lost wake-ups knows it. */
export const POLL_MS = 2_000;

const SETTINGS = {
  MPP_POLL: `${POLL_MS}ms`,
  MPP_HEARTBEAT: '300ms',
  MPP_PAUSE: 'auto',
  MPP_TOPOLOGY: 'table',
  MPP_MIN_COOLDOWN: '0ms',
  MPP_LOG_LEVEL: 'info',
  MPP_NODE_URL: 'postgres://postgres@/postgres',
  // A warning then says where it comes from.
  NODE_OPTIONS: '--trace-warnings',
};

/**
 * PostgreSQL does not stop before a connection that sends no startup packet is given up, such as one of a
 * controller that stands still; by default that takes a minute.
 */
const SERVER_SETTINGS = { authentication_timeout: '5s' };

/** A controller, and what it reaches the coordinator through. Another one takes its place when it is killed. */
export class Slot {
  readonly role: string;
  readonly proxy: FaultProxy;
  readonly #harness: Harness;
  readonly #roles: Map<number, string>;
  #controller: ControllerProcess | undefined;
  isFrozen = false;

  constructor(harness: Harness, proxy: FaultProxy, role: string, roles: Map<number, string>) {
    this.#harness = harness;
    this.proxy = proxy;
    this.role = role;
    this.#roles = roles;
  }

  /** Undefined while it is killed. */
  get controller(): ControllerProcess | undefined {
    return this.#controller;
  }

  start(): void {
    const controller = this.#harness.spawnController({
      ...SETTINGS,
      DATABASE_URL: `postgres://${this.role}@127.0.0.1:${this.proxy.port}/postgres`,
    });
    this.#roles.set(controller.pid, this.role);
    this.#controller = controller;
  }

  async kill(): Promise<void> {
    const controller = this.#controller;
    this.#controller = undefined;
    this.isFrozen = false;
    await controller?.end('SIGKILL');
  }

  freeze(): void {
    this.#controller?.signal('SIGSTOP');
    this.isFrozen = true;
  }

  thaw(): void {
    this.#controller?.signal('SIGCONT');
    this.isFrozen = false;
  }
}

/** Servers, proxies and controllers, which stay from one schedule to the next. */
export class Stage {
  readonly harness: Harness;
  readonly slots: readonly Slot[];
  /** In front of each worker, by groupid: `pg_dist_node` has its port. */
  readonly workers: ReadonlyMap<number, FaultProxy>;
  /** The role of each controller that ever was, by its process id. */
  readonly roles: ReadonlyMap<number, string>;
  /** How many locks the hold of each group takes on the coordinator at least. */
  readonly locks: ReadonlyMap<number, number>;

  private constructor(parts: Pick<Stage, 'harness' | 'slots' | 'workers' | 'roles' | 'locks'>) {
    this.harness = parts.harness;
    this.slots = parts.slots;
    this.workers = parts.workers;
    this.roles = parts.roles;
    this.locks = parts.locks;
  }

  static async start(groups: number): Promise<Stage> {
    const harness = await Harness.start({ groups, standbys: false, settings: SERVER_SETTINGS });
    try {
      const workers = new Map<number, FaultProxy>();
      for (const { groupid, primary } of harness.cluster.workers) {
        const proxy = await FaultProxy.start(primary);
        workers.set(groupid, proxy);
        await harness.db.query('SELECT citus_update_node($1, $2, $3)', [
          await primaryNodeId(harness.db, groupid),
          '127.0.0.1',
          proxy.port,
        ]);
      }
      await waitUntilSynced(harness.db);
      const locks = await installRecorder(harness);
      const roles = new Map<number, string>();
      const slots: Slot[] = [];
      for (const role of ['faults_a', 'faults_b']) {
        await harness.db.query(`SET citus.enable_ddl_propagation = 'off'`);
        await harness.db.query(`CREATE ROLE ${role} LOGIN SUPERUSER`);
        const proxy = await FaultProxy.start(harness.cluster.coordinator);
        slots.push(new Slot(harness, proxy, role, roles));
      }
      const stage = new Stage({ harness, slots, workers, roles, locks });
      for (const slot of slots) slot.start();
      await stage.ready();
      return stage;
    } catch (error) {
      await harness.stop();
      throw error;
    }
  }

  get groups(): number[] {
    return [...this.workers.keys()];
  }

  /** Waits until one controller is active. */
  async ready(): Promise<void> {
    await waitFor('a controller to be active', async () => {
      const { rowCount } = await this.harness.db.query(
        "SELECT FROM mpp_status WHERE state = 'active'",
      );
      return rowCount === 1;
    });
  }

  async stop(): Promise<void> {
    for (const slot of this.slots) {
      await slot.kill();
      await slot.proxy.stop();
    }
    for (const proxy of this.workers.values()) await proxy.stop();
    await this.harness.stop();
  }
}
