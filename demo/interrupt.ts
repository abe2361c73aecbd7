import { once } from 'node:events';
import { constants } from 'node:os';

/** The demo was asked to end before its end. */
export class Interrupted extends Error {
  override readonly name = 'Interrupted';
  readonly signal: NodeJS.Signals;
  constructor(signal: NodeJS.Signals) {
    super(`interrupted by ${signal}`);
    this.signal = signal;
  }
}

const SIGNALS: readonly NodeJS.Signals[] = ['SIGINT', 'SIGTERM', 'SIGHUP'];
const LAUNCHER_CHECK_MS = 500;
/** A terminal's Ctrl-C comes twice under npm: from the terminal, and passed on. */
const ECHO_MS = 1_000;

/**
 * Listens for the request to end: a signal, an output that nobody reads any more, or the end of the
 * npm that launched us, which passes no SIGKILL on.
 */
export class Interrupt {
  readonly #ended = new AbortController();
  readonly #launcher = process.ppid;
  #raisedAt: number | undefined;
  #check: NodeJS.Timeout | undefined;
  #started = false;

  start(): void {
    if (this.#started) return;
    this.#started = true;
    for (const name of SIGNALS) process.on(name, this.#onSignal);
    process.stdout.on('error', this.#onOutputLost);
    if (process.env['npm_lifecycle_event'] === undefined) return;
    this.#check = setInterval(() => {
      if (process.ppid !== this.#launcher) this.#raise('SIGHUP');
    }, LAUNCHER_CHECK_MS);
    this.#check.unref();
  }

  stop(): void {
    if (!this.#started) return;
    this.#started = false;
    clearInterval(this.#check);
    for (const name of SIGNALS) process.off(name, this.#onSignal);
    process.stdout.off('error', this.#onOutputLost);
  }

  /** Resolves once the demo is asked to end. */
  async asked(): Promise<Interrupted> {
    const { signal } = this.#ended;
    if (!signal.aborted) await once(signal, 'abort');
    return signal.reason as Interrupted;
  }

  /** Rejects with Interrupted once the demo is asked to end. */
  async raised(): Promise<never> {
    throw await this.asked();
  }

  /** @throws Interrupted once the demo is asked to end */
  check(): void {
    this.#ended.signal.throwIfAborted();
  }

  readonly #onSignal = (name: NodeJS.Signals): void => {
    if (this.#raisedAt === undefined) this.#raise(name);
    // Somebody is impatient. The reaper does what is left to do.
    else if (performance.now() - this.#raisedAt > ECHO_MS)
      process.exit(128 + constants.signals[name]);
  };

  readonly #onOutputLost = (): void => this.#raise('SIGHUP');

  #raise(name: NodeJS.Signals): void {
    if (this.#raisedAt !== undefined) return;
    this.#raisedAt = performance.now();
    this.#ended.abort(new Interrupted(name));
  }
}
