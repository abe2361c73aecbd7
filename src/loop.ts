import { linkSignals, type LinkedSignal } from './wait.js';

interface LoopOptions {
  readonly intervalMs: number;
  /** What is done each time. Must not throw. */
  readonly work: (signal: AbortSignal) => Promise<void>;
  /** Ends the loop like `stop`. */
  readonly signal: AbortSignal;
}

/** Does something at once, then time and again, and sooner when woken; never twice at a time. */
export class Loop {
  readonly #options: LoopOptions;
  readonly #abort = new AbortController();
  readonly #link: LinkedSignal;
  #running: Promise<void> | undefined;
  #awake = false;
  #rouse: (() => void) | undefined;

  constructor(options: LoopOptions) {
    this.#options = options;
    this.#link = linkSignals([options.signal, this.#abort.signal]);
  }

  start(): void {
    this.#running ??= this.#run();
  }

  /** Does it again at once, or right after what it is doing. */
  wake(): void {
    this.#awake = true;
    this.#rouse?.();
  }

  /** Resolves when what is being done has ended. */
  async stop(): Promise<void> {
    this.#abort.abort();
    await this.#running;
    this.#link.release();
  }

  async #run(): Promise<void> {
    const { intervalMs, work } = this.#options;
    const rouse = (): void => this.#rouse?.();
    this.#link.signal.addEventListener('abort', rouse);
    while (!this.#link.signal.aborted) {
      this.#awake = false;
      await work(this.#link.signal);
      await this.#sleep(intervalMs);
    }
    this.#link.signal.removeEventListener('abort', rouse);
  }

  async #sleep(ms: number): Promise<void> {
    if (this.#awake || this.#link.signal.aborted) return;
    await new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, ms);
      this.#rouse = () => {
        clearTimeout(timer);
        resolve();
      };
    });
    this.#rouse = undefined;
  }
}
