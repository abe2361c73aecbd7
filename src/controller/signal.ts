import { setTimeout as delay } from 'node:timers/promises';

/** A wake-up that is remembered until somebody waits for it. */
export class Signal {
  #raised = false;
  #waiter: (() => void) | undefined;

  raise(): void {
    this.#raised = true;
    this.#waiter?.();
  }

  /** Resolves when raised, at once if it was raised since the last wait, or after `ms`. */
  async wait(ms: number): Promise<'raised' | 'timeout'> {
    if (!this.#raised) {
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, ms);
        this.#waiter = () => {
          clearTimeout(timer);
          resolve();
        };
      });
      this.#waiter = undefined;
    }
    const outcome = this.#raised ? 'raised' : 'timeout';
    this.#raised = false;
    return outcome;
  }
}

/** Waits for `ms`, or until the signal is aborted. */
export async function pause(ms: number, signal: AbortSignal): Promise<void> {
  await delay(ms, undefined, { signal }).catch(() => undefined);
}
