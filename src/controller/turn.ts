/** Lets one at a time go on, in the order in which they came. */
export class Turn {
  #last: Promise<void> = Promise.resolve();

  /** Waits until all that came before has ended. @returns ends this one; idempotent */
  async take(): Promise<() => void> {
    const before = this.#last;
    let end: () => void = () => undefined;
    this.#last = new Promise((resolve) => (end = resolve));
    await before;
    return end;
  }
}
