/** Wakes those that wait for a change of state. */
export class Condition {
  #waiting: (() => void)[] = [];

  /** Resolves at the next change. */
  async changed(): Promise<void> {
    await new Promise<void>((resolve) => this.#waiting.push(resolve));
  }

  /** Waits until a test of the state holds; a test that throws ends the wait. */
  async until(test: () => boolean): Promise<void> {
    while (!test()) await this.changed();
  }

  notify(): void {
    for (const wake of this.#waiting.splice(0)) wake();
  }
}
