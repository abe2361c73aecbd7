import type { Pool } from 'pg';
import { type Logger, OncePerChange } from '../logger.js';
import { remedyOf } from '../postgres/remedy.js';
import { errorText } from '../postgres/session.js';
import { pruneTasks } from '../tasks/finish.js';
import { expire, SWEEP_ROWS } from '../tasks/sweep.js';
import { Loop } from '../loop.js';

interface ExpiryOptions {
  readonly db: Pool;
  /** How often late tasks are looked for. */
  readonly pollMs: number;
  readonly retentionMs: number;
  /** Ends it like `stop`. */
  readonly signal: AbortSignal;
  readonly logger: Logger;
}

/** Batches that one heartbeat prunes, so that it is over long before the next. */
const PRUNE_BATCHES = 5;

/**
 * Ends pending tasks that are too late, and deletes what ended long ago. Runs beside the claims, so that
 * no backlog and no failure of it delays one.
 */
export class Expiry {
  readonly #options: ExpiryOptions;
  readonly #loop: Loop;
  readonly #trouble = new OncePerChange();

  constructor(options: ExpiryOptions) {
    this.#options = options;
    this.#loop = new Loop({
      intervalMs: options.pollMs,
      signal: options.signal,
      work: (signal) => this.#expire(signal),
    });
  }

  start(): void {
    this.#loop.start();
  }

  async stop(): Promise<void> {
    await this.#loop.stop();
  }

  /** Deletes some of what ended before the retention; the rest next time. */
  async prune(): Promise<void> {
    const { db, retentionMs, signal } = this.#options;
    for (let batch = 0; batch < PRUNE_BATCHES && !signal.aborted; batch += 1) {
      if ((await pruneTasks(db, retentionMs)) === 0) return;
    }
  }

  async #expire(signal: AbortSignal): Promise<void> {
    const { db, logger } = this.#options;
    try {
      for (let more = true; more && !signal.aborted;) {
        const expired = await expire(db);
        for (const { id, groupid, status } of expired) {
          logger.info({ task: id, groupid, status }, 'a pending task was too late');
        }
        more = expired.length === SWEEP_ROWS;
      }
      this.#trouble.clear();
    } catch (error) {
      const remedy = remedyOf(error) ?? 'it is tried again';
      const text = `late tasks could not be ended: ${errorText(error)}; ${remedy}`;
      this.#trouble.say(text, () => logger.warn({ err: error }, text));
    }
  }
}
