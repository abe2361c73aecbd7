/** How often the same message is logged again while nothing changes, in milliseconds. */
const AGAIN_MS = 600_000;

/**
 * Says the same thing once, not each second: again when it has changed, or when it has lasted for another
 * ten minutes.
 */
export class OncePerChange {
  readonly #againMs: number;
  readonly #now: () => number;
  #said: string | undefined;
  #saidAt = 0;

  /** @param now a clock in milliseconds that never goes back */
  constructor(againMs = AGAIN_MS, now: () => number = () => performance.now()) {
    this.#againMs = againMs;
    this.#now = now;
  }

  /** Calls `say` unless the same text was said not long ago. @returns whether it was called. */
  say(text: string, say: () => void, againMs = this.#againMs): boolean {
    const now = this.#now();
    if (this.#said === text && now - this.#saidAt < againMs) return false;
    this.#said = text;
    this.#saidAt = now;
    say();
    return true;
  }

  /** The trouble is over: the next text is said, even if it is the same. @returns whether there was any. */
  clear(): boolean {
    const hadAny = this.#said !== undefined;
    this.#said = undefined;
    return hadAny;
  }
}
