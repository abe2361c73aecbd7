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

/** The same log for one part of the program; each of its lines names the part. */
export function componentLogger(logger: Logger, component: string): Logger {
  return logger.child({ component });
}
