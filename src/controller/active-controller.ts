import type { Settings } from '../config/settings.js';
import { DatabaseStateError } from '../errors.js';
import { componentLogger, type Logger, OncePerChange } from '../logger.js';
import type { AbstractMPP } from '../mpp/abstract.js';
import { sameServer, type ServerIdentity } from '../postgres/identity.js';
import { type LoginGate, fill, type SessionBudget } from '../postgres/pool.js';
import { errorText } from '../postgres/session.js';
import { isSessionLost } from '../postgres/sqlstate.js';
import type { Observer } from '../tasks/observer.js';
import { keepLimits } from '../tasks/sweep.js';
import { sleep, untilAborted, within } from '../wait.js';
import { ActiveParts } from './active-parts.js';
import type { ControlSession } from './control-session.js';
import { announce, forgetGone, markGone } from './presence.js';

interface ActiveControllerOptions {
  readonly settings: Settings;
  readonly logger: Logger;
  readonly mpp: AbstractMPP;
  /** Id of this controller. */
  readonly controller: string;
  readonly observer: Observer;
  readonly version: string;
  /** How many sessions it may open with the coordinator. */
  readonly sessions: SessionBudget;
  /** Ends it: the controller is to stop. */
  readonly signal: AbortSignal;
  /** Ends it when another server has taken the place of this one; its reason says which. */
  readonly replaced: AbortSignal;
  /** Opens another control session. */
  readonly open: () => Promise<ControlSession>;
  /** Called once it is visible that it leads. */
  readonly onActive: () => void;
}

/** How often it is asked, after a newer version has migrated, whether the last hold has ended. */
const FINISH_LOOK_MS = 100;
const OTHER_DATABASES_MS = 2_000;
const GONE_MS = 1_000;
const OTHER_SERVER =
  'the connection address now reaches a different server; giving up the leadership and connecting again';
/** So long the end waits for a heartbeat that is under way. */
const LAST_BEAT_MS = 2_000;

/**
 * One controller's time as the active one, until it loses the leadership or is to stop. All sessions are
 * with the one server that the control session found: with another one it would act on two coordinators.
 */
export class ActiveController {
  readonly #options: ActiveControllerOptions;
  readonly #logger: Logger;
  readonly #parts: ActiveParts;
  readonly #identity: ServerIdentity;
  readonly #otherServer = new AbortController();
  readonly #presence = new OncePerChange();
  #control: ControlSession;
  /** Ends with what was asked of the control session last: a session answers one query at a time. Never rejects. */
  /** Why the leadership is to be given up once no group is held. */
  #ending: DatabaseStateError | undefined;
  #pruning: Promise<void> | undefined;
  #wasActive = false;

  /** @param first the control session that leads; it is closed in the end. */
  constructor(options: ActiveControllerOptions, first: ControlSession) {
    this.#options = options;
    this.#identity = first.identity;
    this.#control = first;
    this.#logger = componentLogger(options.logger, 'controller');
    this.#parts = new ActiveParts({
      ...options,
      identity: first.identity,
      handler: first.handler,
      onOtherServer: () => this.#otherServer.abort(),
    });
  }

  /** True when the server did not answer at the end, so that what was rolled back is not written down. */
  get isUnrecorded(): boolean {
    return this.#parts.isSilent;
  }

  /** @throws DatabaseStateError when it must not go on: `SCHEMA_…`, or the reason of `replaced`. */
  async run(): Promise<void> {
    try {
      await this.#beat();
      await this.#startOtherDatabases();
      this.#options.onActive();
      this.#wasActive = true;
      this.#options.observer.leadershipChanged('gained');
      this.#options.observer.stateIs('active');
      this.#parts.start();
      await this.#serve();
    } finally {
      this.#tellEnd();
      // The leadership is given back last: until then no other controller takes up what is ended here.
      const control = this.#control;
      const { ended, client } = control;
      const how = this.#stopping ? 'record' : 'abandon';
      const signOfLife = (): Promise<unknown> => control.ask(() => client.query('SELECT'));
      await this.#parts.stop(how, ended.aborted ? undefined : signOfLife);
      await this.#pruning;
      if (this.#stopping) await this.#forgetMe();
      await Promise.all([control.close(), this.#parts.closeSessions()]);
    }
  }

  get #stopping(): boolean {
    return this.#options.signal.aborted;
  }

  /** Before anything is rolled back: another controller may lead from now on. */
  #tellEnd(): void {
    const { observer, replaced } = this.#options;
    observer.stateIs('ending');
    if (!this.#wasActive) return;
    const otherwise = replaced.aborted ? 'replaced' : 'lost';
    observer.leadershipChanged(this.#stopping ? 'stopped' : otherwise);
  }

  /** Heartbeats until the stop, or until the leadership is lost for good. */
  async #serve(): Promise<void> {
    const { settings, signal, replaced } = this.#options;
    const ended = [signal, replaced, this.#otherServer.signal];
    const over = AbortSignal.any(ended);
    const { taskLoop, otherDatabases } = this.#parts;
    let isNew = false;
    // Made once a session: a signal or a promise that is raced at each heartbeat collects listeners.
    let next = AbortSignal.any([...ended, this.#control.ended]);
    // A crash in the first seconds of a leadership costs no more than a later one.
    void this.#prewarm();
    while (!this.#stopping) {
      if (!isNew) await sleep(this.#ending ? FINISH_LOOK_MS : settings.heartbeatMs, next);
      isNew = false;
      if (signal.aborted) return;
      replaced.throwIfAborted();
      if (this.#otherServer.signal.aborted) {
        this.#logger.warn(OTHER_SERVER);
        return;
      }
      if (this.#ending && taskLoop.isIdle) throw this.#ending;
      try {
        await untilAborted(
          over,
          this.#control.ask(() => this.#beat()),
        );
      } catch (error) {
        const follows = await this.#afterFailure(error);
        if (follows === 'end') return;
        isNew = follows === 'new session';
        if (isNew) next = AbortSignal.any([...ended, this.#control.ended]);
        continue;
      }
      const control = this.#control;
      await untilAborted(
        over,
        control.ask(() => forgetGone(control.client)),
      ).catch((error: unknown) => this.#warnOfOldRows(error));
      if (!otherDatabases.isStarted) await this.#startOtherDatabases();
      this.#prune();
      void this.#prewarm();
    }
  }

  /**
   * What follows a heartbeat that failed.
   *
   * @throws the error when it says that this controller must not go on
   */
  async #afterFailure(error: unknown): Promise<'end' | 'go on' | 'new session'> {
    if (error instanceof LeadershipLostError) {
      this.#logger.warn(`the leadership is lost: ${error.message}; holds are rolled back`);
      return 'end';
    }
    if (this.#finishFirst(error)) return 'go on';
    // What it says of the database is true of any session.
    if (error instanceof DatabaseStateError) throw error;
    if (!this.#control.ended.aborted && !isSessionLost(error)) {
      this.#warnOfPresence(errorText(error));
      return 'go on';
    }
    return (await this.#replaceControl(error)) ? 'new session' : 'end';
  }

  /**
   * A newer version has migrated: no further group is held, and those that are held are finished, as their
   * hooks have stopped primaries already.
   *
   * @returns true when the error is that, and groups are held
   */
  #finishFirst(error: unknown): boolean {
    if (!(error instanceof DatabaseStateError) || error.code !== 'SCHEMA_NEWER') return false;
    const { taskLoop } = this.#parts;
    if (taskLoop.isIdle) return false;
    if (this.#ending === undefined) {
      this.#ending = error;
      taskLoop.finish();
      this.#logger.warn(
        { groups: taskLoop.heldGroups },
        `${error.message}; this controller finishes the groups that are held, takes no others, and then stands down`,
      );
    }
    return true;
  }

  /** @returns whether this controller leads again, on another control session. */
  async #replaceControl(error: unknown): Promise<boolean> {
    const { taskLoop, gate } = this.#parts;
    this.#logger.warn({ err: error }, 'the control session was lost');
    const { open, signal, observer } = this.#options;
    observer.stateIs('reconnecting');
    taskLoop.suspend();
    this.#control.discard();
    const outcome = await regain({
      ...{ open, signal, gate, identity: this.#identity },
      onFailure: (failure) =>
        this.#logger.debug({ err: failure }, 'the control session is not back yet'),
    });
    if ('control' in outcome) {
      this.#control = outcome.control;
      observer.stateIs('active');
      taskLoop.resume();
      return true;
    }
    if (!this.#stopping) {
      this.#logger.warn(
        `the leadership is lost: ${outcome.reason}; holds are rolled back and left to the next active controller`,
      );
    }
    return false;
  }

  /** Has sessions open that the next hold needs. Never throws. */
  async #prewarm(): Promise<void> {
    const { kept } = this.#options.sessions;
    const { traffic, sessions, db } = this.#parts;
    await traffic.prewarm(db);
    // Last: a task that runs by now has opened one, which is the one to keep.
    const filling = fill(sessions, kept.groups, (client) => client.query('SELECT'));
    await filling.catch((error: unknown) => {
      this.#logger.debug({ err: error }, 'no session was opened ahead');
    });
  }

  /**
   * Beside the heartbeats, one run at a time: a long backlog takes longer than the server lets the
   * control session be idle. The end of the taskLoop ends it after its batch.
   */
  #prune(): void {
    this.#pruning ??= this.#parts.taskLoop
      .prune()
      .catch((error: unknown) => this.#warnOfOldRows(error))
      .finally(() => (this.#pruning = undefined));
  }

  /** What is only for tidiness must not cost the leadership. */
  #warnOfOldRows(error: unknown): void {
    this.#logger.warn({ err: error }, 'old rows could not be deleted; it is tried again');
  }

  #warnOfPresence(text: string): void {
    this.#presence.say(text, () =>
      this.#logger.warn(`${text}; this controller stays active and keeps its holds`),
    );
  }

  /**
   * Says that this controller is there. A row that cannot be written is a warning.
   *
   * @throws DatabaseStateError when a newer version has migrated: what this one writes is of an older version.
   * @throws LeadershipLostError when another controller is the recorded leader.
   */
  async #beat(): Promise<void> {
    const control = this.#control;
    const { controller: id, version, settings } = this.#options;
    if (this.#ending === undefined) await control.checkMigrated();
    const lost = await control.lostBecause();
    if (lost !== undefined) throw new LeadershipLostError(lost);
    const { strategy } = this.#parts.taskLoop;
    const trouble = await announce(control, { id, version, strategy, maxHolds: settings.maxHolds });
    if (trouble === undefined) {
      this.#options.observer.heartbeatWritten();
      this.#presence.clear();
    } else this.#warnOfPresence(trouble);
    await keepLimits(control.client, id, settings);
  }

  /** Rows that another session has locked must not keep the coordinator from being served. */
  async #startOtherDatabases(): Promise<void> {
    const starting = this.#parts.otherDatabases.start().catch((error: unknown) => {
      if (isSessionLost(error)) throw error;
      this.#warnOfPresence(`the other databases could not be registered: ${errorText(error)}`);
    });
    await within(OTHER_DATABASES_MS, starting, undefined);
    starting.catch(() => undefined);
  }

  /** A heartbeat that ended after it would register this controller again. */
  async #forgetMe(): Promise<void> {
    const control = this.#control;
    if (control.ended.aborted || !(await control.isQuietWithin(LAST_BEAT_MS))) return;
    const gone = control.ask(() => markGone(control.client, this.#options.controller));
    await within(
      GONE_MS,
      gone.catch(() => undefined),
      undefined,
    );
  }
}

/** Another controller is the recorded leader, or this one's role does not count any more. */
class LeadershipLostError extends Error {
  override readonly name = 'LeadershipLostError';
}

interface RegainOptions {
  /** Opens another control session. */
  readonly open: () => Promise<ControlSession>;
  /** The server that it must be with. */
  readonly identity: ServerIdentity;
  readonly gate: LoginGate;
  readonly signal: AbortSignal;
  readonly onFailure: (error: unknown) => void;
}

/** How long the control session may be away before the holds are given up. */
const REGAIN_MS = 2_000;
const REGAIN_EVERY_MS = 50;

/**
 * Leads again on another control session. The holds live on other sessions; they are kept if the
 * leadership can be had again at once.
 */
export async function regain(
  options: RegainOptions,
): Promise<{ readonly control: ControlSession } | { readonly reason: string }> {
  const { gate, signal, onFailure } = options;
  const until = performance.now() + REGAIN_MS;
  let reason = 'the control session could not be opened again in time';
  while (!signal.aborted && performance.now() < until) {
    try {
      const outcome = await openLeading(options);
      if ('control' in outcome) return outcome;
      reason = outcome.reason;
    } catch (error) {
      gate.failed(error);
      onFailure(error);
      reason = errorText(error);
    }
    await sleep(Math.max(REGAIN_EVERY_MS, gate.waitMs), signal);
  }
  return { reason };
}

/** A session that leads, or none: one left open could lead later, and would keep it from this controller. */
async function openLeading({
  open,
  identity,
}: RegainOptions): Promise<{ readonly control: ControlSession } | { readonly reason: string }> {
  const control = await open();
  let leads = false;
  try {
    if (!sameServer(control.identity, identity)) return { reason: 'another server answers' };
    const attempt = await control.regain();
    leads = attempt.leads;
    if (attempt.leads) return { control };
    return { reason: attempt.reason ?? 'another controller leads' };
  } finally {
    if (!leads) await control.close();
  }
}
