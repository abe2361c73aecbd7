/** Prints what happens while it happens: plain lines, each with the time since the start. */
export class Narrator {
  readonly #startedAt = performance.now();
  readonly #write: (text: string) => void;

  constructor(write: (text: string) => void) {
    this.#write = write;
  }

  /** One step of the demo. */
  step(text: string): void {
    this.#write(`[${this.elapsed().padStart(4)} s] ${text}\n`);
  }

  /** Text that belongs to the step before it, as it is. */
  lines(text: string): void {
    this.#write(`${text}\n`);
  }

  /** Text as it is, followed by an empty line. */
  paragraph(text: string): void {
    this.#write(`${text}\n\n`);
  }

  /** Seconds since the start, with one decimal. */
  elapsed(): string {
    return ((performance.now() - this.#startedAt) / 1_000).toFixed(1);
  }
}
