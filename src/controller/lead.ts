import type pg from 'pg';
import type { Settings } from '../config.js';
import { DatabaseStateError } from '../errors.js';
import type { AbstractMPP, TrafficControl } from '../mpp/abstract.js';
import { componentLogger, type Logger } from '../observe/logger.js';
import { sameServer, type ServerIdentity } from '../postgres/identity.js';
import { Listener } from '../postgres/listener.js';
import { createPool, fill } from '../postgres/pool.js';
import { Siblings } from '../siblings/siblings.js';
import { Topology } from '../topology/topology.js';
import type { ControlSession } from './leader.js';
import { announce, forgetGone, markGone } from './presence.js';
import { pause } from './signal.js';
import { Term } from './term.js';

export interface LeadOptions {
  readonly settings: Settings;
  readonly logger: Logger;
  readonly mpp: AbstractMPP;
  /** Id of this controller. */
  readonly controller: string;
  readonly version: string;
  /** Ends the lead: the controller is to stop. */
  readonly signal: AbortSignal;
  /** Ends it when another server has taken the place of this one; its reason says which. */
  readonly replaced: AbortSignal;
  /** Opens another control session. */
  readonly open: () => Promise<ControlSession>;
  /** Called once everybody can see that it leads. */
  readonly onActive: () => void;
}

/** How long the control session may be away before the holds are given up. */
const REGAIN_MS = 2_000;
const REGAIN_EVERY_MS = 50;
/** Who has just become active has more urgent things to do than to connect to all nodes. */
const WARM_AFTER_MS = 5_000;
/** For the first group that is held; the others connect beside it. */
const WARM = 1;

/**
 * One controller's time as the active one, from the leader lock to its loss or the stop. All sessions are
 * with the one server that the control session found: with another one it would act on two coordinators.
 */
export class Lead {
  readonly #options: LeadOptions;
  readonly #logger: Logger;
  readonly #db: pg.Pool;
  readonly #sessions: pg.Pool;
  readonly #identity: ServerIdentity;
  readonly #otherServer = new AbortController();
  #pruning: Promise<void> | undefined;

  constructor(options: LeadOptions, identity: ServerIdentity) {
    this.#options = options;
    this.#identity = identity;
    this.#logger = componentLogger(options.logger, 'controller');
    const { connection, schema } = options.settings;
    const common = {
      schema,
      identity,
      onOtherServer: (): void => this.#otherServer.abort(),
      onIdleError: (error: Error): void => {
        this.#logger.warn({ err: error }, 'an idle session was lost');
      },
    };
    const queue = { purpose: 'queue', max: 4, statementTimeoutMs: 10_000 };
    this.#db = createPool(connection, { ...common, ...queue });
    this.#sessions = createPool(connection, {
      ...common,
      purpose: 'group',
      max: 10_000,
      min: WARM,
    });
  }

  /**
   * @param first the control session that has the leader lock; it is closed in the end.
   * @throws DatabaseStateError when it must not go on: `SCHEMA_…`, or the reason of `replaced`.
   */
  async run(first: ControlSession): Promise<void> {
    const { settings, mpp, controller, logger, signal } = this.#options;
    const { connection, schema } = settings;
    const [db, sessions] = [this.#db, this.#sessions];
    const traffic = mpp.createTraffic({
      connection,
      identity: this.#identity,
      onOtherServer: () => this.#otherServer.abort(),
      node: settings.node,
      schema,
      logger: componentLogger(logger, 'traffic'),
    });
    const siblings = new Siblings({
      ...{ db, settings },
      identity: this.#identity,
      onOtherServer: () => this.#otherServer.abort(),
      logger: componentLogger(logger, 'siblings'),
    });
    const term = new Term({
      ...settings,
      ...{ db, sessions, mpp, traffic, siblings, controller },
      handler: first.handler,
      logger: componentLogger(logger, 'queue'),
    });
    const topology = new Topology({
      ...{ db, mpp, controller, settings, logger, signal },
      siblings: siblings.databases,
    });
    const listener = new Listener({
      connection,
      channel: 'mpp_tasks',
      onWake: () => {
        term.wake();
        siblings.wake();
        topology.wake();
      },
      onError: (error) => {
        this.#logger.warn(
          { err: error },
          'listening was interrupted; the table is polled meanwhile',
        );
      },
    });
    try {
      await this.#markPresent(first, first.handler.strategy);
      await siblings.start();
      this.#options.onActive();
      listener.start();
      term.start();
      topology.start();
      await this.#serve(first, term, traffic);
    } finally {
      await listener.stop();
      await Promise.all([topology.stop(), term.stop(this.#stopping ? 'record' : 'abandon')]);
      await Promise.all([traffic.stop(), siblings.stop()]);
      await this.#pruning;
      if (this.#stopping) await this.#forgetMe();
      await Promise.all([db.end(), sessions.end()]);
    }
  }

  get #stopping(): boolean {
    return this.#options.signal.aborted;
  }

  /** Heartbeats until the stop, or until the lead is lost for good. */
  async #serve(first: ControlSession, term: Term, traffic: TrafficControl): Promise<void> {
    const { settings, signal, replaced } = this.#options;
    const ended = [signal, replaced, this.#otherServer.signal];
    let control = first;
    // Made once a session: a signal or a promise that is raced at each heartbeat collects listeners.
    let over = AbortSignal.any([...ended, control.ended]);
    const warmAt = performance.now() + WARM_AFTER_MS;
    try {
      while (!this.#stopping) {
        await pause(settings.heartbeatMs, over);
        if (signal.aborted) return;
        replaced.throwIfAborted();
        if (this.#otherServer.signal.aborted) {
          this.#logger.warn(
            'the address leads to another server; its controller is to act, or we anew',
          );
          return;
        }
        try {
          await this.#beat(control, term);
        } catch (error) {
          // What it says of the database is true of any session.
          if (error instanceof DatabaseStateError) throw error;
          this.#logger.warn({ err: error }, 'the control session was lost');
          term.suspend();
          await control.close();
          const regained = await this.#regain(control.identity);
          if (regained === undefined) return;
          control = regained;
          over = AbortSignal.any([...ended, control.ended]);
          await this.#beat(control, term);
          term.resume();
        }
        await forgetGone(control.client).catch((error: unknown) => this.#warnOfOldRows(error));
        this.#prune(term);
        if (performance.now() >= warmAt) void this.#warm(traffic);
      }
    } finally {
      await control.close();
    }
  }

  /** Has sessions open that the next hold needs. Never throws. */
  async #warm(traffic: TrafficControl): Promise<void> {
    const filling = fill(this.#sessions, WARM, (client) => client.query('SELECT'));
    await filling.catch((error: unknown) => {
      this.#logger.debug({ err: error }, 'no session was opened ahead');
    });
    await traffic.warm(this.#db);
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

  /** What is only for tidiness must not cost the lead. */
  #warnOfOldRows(error: unknown): void {
    this.#logger.warn({ err: error }, 'old rows could not be deleted; it is tried again');
  }

  /** The holds live on other sessions; they are kept if the lead can be had again at once. */
  async #regain(identity: ServerIdentity): Promise<ControlSession | undefined> {
    const until = performance.now() + REGAIN_MS;
    while (!this.#stopping && performance.now() < until) {
      try {
        const control = await this.#openLeading(identity);
        if (control !== undefined) return control;
      } catch (error) {
        this.#logger.debug({ err: error }, 'the control session is not back yet');
      }
      await pause(REGAIN_EVERY_MS, this.#options.signal);
    }
    this.#logger.warn(
      'the lead is lost; holds are rolled back and left to the next active controller',
    );
    return undefined;
  }

  /** A session that leads, or none: one left open could get the lock later, and would keep it from us. */
  async #openLeading(identity: ServerIdentity): Promise<ControlSession | undefined> {
    const control = await this.#options.open();
    let leads = false;
    try {
      leads = sameServer(control.identity, identity) && (await control.tryLead());
      return leads ? control : undefined;
    } finally {
      if (!leads) await control.close();
    }
  }

  /** @throws DatabaseStateError when a newer version has migrated: what we write is of an older one. */
  async #beat(control: ControlSession, term: Term): Promise<void> {
    await control.checkMigrated();
    await this.#markPresent(control, term.strategy);
  }

  async #markPresent(control: ControlSession, strategy: string): Promise<void> {
    const { controller: id, version, settings } = this.#options;
    await announce(control, { id, version, strategy, maxHolds: settings.maxHolds });
  }

  async #forgetMe(): Promise<void> {
    await this.#db
      .connect()
      .then((client) => markGone(client, this.#options.controller).finally(() => client.release()))
      .catch(() => undefined);
  }
}
