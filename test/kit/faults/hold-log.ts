import type { LogLine } from '../controller-process.js';

/** What a hold has done to a session that blocked it, as the controller's log names it. */
export interface Interruption {
  /** The node, as `host:port`. */
  readonly server: string;
  readonly pid: number;
  readonly application: string;
  /** For how long the session had blocked the hold, in milliseconds. */
  readonly blockedMs: number;
  /** When it was logged, in milliseconds since the epoch. */
  readonly at: number;
}

/** The sessions that holds have terminated. */
export function terminated(log: readonly LogLine[]): Interruption[] {
  return log.filter(({ msg }) => /^(ended|terminated) a session/.test(msg)).map(interruptionOf);
}

/** The sessions whose statement holds have cancelled. */
export function cancelled(log: readonly LogLine[]): Interruption[] {
  return log.filter((line) => 'sessionPid' in line && /cancel/i.test(line.msg)).map(interruptionOf);
}

function interruptionOf(line: LogLine): Interruption {
  return {
    server: String(line['server']),
    pid: Number(line['sessionPid']),
    application: String(line['application']),
    blockedMs: Number(line['blockedMs'] ?? line['waitedMs']),
    at: new Date(line['time'] as string | number).getTime(),
  };
}
