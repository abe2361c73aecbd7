import { randomBytes } from 'node:crypto';
import { hostname } from 'node:os';
import type { Settings } from '../config.js';
import { inDatabase } from '../each-database.js';
import { DatabaseStateError, MppError, UnreachableError } from '../errors.js';
import { createMPP } from '../mpp/index.js';
import { componentLogger, type Logger } from '../observe/logger.js';
import { knownMigration } from '../postgres/migrate.js';
import { tryLast } from '../postgres/session.js';
import {
  divideSessions,
  readServerConnections,
  type ServerConnections,
  type SessionBudget,
} from '../postgres/session-budget.js';
import { checkTopology } from '../topology/topology.js';
import { packageVersion } from '../version.js';
import { within } from '../within.js';
import { ControlSession } from './control-session.js';
import { ActiveController } from './active-controller.js';
import { announce, markGone } from './presence.js';
import { NewerCoordinatorWatch } from './newer-coordinator-watch.js';
import { SeveralControllers } from './several.js';
import { TroubleReporter } from './trouble.js';
import { pause, untilAborted } from './signal.js';

/** A controller: one process's part in the cluster. */
export interface Controller {
  /** Begins to work in the background; returns once it has begun. */
  start(): Promise<void>;
  /** Rolls back what is held, writes that down, closes every session. */
  stop(): Promise<void>;
  /** Resolves after `stop`; rejects when the controller cannot do its work here. */
  readonly finished: Promise<void>;
}

/**
 * How often a standby asks whether it may lead. Waiting for the lock instead would be quicker, and would
 * take the leadership from one that has lost its control session only, and its holds with it.
 */
const LEAD_MS = 100;
/** A takeover that takes longer is not one of the short waits that belong to it. */
const BLOCKED_MS = 3_000;
const GONE_MS = 1_000;

/** @throws ConfigError when the settings do not fit the MPP database. */
export function createController(options: { settings: Settings; logger: Logger }): Controller {
  const { settings, logger } = options;
  if (settings.databases === undefined) return new ControllerProcess(settings, logger);
  const members = settings.databases.map((database) => {
    const id = controllerId();
    const own = inDatabase(settings, database);
    let isAgain = false;
    const create = (): Controller => {
      const controller = new ControllerProcess(own, logger.child({ database }), { id, isAgain });
      isAgain = true;
      return controller;
    };
    return { database, create };
  });
  const againMs = settings.heartbeatMs;
  return new SeveralControllers({
    members,
    againMs,
    logger: componentLogger(logger, 'controller'),
  });
}

function controllerId(): string {
  return `${hostname()}:${process.pid}:${randomBytes(3).toString('hex')}`;
}

class ControllerProcess implements Controller {
  readonly finished: Promise<void>;
  readonly #settings: Settings;
  readonly #root: Logger;
  readonly #logger: Logger;
  readonly #id: string;
  /** True for one that takes the place of one that has ended. */
  readonly #isAgain: boolean;
  readonly #abort = new AbortController();
  readonly #mpp;
  /** The newest migration of the code; read once, as an upgrade replaces the files. */
  #known = 0;
  /** Its servers in the order in which they are tried next. */
  #connection;
  readonly #trouble: TroubleReporter;
  #hasLed = false;
  /** True when it was to stop and the server did not answer. */
  #isUnrecorded = false;
  #waitsFor: { text: string; since: number } | undefined;
  /** True once there is something to wait for: it has worked here, or will after a promotion. */
  #settled = false;
  #running: Promise<void> | undefined;
  #resolve: () => void = () => undefined;
  #reject: (error: unknown) => void = () => undefined;

  constructor(
    settings: Settings,
    logger: Logger,
    { id = controllerId(), isAgain = false }: { id?: string; isAgain?: boolean } = {},
  ) {
    this.#id = id;
    this.#isAgain = isAgain;
    this.#settings = settings;
    this.#connection = settings.connection;
    this.#root = logger;
    this.#logger = componentLogger(logger, 'controller');
    this.#trouble = new TroubleReporter(this.#logger, settings.heartbeatMs);
    this.#mpp = createMPP(settings);
    checkTopology(settings);
    this.finished = new Promise((resolve, reject) => {
      this.#resolve = resolve;
      this.#reject = reject;
    });
    this.finished.catch(() => undefined);
  }

  start(): Promise<void> {
    this.#running ??= this.#run().then(this.#resolve, this.#reject);
    return Promise.resolve();
  }

  async stop(): Promise<void> {
    this.#abort.abort();
    await (this.#running ?? Promise.resolve());
    this.#resolve();
  }

  get #stopping(): boolean {
    return this.#abort.signal.aborted;
  }

  async #run(): Promise<void> {
    const version = packageVersion();
    this.#known = await knownMigration();
    const level = this.#isAgain ? 'debug' : 'info';
    this.#logger[level]({ controller: this.#id, version }, 'controller started');
    while (!this.#stopping) {
      try {
        await this.#work(version);
      } catch (error) {
        if (this.#isFatal(error)) throw error;
        if (error instanceof DatabaseStateError) this.#settled = true;
        await this.#pause(this.#trouble.report(error));
      }
    }
    if (this.#isUnrecorded) {
      throw new UnreachableError(
        'PostgreSQL does not answer; ended without writing down what was rolled back',
      );
    }
    this.#logger[level]('controller stopped');
  }

  /** From one control session to its end, or that of the leadership. */
  async #work(version: string): Promise<void> {
    const opening = this.#open();
    const control = await untilAborted(this.#abort.signal, opening);
    if (control === undefined) {
      void opening.then(
        (late) => late.discard(),
        () => undefined,
      );
      return;
    }
    this.#settled = true;
    this.#trouble.isOver();
    const watch = this.#watchForNewer(control);
    try {
      await untilAborted(this.#abort.signal, watch.start());
      if (await this.#awaitLead(control, watch, version)) {
        this.#hasLed = true;
        await this.#serve(control, watch, version);
      }
    } finally {
      // An old coordinator that takes writes, too, must not be found first for ever.
      if (watch.found.aborted) this.#connection = tryLast(this.#connection, control.connection);
      await Promise.all([watch.stop(), control.close()]);
    }
  }

  async #open(connection = this.#connection): Promise<ControlSession> {
    const { schema, heartbeatMs } = this.#settings;
    return ControlSession.open({
      ...{ connection, heartbeatMs },
      contract: { schema, known: this.#known },
      mpp: this.#mpp,
      controller: this.#id,
    });
  }

  #watchForNewer({ identity }: ControlSession): NewerCoordinatorWatch {
    const { connection, schema, node: credentials, heartbeatMs } = this.#settings;
    return new NewerCoordinatorWatch({
      ...{ identity, connection, schema, credentials },
      nodesQuery: this.#mpp.nodesQuery,
      intervalMs: heartbeatMs,
      signal: this.#abort.signal,
    });
  }

  /**
   * A standby of this kind is ready at once when the active one goes.
   *
   * @throws DatabaseStateError when it could not act: `SCHEMA_…`, `REPLACED`.
   */
  async #awaitLead(
    control: ControlSession,
    watch: NewerCoordinatorWatch,
    version: string,
  ): Promise<boolean> {
    const { heartbeatMs } = this.#settings;
    let present = 0;
    while (!this.#stopping && !control.ended.aborted) {
      watch.found.throwIfAborted();
      const attempt = await control.tryLead();
      if (attempt.leads) {
        // The active one may have gone because of a migration.
        await control.checkMigrated();
        return true;
      }
      this.#sayWhyNot(attempt.reason);
      if (performance.now() - present >= heartbeatMs || present === 0) {
        await control.checkMigrated();
        const trouble = await announce(control, {
          ...{ id: this.#id, version, strategy: control.handler.strategy },
          maxHolds: this.#settings.maxHolds,
        });
        if (trouble !== undefined) this.#trouble.warn(trouble);
        present = performance.now();
      }
      await this.#pause(LEAD_MS);
    }
    if (!control.ended.aborted) {
      const gone = markGone(control.client, this.#id).catch(() => undefined);
      await within(GONE_MS, gone, undefined);
    }
    return false;
  }

  /** Once another controller leads that is normal; what else keeps this one from leading is for a person. */
  #sayWhyNot(reason: string | undefined): void {
    const text = reason ?? '';
    if (this.#waitsFor?.text !== text) this.#waitsFor = { text, since: performance.now() };
    if (reason === undefined) {
      this.#trouble.note('another controller is active; this one stands by');
    } else if (performance.now() - this.#waitsFor.since >= BLOCKED_MS) {
      this.#trouble.warn(`this controller cannot become active: ${reason}`);
    }
  }

  /** The time as the active controller, from the leader lock to its loss or the stop. */
  async #serve(
    control: ControlSession,
    watch: NewerCoordinatorWatch,
    version: string,
  ): Promise<void> {
    const { strategy, version: mppVersion } = control.handler;
    const connections = await readServerConnections(control.client);
    const sessions = divideSessions(this.#settings.maxSessions, connections);
    const active = new ActiveController(
      {
        // Until the leadership is lost it works on one server, whichever of several it was.
        settings: { ...this.#settings, connection: control.connection },
        logger: this.#root,
        mpp: this.#mpp,
        controller: this.#id,
        version,
        sessions,
        signal: this.#abort.signal,
        replaced: watch.found,
        open: () => this.#open(control.connection),
        onActive: () => {
          this.#logger.info(`active, with strategy ${strategy} on Citus ${mppVersion}`);
          this.#saySessions(sessions, connections);
          void this.#sayWhatIsWrong(control);
        },
      },
      control,
    );
    try {
      await active.run();
    } finally {
      this.#isUnrecorded = this.#stopping && active.isUnrecorded;
    }
    this.#trouble.clear();
  }

  #saySessions({ total, groups, kept }: SessionBudget, { max, reserved }: ServerConnections): void {
    const line =
      `opens at most ${total} sessions with the coordinator, whose max_connections is ${max}; ` +
      `so at most ${groups} groups are worked on at the same time`;
    const fields = {
      sessions: total,
      maxConnections: max,
      reserved,
      kept: kept.groups + kept.pause + kept.watch,
    };
    if (2 * total <= max - reserved) this.#logger.info(fields, line);
    else
      this.#logger.warn(fields, `${line}; that is more than half of them: raise max_connections`);
  }

  /** Rights that this role lacks, and parameters of the server that make a switchover slow. */
  async #sayWhatIsWrong({ handler, client }: ControlSession): Promise<void> {
    const missing = await handler.missingRights(client).catch(() => []);
    const advice = await handler.adviseSettings(client).catch(() => []);
    for (const sentence of [...missing, ...advice]) this.#logger.warn(sentence);
  }

  /** What a person must put right before this can work at all; once it has worked, we wait instead. */
  #isFatal(error: unknown): boolean {
    if (error instanceof DatabaseStateError && error.code === 'OTHER_SCHEMA') return !this.#hasLed;
    if (this.#settled) return false;
    if (error instanceof DatabaseStateError) return !MAY_PASS.has(error.code);
    return error instanceof MppError && !error.retryable;
  }

  async #pause(ms: number): Promise<void> {
    await pause(ms, this.#abort.signal);
  }
}

/** What ends without a change to the setup: a promotion, a maintenance. */
const MAY_PASS = new Set(['IN_RECOVERY', 'READ_ONLY']);
