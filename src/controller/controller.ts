import { randomBytes } from 'node:crypto';
import { hostname } from 'node:os';
import { inDatabase, type Settings } from '../config/settings.js';
import { DatabaseStateError, MppError, UnreachableError } from '../errors.js';
import { componentLogger, type Logger, OncePerChange } from '../logger.js';
import { createMPP } from '../mpp/index.js';
import { packageVersion } from '../package-root.js';
import { knownMigration } from '../postgres/migrate.js';
import {
  divideSessions,
  readServerConnections,
  type ServerConnections,
  type SessionBudget,
} from '../postgres/pool.js';
import { errorText, tryLast } from '../postgres/session.js';
import { NO_OBSERVER, type Observer } from '../tasks/observer.js';
import { NewerCoordinatorWatch } from '../topology/newer-coordinator.js';
import { checkTopology } from '../topology/topology.js';
import { sleep, untilAborted, within } from '../wait.js';
import { ActiveController } from './active-controller.js';
import { ControlSession } from './control-session.js';
import { announce, markGone } from './presence.js';
import { TroubleReporter } from './controller-failure.js';

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
  return createObservedController(options, () => NO_OBSERVER);
}

/**
 * The same with an observer.
 *
 * @param observe gives what hears the controller of one database of MPP_DATABASES; without it, of the one that there is
 */
export function createObservedController(
  { settings, logger }: { settings: Settings; logger: Logger },
  observe: (database: string | undefined) => Observer,
): Controller {
  if (settings.databases === undefined) {
    return new ControllerProcess(settings, logger, { observer: observe(undefined) });
  }
  const members = settings.databases.map((database) => {
    const id = controllerId();
    const own = inDatabase(settings, database);
    const observer = observe(database);
    let isAgain = false;
    const create = (): Controller => {
      const controller = new ControllerProcess(own, logger.child({ database }), {
        ...{ id, isAgain, observer },
      });
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
  readonly #observer: Observer;
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
    options: { readonly id?: string; readonly isAgain?: boolean; readonly observer: Observer },
  ) {
    const { id = controllerId(), isAgain = false, observer } = options;
    this.#observer = observer;
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
        this.#observer.stateIs('connecting');
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
    this.#observer.connected(control);
    this.#observer.stateIs('standby');
    const watch = this.#watchForNewer(control);
    try {
      await untilAborted(this.#abort.signal, watch.start());
      if (await this.#awaitLead(control, watch, version)) {
        this.#hasLed = true;
        await this.#serve(control, watch, version);
      }
    } finally {
      this.#observer.stateIs('connecting');
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
      this.#observer.turned();
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
        if (trouble === undefined) this.#observer.heartbeatWritten();
        else this.#trouble.warn(trouble);
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
        observer: this.#observer,
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
    for (const { sentence } of missing) this.#logger.warn(sentence);
    for (const sentence of advice) this.#logger.warn(sentence);
  }

  /** What a person must put right before this can work at all; once it has worked, it waits instead. */
  #isFatal(error: unknown): boolean {
    if (error instanceof DatabaseStateError && error.code === 'OTHER_SCHEMA') return !this.#hasLed;
    if (this.#settled) return false;
    if (error instanceof DatabaseStateError) return !MAY_PASS.has(error.code);
    return error instanceof MppError && !error.retryable;
  }

  async #pause(ms: number): Promise<void> {
    await sleep(ms, this.#abort.signal);
  }
}

/** What ends without a change to the setup: a promotion, a maintenance. */
const MAY_PASS = new Set(['IN_RECOVERY', 'READ_ONLY']);

/** One of several databases on the same nodes. */
export interface Member {
  readonly database: string;
  /** Makes a controller for it. */
  readonly create: () => Controller;
}

interface SeveralOptions {
  readonly members: readonly Member[];
  /** When a database that has refused is tried again, in milliseconds. */
  readonly againMs: number;
  readonly logger: Logger;
}

/**
 * The controllers of several databases on the same nodes, as one. A database in which one cannot do its
 * work is tried again, and the others go on; when there is none left in which one can, it ends. Which
 * process is active is decided for each database by itself.
 */
export class SeveralControllers implements Controller {
  readonly finished: Promise<void>;
  readonly #options: SeveralOptions;
  readonly #abort = new AbortController();
  readonly #controllers = new Map<Member, Controller>();
  readonly #refused = new Set<Member>();
  #running: Promise<void> | undefined;
  #resolve: () => void = () => undefined;
  #reject: (error: unknown) => void = () => undefined;

  constructor(options: SeveralOptions) {
    this.#options = options;
    // What is wrong with the settings is said now.
    for (const member of options.members) this.#controllers.set(member, member.create());
    this.finished = new Promise((resolve, reject) => {
      this.#resolve = resolve;
      this.#reject = reject;
    });
    this.finished.catch(() => undefined);
  }

  start(): Promise<void> {
    this.#running ??= this.#run();
    return Promise.resolve();
  }

  async stop(): Promise<void> {
    this.#abort.abort();
    await Promise.all([...this.#controllers.values()].map((controller) => controller.stop()));
    await this.#running;
    this.#resolve();
  }

  async #run(): Promise<void> {
    const { members } = this.#options;
    const ends = await Promise.allSettled(members.map((member) => this.#serve(member)));
    const failed = ends.find((end) => end.status === 'rejected');
    if (failed) this.#reject(failed.reason);
    else this.#resolve();
  }

  /** @throws why nothing can be done in this database, once that is so in all. */
  async #serve(member: Member): Promise<void> {
    const { database } = member;
    const { members, againMs, logger } = this.#options;
    const said = new OncePerChange();
    let refusals = 0;
    while (!this.#abort.signal.aborted) {
      const controller = this.#controllers.get(member) ?? member.create();
      this.#controllers.set(member, controller);
      try {
        await controller.start();
        this.#refused.delete(member);
        await controller.finished;
        return;
      } catch (error) {
        this.#controllers.delete(member);
        this.#refused.add(member);
        if (!(error instanceof MppError)) throw error;
        if (this.#refused.size === members.length) {
          await this.#stopOthers();
          throw nameDatabase(error, database);
        }
        refusals += 1;
        const text = errorText(error);
        said.say(text, () =>
          logger.error(
            { database },
            `database ${database} is left alone: ${text}; it is tried again`,
          ),
        );
        await sleep(refusalDelay(againMs, refusals), this.#abort.signal);
      }
    }
  }

  async #stopOthers(): Promise<void> {
    this.#abort.abort();
    await Promise.all([...this.#controllers.values()].map((controller) => controller.stop()));
  }
}

const MOST_MS = 600_000;

/** A heartbeat, then twice as long each time, up to ten minutes; or a heartbeat where that is longer. */
function refusalDelay(againMs: number, refusals: number): number {
  return Math.max(againMs, Math.min(againMs * 2 ** Math.min(refusals - 1, 20), MOST_MS));
}

function nameDatabase(error: MppError, database: string): MppError {
  if (!(error instanceof DatabaseStateError)) return error;
  const { code, message, retryable } = error;
  return new DatabaseStateError(code, `database ${database}: ${message}`, { retryable });
}
