import { DatabaseStateError, MppError } from '../errors.js';
import type { Logger } from '../observe/logger.js';
import { OncePerChange } from '../observe/once-per-change.js';
import { errorText } from '../postgres/session.js';
import type { Controller } from './controller.js';
import { pause } from './signal.js';

/** One of several databases on the same nodes. */
export interface Member {
  readonly database: string;
  /** Makes a controller for it. */
  readonly create: () => Controller;
}

export interface SeveralOptions {
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
          throw inDatabase(error, database);
        }
        refusals += 1;
        const text = errorText(error);
        said.say(text, () =>
          logger.error(
            { database },
            `database ${database} is left alone: ${text}; it is tried again`,
          ),
        );
        await pause(refusalDelay(againMs, refusals), this.#abort.signal);
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
export function refusalDelay(againMs: number, refusals: number): number {
  return Math.max(againMs, Math.min(againMs * 2 ** Math.min(refusals - 1, 20), MOST_MS));
}

function inDatabase(error: MppError, database: string): MppError {
  if (!(error instanceof DatabaseStateError)) return error;
  const { code, message, retryable } = error;
  return new DatabaseStateError(code, `database ${database}: ${message}`, { retryable });
}
