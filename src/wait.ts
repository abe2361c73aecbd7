import { setMaxListeners } from 'node:events';
import { setTimeout as delay } from 'node:timers/promises';

/**
 * What `work` resolves to, or `otherwise` when that takes longer. No timer is left behind, unlike by a
 * race with a delay: those pile up, and keep a process that is to end alive.
 */
export async function within<T, U>(ms: number, work: Promise<T>, otherwise: U): Promise<T | U> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<U>((resolve) => {
    timer = setTimeout(() => resolve(otherwise), ms);
  });
  try {
    return await Promise.race([work, late]);
  } finally {
    clearTimeout(timer);
  }
}

/** A signal that others abort, until it is released. */
export interface LinkedSignal {
  readonly signal: AbortSignal;
  /** Lets go of the others. Idempotent. */
  release(): void;
}

/**
 * A signal that is aborted with any of `sources`, or after `timeoutMs`. Not AbortSignal.any: each of its
 * signals stays on the list of a source for as long as that lives, and a source may live for months.
 */
export function linkSignals(sources: readonly AbortSignal[], timeoutMs?: number): LinkedSignal {
  const controller = new AbortController();
  const timer =
    timeoutMs === undefined
      ? undefined
      : setTimeout(
          () => end(new DOMException(`no answer within ${timeoutMs} ms`, 'TimeoutError')),
          timeoutMs,
        );
  const listeners = sources.map((source) => ({ source, listen: () => end(source.reason) }));
  const release = (): void => {
    clearTimeout(timer);
    for (const { source, listen } of listeners) source.removeEventListener('abort', listen);
  };
  const end = (reason: unknown): void => {
    release();
    controller.abort(reason);
  };
  for (const { source, listen } of listeners) {
    if (source.aborted) end(source.reason);
    else if (!controller.signal.aborted) {
      // As many as there are nodes: Node.js warns of a leak from eleven on.
      setMaxListeners(0, source);
      source.addEventListener('abort', listen);
    }
  }
  return { signal: controller.signal, release };
}

/** A wake-up that is remembered until it is waited for. */
export class WakeUp {
  #raised = false;
  #waiter: (() => void) | undefined;

  raise(): void {
    this.#raised = true;
    this.#waiter?.();
  }

  /** Resolves when raised, at once if it was raised since the last wait, or after `ms`. */
  async wait(ms: number): Promise<'raised' | 'timeout'> {
    if (!this.#raised) {
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, ms);
        this.#waiter = () => {
          clearTimeout(timer);
          resolve();
        };
      });
      this.#waiter = undefined;
    }
    const outcome = this.#raised ? 'raised' : 'timeout';
    this.#raised = false;
    return outcome;
  }
}

/** Waits for `ms`, or until the signal is aborted. */
export async function sleep(ms: number, signal: AbortSignal): Promise<void> {
  await delay(ms, undefined, { signal }).catch(() => undefined);
}

/** What `work` gives, or undefined as soon as the signal is aborted. What comes of it later is ignored. */
export async function untilAborted<T>(
  signal: AbortSignal,
  work: Promise<T>,
): Promise<T | undefined> {
  let stop: (() => void) | undefined;
  const aborted = new Promise<undefined>((resolve) => {
    stop = (): void => resolve(undefined);
    if (signal.aborted) stop();
    else signal.addEventListener('abort', stop, { once: true });
  });
  work.catch(() => undefined);
  try {
    return await Promise.race([work, aborted]);
  } finally {
    if (stop) signal.removeEventListener('abort', stop);
  }
}

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
  /** Does something once all that came before has ended, however that ended. */
  async run<T>(work: () => Promise<T>): Promise<T> {
    const end = await this.take();
    try {
      return await work();
    } finally {
      end();
    }
  }
}

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
