import { setTimeout as delay } from 'node:timers/promises';
import type { Server } from './server.js';

const CANCEL_AGAIN_MS = 10;

/** Interrupts the statement of one process, and knows whether it was us who did. */
export class Interrupter {
  readonly #server: Server;
  readonly #pid: number;
  #cancelling: Promise<void> | undefined;
  /** What may interrupt the process now without being asked. */
  #look: Promise<unknown> | undefined;
  #interrupted = false;

  constructor(server: Server, pid: number) {
    this.#server = server;
    this.#pid = pid;
  }

  /** Time and again: a signal that reaches the server before the statement does is lost. */
  interrupt(isWaiting: () => boolean): void {
    this.#cancelling ??= this.#cancel(isWaiting);
  }

  lookedAt(look: Promise<unknown>): void {
    // One that fails may have interrupted it all the same.
    this.#look = look.catch(() => this.hit());
  }

  /** The look has interrupted it. */
  hit(): void {
    this.#interrupted = true;
  }

  /**
   * Waits until no signal is on its way: one that comes late must not hit the next statement.
   *
   * @returns true when the statement before was interrupted by us.
   */
  async quiet(): Promise<boolean> {
    const asked = this.#cancelling !== undefined;
    await Promise.all([this.#cancelling, this.#look]);
    const ours = asked || this.#interrupted;
    this.#cancelling = undefined;
    this.#look = undefined;
    this.#interrupted = false;
    return ours;
  }

  async #cancel(isWaiting: () => boolean): Promise<void> {
    while (isWaiting()) {
      await this.#server.cancel(this.#pid).catch(() => undefined);
      if (isWaiting()) await delay(CANCEL_AGAIN_MS);
    }
  }
}
