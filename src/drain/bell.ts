/** Tells everybody who waits for a change that there was one. */
export class Bell {
  #listeners: (() => void)[] = [];

  /** Resolves when it rings next. */
  async next(): Promise<void> {
    await new Promise<void>((resolve) => this.#listeners.push(resolve));
  }

  ring(): void {
    const listeners = this.#listeners;
    this.#listeners = [];
    for (const listener of listeners) listener();
  }
}
