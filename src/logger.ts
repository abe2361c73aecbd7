import { type DestinationStream, type Logger, pino } from 'pino';

export type { Logger };

/** The levels of the log, from the most talkative to none. */
export const LOG_LEVELS = ['trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent'] as const;

export type LogLevel = (typeof LOG_LEVELS)[number];

/**
 * The log of this process: one JSON object a line. Level and time are written out in words, so that a
 * line can be read without a tool.
 *
 * @param destination where lines go; standard output unless a test listens
 */
export function createLogger(level: LogLevel, destination?: DestinationStream): Logger {
  return pino(
    {
      level,
      base: { pid: process.pid },
      timestamp: pino.stdTimeFunctions.isoTime,
      formatters: { level: (label) => ({ level: label }) },
    },
    destination ?? pino.destination(1),
  );
}

/**
 * The same log for one part of the program; each of its lines names the part. A part of a part is named
 * alone: pino would write the key `component` twice.
 */
export function componentLogger(logger: Logger, component: string): Logger {
  const own = logger.bindings();
  if (!('component' in own)) return logger.child({ component });
  const base = withoutComponent(logger);
  if (base === undefined) return logger;
  const known = base.bindings();
  const added = Object.entries(own).filter(([key]) => !(key in known));
  return base.child({ ...Object.fromEntries(added), component });
}

/** The nearest logger above that names no part; a child of pino has its parent as prototype. */
function withoutComponent(logger: Logger): Logger | undefined {
  let base = logger;
  while ('component' in base.bindings()) {
    const parent = Object.getPrototypeOf(base) as Logger;
    if (!isLogger(parent)) return undefined;
    base = parent;
  }
  return base;
}

/** Pino's own prototype has the methods of a logger, and no bindings. */
function isLogger(parent: Logger): boolean {
  return (
    typeof (parent as unknown as Record<symbol, unknown>)[pino.symbols.chindingsSym] === 'string'
  );
}

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
