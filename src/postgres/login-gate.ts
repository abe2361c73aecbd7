import { isLoginRefused } from './sqlstate.js';

const FIRST_MS = 250;
const MOST_MS = 30_000;

/** 0.25 s, then twice as long each time, up to 30 s. */
export function loginDelay(refusals: number): number {
  return Math.min(FIRST_MS * 2 ** Math.min(Math.max(refusals, 1) - 1, 20), MOST_MS);
}

/**
 * Keeps the sessions of one controller from logging in again and again with credentials that were refused:
 * unlike a lost network, that does not get better by itself, and each attempt is a line in the server's log.
 */
export class LoginGate {
  readonly #now: () => number;
  #refusals = 0;
  #until = 0;
  #error: unknown;

  /** @param now a clock in milliseconds that never goes back */
  constructor(now: () => number = () => performance.now()) {
    this.#now = now;
  }

  /** Milliseconds until the next attempt may be made; 0 when it may be made now. */
  get waitMs(): number {
    return Math.max(0, this.#until - this.#now());
  }

  /** @throws the refusal, when it is too early for another attempt. */
  check(): void {
    if (this.waitMs > 0) throw this.#error;
  }

  succeeded(): void {
    this.#refusals = 0;
    this.#until = 0;
  }

  /** Takes note of why there is no session. Anything but a refused login changes nothing. */
  failed(error: unknown): void {
    if (!isLoginRefused(error) || this.waitMs > 0) return;
    this.#refusals += 1;
    this.#error = error;
    this.#until = this.#now() + loginDelay(this.#refusals);
  }
}
