import { pino, type DestinationStream, type Logger } from 'pino';

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
