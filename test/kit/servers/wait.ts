import { setTimeout as delay } from 'node:timers/promises';
import { inspect } from 'node:util';
import { errorText } from '../../../src/postgres/session.js';

/** What was waited for did not come in time. `cause` is the last error of the probe, if it threw. */
export class WaitTimeoutError extends Error {
  override readonly name = 'WaitTimeoutError';
}

/** How long to wait and how often to look, in milliseconds. */
export interface WaitOptions {
  timeoutMs?: number;
  intervalMs?: number;
}

/** What a probe answers while the state is not there yet. */
type NotYet = undefined | null | false;

type Look<T> = { value: T | NotYet } | { error: unknown };

/**
 * Looks again and again until the probe gives a value, and returns that value.
 *
 * `undefined`, `null`, `false` and a thrown error all mean "not yet": servers that start or stop
 * refuse connections for a moment.
 *
 * @param description what is waited for, as in "timed out waiting for …"
 * @throws WaitTimeoutError naming it and the last thing seen. A probe that never answers counts too.
 */
export async function waitFor<T>(
  description: string,
  probe: () => Promise<T | NotYet>,
  { timeoutMs = 30_000, intervalMs = 20 }: WaitOptions = {},
): Promise<T> {
  const controller = new AbortController();
  const bound = delay(timeoutMs, 'timeout' as const, { signal: controller.signal });
  // The bound is aborted on success, and a rejection that nobody awaits would end the process.
  bound.catch(() => undefined);
  let last: Look<T> | undefined;
  try {
    for (;;) {
      const seen = await Promise.race([look(probe), bound]);
      if (seen === 'timeout') break;
      last = seen;
      if ('value' in seen && !isNotYet(seen.value)) return seen.value;
      if ((await Promise.race([delay(intervalMs), bound])) === 'timeout') break;
    }
  } finally {
    controller.abort();
  }
  throw new WaitTimeoutError(
    `timed out after ${timeoutMs} ms waiting for ${description}; ${describeLook(last)}`,
    last !== undefined && 'error' in last ? { cause: last.error } : undefined,
  );
}

async function look<T>(probe: () => Promise<T | NotYet>): Promise<Look<T>> {
  try {
    return { value: await probe() };
  } catch (error) {
    return { error };
  }
}

function isNotYet(value: unknown): value is NotYet {
  return value === undefined || value === null || value === false;
}

function describeLook(last: Look<unknown> | undefined): string {
  if (last === undefined) return 'the probe never answered';
  return 'error' in last
    ? `last error: ${errorText(last.error)}`
    : `last seen: ${inspect(last.value)}`;
}
