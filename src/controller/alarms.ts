/** Timers that end together. */
export class Alarms {
  readonly #timers = new Set<NodeJS.Timeout>();

  /** Calls `ring` once, after `ms`. */
  set(ring: () => void, ms: number): void {
    const timer = setTimeout(() => {
      this.#timers.delete(timer);
      ring();
    }, ms);
    this.#timers.add(timer);
  }

  /** Resolves after `ms`; not after `clear`. */
  async after(ms: number): Promise<false> {
    return new Promise((resolve) => this.set(() => resolve(false), ms));
  }

  clear(): void {
    for (const timer of this.#timers) clearTimeout(timer);
    this.#timers.clear();
  }
}
