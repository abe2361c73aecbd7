import { formatAddress } from '../tasks/task.js';
import { writeMembers, type MemberReport, type SourceName } from './members.js';
import type { SourceContext } from './source.js';

/**
 * Writes the reports of one source. While a statement runs, what comes in is collected for the next:
 * a node that is slow to answer delays no other, and many that answer at once cost one statement.
 */
export class MemberWriter {
  readonly #context: SourceContext;
  readonly #source: SourceName;
  readonly #waiting = new Map<string, MemberReport>();
  #writing: Promise<void> | undefined;
  #failing = false;

  constructor(source: SourceName, context: SourceContext) {
    this.#source = source;
    this.#context = context;
  }

  /** The newest report of a node replaces one that has not been written yet. */
  submit(reports: readonly MemberReport[]): void {
    for (const report of reports) this.#waiting.set(formatAddress(report.address), report);
    this.#writing ??= this.#write().finally(() => {
      this.#writing = undefined;
      if (this.#waiting.size > 0 && !this.#context.signal.aborted) this.submit([]);
    });
  }

  /** Resolves when all that was handed over has been written, or could not be. */
  async settle(): Promise<void> {
    await this.#writing;
  }

  async #write(): Promise<void> {
    // What else is handed over in this turn of the event loop goes into the same statement.
    await Promise.resolve();
    const { db, ttlMs, logger, onChange, signal } = this.#context;
    while (this.#waiting.size > 0 && !signal.aborted) {
      const reports = [...this.#waiting.values()];
      this.#waiting.clear();
      try {
        if (await writeMembers(db, this.#source, reports, ttlMs)) onChange();
        this.#failing = false;
      } catch (error) {
        // The next round has them again.
        if (!this.#failing) logger.warn({ err: error }, 'what was seen could not be written');
        this.#failing = true;
      }
    }
  }
}
