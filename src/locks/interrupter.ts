import { setTimeout as delay } from 'node:timers/promises';
import type { Server } from './server.js';

const CANCEL_AGAIN_MS = 10;

/** Interrupts the statement of one process, and knows whether it was the controller that did. */
export class Interrupter {
  readonly #server: Server;
  readonly #pid: number;
  #cancelling: Promise<void> | undefined;
  /** A query that may interrupt the process by itself. */
  #snapshot: Promise<unknown> | undefined;
  #interrupted = false;

  constructor(server: Server, pid: number) {
    this.#server = server;
    this.#pid = pid;
  }

  /** Repeats it: a signal that reaches the server before the statement does is lost. */
  interrupt(isWaiting: () => boolean): void {
    this.#cancelling ??= this.#cancel(isWaiting);
  }

  /** A query is under way that interrupts the process if it finds it in a cycle. */
  expect(snapshot: Promise<unknown>): void {
    // One that fails may have interrupted it all the same.
    this.#snapshot = snapshot.catch(() => this.hit());
  }

  /** That query has interrupted the process. */
  hit(): void {
    this.#interrupted = true;
  }

  /**
   * Waits until no signal is on its way: one that comes late must not hit the next statement.
   *
   * @returns true when the controller has interrupted the statement before.
   */
  async quiet(): Promise<boolean> {
    const asked = this.#cancelling !== undefined;
    await Promise.all([this.#cancelling, this.#snapshot]);
    const isInterrupted = asked || this.#interrupted;
    this.#cancelling = undefined;
    this.#snapshot = undefined;
    this.#interrupted = false;
    return isInterrupted;
  }

  async #cancel(isWaiting: () => boolean): Promise<void> {
    while (isWaiting()) {
      await this.#server.cancel(this.#pid).catch(() => undefined);
      if (isWaiting()) await delay(CANCEL_AGAIN_MS);
    }
  }
}
