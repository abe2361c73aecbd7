import { randomBytes } from 'node:crypto';
import { hostname } from 'node:os';
import type { Settings } from '../config.js';
import { inDatabase } from '../databases.js';
import { DatabaseStateError, MppError } from '../errors.js';
import { createMPP } from '../mpp/index.js';
import { componentLogger, type Logger } from '../observe/logger.js';
import { errorText } from '../postgres/session.js';
import { checkTopology } from '../topology/topology.js';
import { packageVersion } from '../version.js';
import { ControlSession } from './leader.js';
import { Lead } from './lead.js';
import { announce, markGone } from './presence.js';
import { SeveralControllers } from './several.js';
import { pause } from './signal.js';

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

/** @throws ConfigError when the settings do not fit the MPP database. */
export function createController(options: { settings: Settings; logger: Logger }): Controller {
  const { settings, logger } = options;
  if (settings.databases === undefined) return new ControllerProcess(settings, logger);
  const members = settings.databases.map((database) => {
    const log = logger.child({ database });
    return { database, controller: new ControllerProcess(inDatabase(settings, database), log) };
  });
  return new SeveralControllers(members);
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
  #running: Promise<void> | undefined;
  #resolve: () => void = () => undefined;
  #reject: (error: unknown) => void = () => undefined;

  constructor(settings: Settings, logger: Logger) {
    this.#settings = settings;
    this.#root = logger;
    this.#logger = componentLogger(logger, 'controller');
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
        await announce(control, {
          ...{ id: this.#id, version, strategy: control.handler.strategy },
          maxHolds: this.#settings.maxHolds,
        });
        present = performance.now();
      }
      await this.#pause(RETRY_MS);
    }
    await markGone(control.client, this.#id).catch(() => undefined);
    return false;
  }

  /** One term as the active controller, from the leader lock to its loss or the stop. */
  async #lead(control: ControlSession, version: string): Promise<void> {
    this.#everActive = true;
    const { strategy, version: mppVersion } = control.handler;
    const lead = new Lead(
      {
        settings: this.#settings,
        logger: this.#root,
        mpp: this.#mpp,
        controller: this.#id,
        version,
        signal: this.#abort.signal,
        open: () => this.#open(),
        onActive: () => this.#say(`active, with strategy ${strategy} on Citus ${mppVersion}`),
      },
      control.identity,
    );
    await lead.run(control);
    this.#said = undefined;
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
