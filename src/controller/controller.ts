import { randomBytes } from 'node:crypto';
import { hostname } from 'node:os';
import { setTimeout as delay } from 'node:timers/promises';
import type pg from 'pg';
import type { Settings } from '../config.js';
import { DatabaseStateError, MppError } from '../errors.js';
import { createMPP } from '../mpp/index.js';
import { componentLogger, type Logger } from '../observe/logger.js';
import { Listener } from '../postgres/listener.js';
import { createPool } from '../postgres/pool.js';
import { errorText } from '../postgres/session.js';
import { packageVersion } from '../version.js';
import { ControlSession } from './leader.js';
import { forgetGone, markGone, markPresent } from './presence.js';
import { Term } from './term.js';

/** A controller: one process's part in the cluster. */
export interface Controller {
  /** Begins to work in the background; returns once it has begun. */
  start(): Promise<void>;
  /** Rolls back what is held, writes that down, closes every session. */
  stop(): Promise<void>;
  /** Resolves after `stop`; rejects when the controller cannot do its work here. */
  readonly finished: Promise<void>;
}

/** How often a standby asks whether it may lead, and an unreachable server is tried again. */
const RETRY_MS = 250;
/** How long an active controller tries to get its control session back before it gives up its holds. */
const REGAIN_MS = 2_000;

/** @throws ConfigError when the settings do not fit the MPP database. */
export function createController(options: { settings: Settings; logger: Logger }): Controller {
  return new ControllerProcess(options.settings, options.logger);
}

class ControllerProcess implements Controller {
  readonly finished: Promise<void>;
  readonly #settings: Settings;
  readonly #root: Logger;
  readonly #logger: Logger;
  readonly #id = `${hostname()}:${process.pid}:${randomBytes(3).toString('hex')}`;
  readonly #abort = new AbortController();
  readonly #mpp;
  #said: string | undefined;
  #everActive = false;
  #pruning: Promise<void> | undefined;
  #running: Promise<void> | undefined;
  #resolve: () => void = () => undefined;
  #reject: (error: unknown) => void = () => undefined;

  constructor(settings: Settings, logger: Logger) {
    this.#settings = settings;
    this.#root = logger;
    this.#logger = componentLogger(logger, 'controller');
    this.#mpp = createMPP(settings);
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
    this.#logger.info({ controller: this.#id, version }, 'controller started');
    while (!this.#stopping) {
      try {
        const control = await this.#open();
        try {
          if (await this.#awaitLead(control, version)) await this.#lead(control, version);
        } finally {
          await control.close();
        }
      } catch (error) {
        if (this.#isFatal(error)) throw error;
        this.#say(errorText(error));
        await this.#pause(RETRY_MS);
      }
    }
    this.#logger.info('controller stopped');
  }

  async #open(): Promise<ControlSession> {
    const { connection, schema, heartbeatMs } = this.#settings;
    return ControlSession.open(connection, schema, this.#mpp, heartbeatMs);
  }

  /** A standby of this kind is ready at once when the active one goes. */
  async #awaitLead(control: ControlSession, version: string): Promise<boolean> {
    let present = 0;
    while (!this.#stopping && !control.ended.aborted) {
      if (await control.tryLead()) return true;
      this.#say('another controller is active; this one stands by');
      if (performance.now() - present >= this.#settings.heartbeatMs || present === 0) {
        await this.#markPresent(control, version, control.handler.strategy);
        present = performance.now();
      }
      await this.#pause(RETRY_MS);
    }
    await markGone(control.client, this.#id).catch(() => undefined);
    return false;
  }

  /** One term as the active controller, from the leader lock to its loss or the stop. */
  async #lead(first: ControlSession, version: string): Promise<void> {
    const { connection, schema } = this.#settings;
    const onIdleError = (error: Error): void => {
      this.#logger.warn({ err: error }, 'an idle session was lost');
    };
    const db = createPool(connection, {
      schema,
      purpose: 'queue',
      max: 4,
      statementTimeoutMs: 10_000,
      onIdleError,
    });
    const sessions = createPool(connection, { schema, purpose: 'group', max: 10_000, onIdleError });
    const term = this.#createTerm(db, sessions, first);
    const listener = new Listener({
      connection,
      channel: 'mpp_tasks',
      onWake: () => term.wake(),
      onError: (error) => {
        this.#logger.warn(
          { err: error },
          'listening was interrupted; the table is polled meanwhile',
        );
      },
    });
    this.#everActive = true;
    this.#say(`active, with strategy ${first.handler.strategy} on Citus ${first.handler.version}`);
    try {
      await this.#markPresent(first, version, first.handler.strategy);
      listener.start();
      term.start();
      await this.#serve(first, term, version);
    } finally {
      await listener.stop();
      await term.stop(this.#stopping ? 'record' : 'abandon');
      await this.#pruning;
      if (this.#stopping) {
        await db
          .connect()
          .then((client) => markGone(client, this.#id).finally(() => client.release()))
          .catch(() => undefined);
      }
      await Promise.all([db.end(), sessions.end()]);
    }
  }

  #createTerm(db: pg.Pool, sessions: pg.Pool, control: ControlSession): Term {
    const { pause, maxHolds, pollMs, retentionMs } = this.#settings;
    return new Term({
      db,
      sessions,
      mpp: this.#mpp,
      handler: control.handler,
      controller: this.#id,
      pause,
      maxHolds,
      pollMs,
      retentionMs,
      logger: componentLogger(this.#root, 'queue'),
    });
  }

  /** Heartbeats until the stop, or until the lead is lost for good. */
  async #serve(first: ControlSession, term: Term, version: string): Promise<void> {
    let control = first;
    // Made once a session: a signal or a promise that is raced at each heartbeat collects listeners.
    let over = AbortSignal.any([this.#abort.signal, control.ended]);
    try {
      while (!this.#stopping) {
        await pause(this.#settings.heartbeatMs, over);
        if (this.#abort.signal.aborted) return;
        try {
          await this.#markPresent(control, version, term.strategy);
        } catch (error) {
          this.#logger.warn({ err: error }, 'the control session was lost');
          term.suspend();
          await control.close();
          const regained = await this.#regain();
          if (regained === undefined) return;
          control = regained;
          over = AbortSignal.any([this.#abort.signal, control.ended]);
          await this.#markPresent(control, version, term.strategy);
          term.resume();
        }
        await this.#forgetGone(control);
        this.#prune(term);
      }
    } finally {
      await control.close();
    }
  }

  /** What is only for tidiness must not cost the lead. */
  async #forgetGone(control: ControlSession): Promise<void> {
    await forgetGone(control.client).catch((error: unknown) => this.#warnOfOldRows(error));
  }

  /**
   * Beside the heartbeats, one run at a time: a long backlog takes longer than the server lets the
   * control session be idle. The end of the term ends it after its batch.
   */
  #prune(term: Term): void {
    this.#pruning ??= term
      .prune()
      .catch((error: unknown) => this.#warnOfOldRows(error))
      .finally(() => (this.#pruning = undefined));
  }

  #warnOfOldRows(error: unknown): void {
    this.#logger.warn({ err: error }, 'old rows could not be deleted; it is tried again');
  }

  /** The holds live on other sessions; they are kept if the lead can be had again at once. */
  async #regain(): Promise<ControlSession | undefined> {
    const until = performance.now() + REGAIN_MS;
    while (!this.#stopping && performance.now() < until) {
      try {
        const control = await this.#openLeading();
        if (control !== undefined) return control;
      } catch (error) {
        this.#logger.debug({ err: error }, 'the control session is not back yet');
      }
      await this.#pause(RETRY_MS / 5);
    }
    this.#logger.warn(
      'the lead is lost; holds are rolled back and left to the next active controller',
    );
    return undefined;
  }

  /** A session that leads, or none: one left open could get the lock later, and would keep it from us. */
  async #openLeading(): Promise<ControlSession | undefined> {
    const control = await this.#open();
    let leads = false;
    try {
      leads = await control.tryLead();
      return leads ? control : undefined;
    } finally {
      if (!leads) await control.close();
    }
  }

  async #markPresent(control: ControlSession, version: string, strategy: string): Promise<void> {
    const several = await control.handler.canHoldAnother(control.client);
    const maxHolds = several ? this.#settings.maxHolds : 1;
    await markPresent(control.client, { id: this.#id, version, strategy, maxHolds });
  }

  /** What a person must put right before this can work at all; once it has worked, we wait instead. */
  #isFatal(error: unknown): boolean {
    if (this.#everActive) return false;
    if (error instanceof DatabaseStateError) return error.code !== 'IN_RECOVERY';
    return error instanceof MppError && !error.retryable;
  }

  /** Says something once, not again until something else was said. */
  #say(line: string): void {
    if (this.#said === line) return;
    this.#said = line;
    this.#logger.info(line);
  }

  async #pause(ms: number): Promise<void> {
    await pause(ms, this.#abort.signal);
  }
}

/** Waits for `ms`, or until the signal is aborted. */
async function pause(ms: number, signal: AbortSignal): Promise<void> {
  await delay(ms, undefined, { signal }).catch(() => undefined);
}
