import type { ControllerState } from '../tasks/observer.js';

/** How long a loop may stand, beyond MPP_POLL: its statements are bounded to a part of that. */
const STUCK_MS = 60_000;
const HAS_SESSION: ReadonlySet<ControllerState> = new Set(['active', 'standby']);

/** Whether the controller of one database goes on, by what its observer hears. */
export class ControllerHealth {
  readonly #pollMs: number;
  readonly #now: () => number;
  #state: ControllerState = 'connecting';
  #turnedAt: number;

  /** @param now a clock in milliseconds that never goes back */
  constructor(pollMs: number, now: () => number = () => performance.now()) {
    this.#pollMs = pollMs;
    this.#now = now;
    this.#turnedAt = now();
  }

  get state(): ControllerState {
    return this.#state;
  }

  get isActive(): boolean {
    return this.#state === 'active' || this.#state === 'reconnecting';
  }

  /** Whether it has a session with the database. */
  get isReady(): boolean {
    return HAS_SESSION.has(this.#state);
  }

  /** True while its loop has not gone round for far longer than it may take. */
  get isStuck(): boolean {
    return this.isReady && this.#now() - this.#turnedAt > this.#pollMs + STUCK_MS;
  }

  enter(state: ControllerState): void {
    this.#state = state;
    this.turned();
  }

  turned(): void {
    this.#turnedAt = this.#now();
  }
}
