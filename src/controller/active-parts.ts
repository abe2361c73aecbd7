import type pg from 'pg';
import type { Settings } from '../config/settings.js';
import type { AbstractMPP, AbstractMPPHandler, TrafficControl } from '../mpp/abstract.js';
import { componentLogger, type Logger } from '../logger.js';
import type { ServerIdentity } from '../postgres/identity.js';
import { Listener } from '../postgres/listener.js';
import { LoginGate, createPool, type SessionBudget } from '../postgres/pool.js';
import { OtherDatabases } from '../databases/other-databases.js';
import type { Observer } from '../tasks/observer.js';
import { Topology } from '../topology/topology.js';
import { within } from '../wait.js';
import { TaskLoop } from './task-loop.js';
import { NodeVerification, NO_VERIFICATION, type Verification } from './verification.js';

interface ActivePartsOptions {
  readonly settings: Settings;
  readonly logger: Logger;
  readonly mpp: AbstractMPP;
  readonly handler: AbstractMPPHandler;
  /** Id of this controller. */
  readonly controller: string;
  readonly observer: Observer;
  /** How many sessions there may be with the coordinator. */
  readonly sessions: SessionBudget;
  /** The server that all sessions must be with. */
  readonly identity: ServerIdentity;
  /** Called when another one answers. */
  readonly onOtherServer: () => void;
  /** Aborted when the controller is to stop. */
  readonly signal: AbortSignal;
}

/** How long a task waits for a session while all that are allowed are in use; then it is put back. */
const BUSY_MS = 100;
/** A server that does not answer a trivial statement for so long is taken for gone when it is to be left. */
const SILENT_MS = 1_500;

/** No statement on the queue takes longer, nor waits longer for a lock. */
const QUEUE = { purpose: 'queue', statementTimeoutMs: 10_000, lockTimeoutMs: 1_000 };

/** All that runs while a controller leads, beside its control session, and its sessions. */
export class ActiveParts {
  readonly db: pg.Pool;
  readonly sessions: pg.Pool;
  readonly gate = new LoginGate();
  readonly traffic: TrafficControl;
  readonly otherDatabases: OtherDatabases;
  readonly taskLoop: TaskLoop;
  readonly #topology: Topology;
  readonly #verification: Verification;
  readonly #listener: Listener;
  readonly #logger: Logger;
  readonly #severed = new AbortController();
  #isSilent = false;

  constructor(options: ActivePartsOptions) {
    const { settings, logger, mpp, controller, sessions: most, identity, onOtherServer } = options;
    const { observer } = options;
    const { connection, schema } = settings;
    this.#logger = componentLogger(logger, 'controller');
    const common = { identity, onOtherServer, schema, severed: this.#severed.signal };
    const onIdleError = (error: Error): void => {
      this.#logger.warn({ err: error }, 'an idle session was lost');
    };
    const pool = { ...common, gate: this.gate, onIdleError };
    const queue = { ...QUEUE, max: most.queue };
    const group = { purpose: 'group', max: most.groups, min: most.kept.groups, busyMs: BUSY_MS };
    this.db = createPool(connection, { ...pool, ...queue });
    this.sessions = createPool(connection, { ...pool, ...group });
    const { db, sessions } = this;
    this.traffic = mpp.createTraffic({
      ...common,
      ...{ connection, node: settings.node, sessions: most },
      logger: componentLogger(logger, 'traffic'),
    });
    this.otherDatabases = new OtherDatabases({
      ...{ db, settings, identity, onOtherServer },
      logger: componentLogger(logger, 'databases'),
    });
    const { traffic, otherDatabases } = this;
    const verification = (this.#verification = this.#createVerification(options));
    this.taskLoop = new TaskLoop({
      ...settings,
      ...{ db, sessions, mpp, traffic, otherDatabases, controller, verification, observer },
      handler: options.handler,
      onHoldEnded: () => this.#topology.wake(),
      logger: componentLogger(logger, 'queue'),
    });
    this.#topology = new Topology({
      ...{ db, mpp, controller, settings, logger, observer, signal: options.signal },
      otherDatabases: otherDatabases.databases,
    });
    this.#listener = this.#createListener(settings, observer);
  }

  start(): void {
    this.#listener.start();
    this.taskLoop.start();
    this.#topology.start();
    this.#verification.start();
  }

  /**
   * Ends the work, before the sessions that it is done in.
   *
   * @param signOfLife asks the server for one, in another session than the queue's
   */
  async stop(
    how: 'record' | 'abandon',
    signOfLife: (() => Promise<unknown>) | undefined,
  ): Promise<void> {
    const severing = this.#severIfSilent(signOfLife);
    await Promise.all([this.#listener.stop(), this.#verification.stop()]);
    await Promise.all([this.#topology.stop(), this.taskLoop.stop(how)]);
    await Promise.all([this.traffic.stop(), this.otherDatabases.stop()]);
    await severing;
  }

  /** True when the server did not answer at the end, so that what was rolled back is not written down. */
  get isSilent(): boolean {
    return this.#isSilent;
  }

  async closeSessions(): Promise<void> {
    await Promise.all([this.db.end(), this.sessions.end()]);
  }

  #createVerification({
    settings,
    mpp,
    logger,
    identity,
    signal,
  }: ActivePartsOptions): Verification {
    if (settings.verify === 'off') {
      this.#logger.warn(
        'MPP_VERIFY is off: addresses are written to pg_dist_node without asking the node what it is',
      );
      return NO_VERIFICATION;
    }
    return new NodeVerification({
      ...{ mpp, signal, identity },
      db: this.db,
      credentials: settings.node,
      coordinator: { host: settings.coordinatorHost, port: settings.coordinatorPort },
      intervalMs: settings.heartbeatMs,
      logger: componentLogger(logger, 'verification'),
    });
  }

  #createListener({ connection }: Settings, observer: Observer): Listener {
    return new Listener({
      connection,
      channel: 'mpp_tasks',
      gate: this.gate,
      onWake: () => {
        this.taskLoop.wake();
        this.otherDatabases.wake();
        this.#topology.wake();
      },
      onReconnected: () => observer.listenerReconnected(),
      onError: (error) => {
        const line = 'listening was interrupted; the table is polled meanwhile';
        this.#logger.warn({ err: error }, line);
      },
    });
  }

  /** A server that has vanished would keep every statement waiting that has been sent to it. */
  async #severIfSilent(signOfLife: (() => Promise<unknown>) | undefined): Promise<void> {
    const asked = [this.db.query('SELECT'), ...(signOfLife ? [signOfLife()] : [])];
    const answers = Promise.any(asked).then(
      () => 'yes' as const,
      () => 'gone' as const,
    );
    const answer = await within(SILENT_MS, answers, 'silent' as const);
    if (answer === 'yes') return;
    this.#isSilent = answer === 'silent';
    if (this.#isSilent) {
      this.#logger.warn('PostgreSQL does not answer; its sessions are closed without waiting');
    }
    this.#severed.abort();
  }
}
