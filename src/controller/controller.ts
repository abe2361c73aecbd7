import { randomBytes } from 'node:crypto';
import { hostname } from 'node:os';
import type { Settings } from '../config.js';
import { inDatabase } from '../databases.js';
import { DatabaseStateError, MppError } from '../errors.js';
import { createMPP } from '../mpp/index.js';
import { componentLogger, type Logger } from '../observe/logger.js';
import { knownMigration } from '../postgres/migrate.js';
import { errorText } from '../postgres/session.js';
import { checkTopology } from '../topology/topology.js';
import { packageVersion } from '../version.js';
import { ControlSession } from './leader.js';
import { Lead } from './lead.js';
import { announce, markGone } from './presence.js';
import { RivalWatch } from './rival-watch.js';
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

/** How often a server is tried again that cannot be reached, or is a standby. */
const RETRY_MS = 250;
/**
 * How often a standby asks whether it may lead. Waiting for the lock instead would be quicker, and would
 * take the lead from one that has lost its control session only, and its holds with it.
 */
const LEAD_MS = 100;

/** @throws ConfigError when the settings do not fit the MPP database. */
export function createController(options: { settings: Settings; logger: Logger }): Controller {
  const { settings, logger } = options;
  if (settings.databases === undefined) return new ControllerProcess(settings, logger);
  const members = settings.databases.map((database) => ({
    database,
    create: () => new ControllerProcess(inDatabase(settings, database), logger.child({ database })),
  }));
  const againMs = settings.heartbeatMs;
  return new SeveralControllers({
    members,
    againMs,
    logger: componentLogger(logger, 'controller'),
  });
}

class ControllerProcess implements Controller {
  readonly finished: Promise<void>;
  readonly #settings: Settings;
  readonly #root: Logger;
  readonly #logger: Logger;
  readonly #id = `${hostname()}:${process.pid}:${randomBytes(3).toString('hex')}`;
  readonly #abort = new AbortController();
  readonly #mpp;
  /** The newest migration of the code; read once, as an upgrade replaces the files. */
  #known = 0;
  #said: string | undefined;
  /** True once there is something to wait for: it has worked here, or will after a promotion. */
  #settled = false;
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
    this.#known = await knownMigration();
    this.#logger.info({ controller: this.#id, version }, 'controller started');
    while (!this.#stopping) {
      try {
        const control = await this.#open();
        this.#settled = true;
        const rivals = this.#watchRivals(control);
        try {
          await rivals.start();
          if (await this.#awaitLead(control, rivals, version)) {
            await this.#lead(control, rivals, version);
          }
        } finally {
          await Promise.all([rivals.stop(), control.close()]);
        }
      } catch (error) {
        if (this.#isFatal(error)) throw error;
        if (error instanceof DatabaseStateError) this.#settled = true;
        const lasting = isLasting(error);
        this.#say(lasting ? `stands down: ${errorText(error)}` : errorText(error));
        await this.#pause(lasting ? this.#settings.heartbeatMs : RETRY_MS);
      }
    }
    this.#logger.info('controller stopped');
  }

  async #open(): Promise<ControlSession> {
    const { connection, schema, heartbeatMs } = this.#settings;
    const contract = { schema, known: this.#known };
    return ControlSession.open(connection, contract, this.#mpp, heartbeatMs);
  }

  #watchRivals({ identity }: ControlSession): RivalWatch {
    const { connection, schema, node: credentials, heartbeatMs } = this.#settings;
    return new RivalWatch({
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
  async #awaitLead(control: ControlSession, rivals: RivalWatch, version: string): Promise<boolean> {
    const { heartbeatMs } = this.#settings;
    let present = 0;
    while (!this.#stopping && !control.ended.aborted) {
      rivals.found.throwIfAborted();
      if (await control.tryLead()) {
        // The active one may have gone because of a migration.
        await control.checkMigrated();
        return true;
      }
      this.#say('another controller is active; this one stands by');
      if (performance.now() - present >= heartbeatMs || present === 0) {
        await control.checkMigrated();
        await announce(control, {
          ...{ id: this.#id, version, strategy: control.handler.strategy },
          maxHolds: this.#settings.maxHolds,
        });
        present = performance.now();
      }
      await this.#pause(LEAD_MS);
    }
    await markGone(control.client, this.#id).catch(() => undefined);
    return false;
  }

  /** One term as the active controller, from the leader lock to its loss or the stop. */
  async #lead(control: ControlSession, rivals: RivalWatch, version: string): Promise<void> {
    const { strategy, version: mppVersion } = control.handler;
    const lead = new Lead(
      {
        settings: this.#settings,
        logger: this.#root,
        mpp: this.#mpp,
        controller: this.#id,
        version,
        signal: this.#abort.signal,
        replaced: rivals.found,
        open: () => this.#open(),
        onActive: () => {
          this.#say(`active, with strategy ${strategy} on Citus ${mppVersion}`);
          void this.#sayWhatIsMissing(control);
        },
      },
      control.identity,
    );
    await lead.run(control);
    this.#said = undefined;
  }

  async #sayWhatIsMissing({ handler, client }: ControlSession): Promise<void> {
    const missing = await handler.missingRights(client).catch(() => []);
    for (const sentence of missing) this.#logger.warn(sentence);
  }

  /** What a person must put right before this can work at all; once it has worked, we wait instead. */
  #isFatal(error: unknown): boolean {
    if (this.#settled) return false;
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

/** What a person must change, and not for our sake alone. The promotion of a standby is asked for often. */
function isLasting(error: unknown): boolean {
  return error instanceof DatabaseStateError && error.code !== 'IN_RECOVERY';
}
