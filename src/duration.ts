import { ConfigError } from './errors.js';

/** PostgreSQL's own units of time from a millisecond up; the longest comes first. */
const UNITS = [
  ['d', 86_400_000],
  ['h', 3_600_000],
  ['min', 60_000],
  ['s', 1_000],
  ['ms', 1],
] as const;

const PATTERN = /^(\d+) ?(ms|s|min|h|d)$/;

/** What a duration looks like, for messages. */
export const DURATION_FORM = 'a whole number with its unit, such as 500ms, 10s, 5min, 2h or 30d';

/**
 * Reads a duration: `500ms`, `10s`, `5min`, `2h`, `30d`. A bare number is refused, because a reader cannot
 * tell seconds from milliseconds; so is `m`, which could be minutes or milliseconds.
 *
 * @returns milliseconds, a whole number of 0 or more
 * @throws ConfigError when the text has no such form, or is too long to be counted in milliseconds
 */
export function parseDuration(text: string): number {
  const [, digits, name] = PATTERN.exec(text.trim()) ?? [];
  const factor = UNITS.find(([unit]) => unit === name)?.[1];
  const milliseconds = Number(digits) * (factor ?? NaN);
  if (Number.isSafeInteger(milliseconds)) return milliseconds;
  const problem = /^\d+$/.test(text.trim()) ? 'has no unit' : 'is not a duration';
  throw new ConfigError(`${JSON.stringify(text)} ${problem}; give ${DURATION_FORM}`);
}

/**
 * Writes a duration in the largest unit that keeps it a whole number, so that `parseDuration` reads the
 * same back.
 *
 * @param milliseconds a whole number of 0 or more
 */
export function formatDuration(milliseconds: number): string {
  for (const [unit, factor] of UNITS) {
    if (milliseconds >= factor && milliseconds % factor === 0) {
      return `${milliseconds / factor}${unit}`;
    }
  }
  return `${milliseconds}ms`;
}
