import { DatabaseStateError } from '../errors.js';
import { Loop } from '../topology/loop.js';
import { within } from '../within.js';
import {
  findNewerCoordinator,
  type NewerCoordinatorSearch,
} from '../topology/newer-coordinator.js';

export interface NewerCoordinatorWatchOptions extends NewerCoordinatorSearch {
  readonly intervalMs: number;
  /** Ends it like `stop`. */
  readonly signal: AbortSignal;
}

const STOP_MS = 500;

/**
 * Looks time and again whether another server has taken the place of the one that we work on: a
 * coordinator that was cut off, or crashed and came back as it was, does not know that it was replaced,
 * and what its controller did would reach the workers.
 *
 * It runs beside a standby, too, so that one that takes over need not look first.
 */
export class NewerCoordinatorWatch {
  readonly #options: NewerCoordinatorWatchOptions;
  readonly #loop: Loop;
  readonly #found = new AbortController();
  #first: Promise<void> | undefined;

  constructor(options: NewerCoordinatorWatchOptions) {
    this.#options = options;
    this.#loop = new Loop({
      intervalMs: options.intervalMs,
      signal: options.signal,
      work: () => this.#look(),
    });
  }

  /** Resolves when it has looked once. */
  async start(): Promise<void> {
    this.#first ??= this.#look().then(() => this.#loop.start());
    await this.#first;
  }

  /** A search that is under way asks servers that may not answer; it ends by itself soon. */
  async stop(): Promise<void> {
    await within(STOP_MS, this.#loop.stop(), undefined);
  }

  /** Aborted when there is one; its reason is a DatabaseStateError `REPLACED` that names it. */
  get found(): AbortSignal {
    return this.#found.signal;
  }

  async #look(): Promise<void> {
    const newer = await findNewerCoordinator(this.#options);
    if (newer === undefined) return;
    const { timeline } = this.#options.identity;
    const error = new DatabaseStateError(
      'REPLACED',
      `another server has become the coordinator: ${newer.node} takes writes on timeline ` +
        `${newer.timeline}, and this one is on ${timeline}; make this one its standby, or stop that one`,
      { retryable: true },
    );
    this.#found.abort(error);
  }
}
