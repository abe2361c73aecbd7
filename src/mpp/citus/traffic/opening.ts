import { setTimeout as delay } from 'node:timers/promises';
import { linkSignals } from '../../../linked-signal.js';
import { errorText } from '../../../postgres/session.js';
import type { Lane } from './lane.js';

/** A lane on a node that is not the coordinator. */
export interface SideLane {
  readonly nodeid: number;
  readonly lane: Lane;
}

/** How often it is asked whether a node is still there, in milliseconds, once it takes longer than that. */
const PING_MS = 250;
/** So often in a row it may not say so: a busy server may miss one. */
const MOST_MISSED = 2;
/** What a node may take beyond the cooldown before the hold goes on without it, in milliseconds. */
const LATE_MS = 2_000;
/** And what part of the hold's own time: the sessions that have their locks already do not wait longer. */
const MOST_OF_HOLD = 0.75;

export interface OpeningOptions {
  /** Whether no lock is taken anywhere before all lanes are prepared. */
  readonly planned: boolean;
  readonly cooldownMs: number;
  /** How long the hold may last. */
  readonly remainingMs: number;
  readonly signal: AbortSignal;
}

/**
 * Takes the locks of all lanes at the same time, and keeps them once all are there at the same moment.
 * A side lane that cannot have its own is released and left out: `lane.reason` says so.
 *
 * @returns the side lanes.
 * @throws what keeps the main lane from its locks, or the reason of the signal; all lanes are released.
 */
export async function openLanes(
  main: Lane,
  side: readonly SideLane[],
  { planned, cooldownMs, remainingMs, signal }: OpeningOptions,
): Promise<readonly SideLane[]> {
  const given = new AbortController();
  const lateMs = Math.min(2 * cooldownMs + LATE_MS, MOST_OF_HOLD * remainingMs);
  const late = delay(lateMs, undefined, { signal: given.signal });
  late.catch(() => undefined);
  const interrupted = new Promise<never>((_, reject) => {
    const interrupt = (): void =>
      reject(signal.reason instanceof Error ? signal.reason : new Error('interrupted'));
    if (signal.aborted) interrupt();
    else signal.addEventListener('abort', interrupt, { once: true, signal: given.signal });
  });
  interrupted.catch(() => undefined);
  const sideOf = (lane: Lane, work: () => Promise<void>): Promise<void> =>
    leaveOutLate(lane, work, late, given.signal);
  const allOf = async (work: (lane: Lane) => Promise<void>): Promise<void> => {
    const working = [work(main), ...side.map(({ lane }) => sideOf(lane, () => work(lane)))];
    await Promise.race([interrupted, Promise.all(working)]);
  };
  try {
    if (planned) await allOf((lane) => lane.prepare());
    await allOf(async (lane) => {
      if (!planned) await lane.prepare();
      await lane.take();
    });
    while (!main.complete || side.some(({ lane }) => !lane.complete)) {
      await allOf((lane) => lane.settle());
    }
    await Promise.all([main, ...side.map(({ lane }) => lane)].map((lane) => lane.keep()));
    return side;
  } catch (error) {
    await Promise.all([main, ...side.map(({ lane }) => lane)].map((lane) => lane.release()));
    throw error;
  } finally {
    given.abort();
  }
}

async function leaveOutLate(
  lane: Lane,
  work: () => Promise<void>,
  late: Promise<void>,
  given: AbortSignal,
): Promise<void> {
  const done = new AbortController();
  const over = linkSignals([done.signal, given]);
  try {
    const why = await Promise.race([
      work().then(() => null),
      late.then(() => 'its locks could not be had in time'),
      silence(lane, over.signal),
    ]);
    if (why !== null) await lane.leaveOut(why);
  } catch (error) {
    await lane.leaveOut(errorText(error));
  } finally {
    done.abort();
    over.release();
  }
}

/** @returns why the node of a lane counts as silent; never unless it is. */
async function silence({ node }: Lane, signal: AbortSignal): Promise<string> {
  let why = '';
  for (let missed = 0; missed < MOST_MISSED;) {
    if (!(await slept(PING_MS, signal))) return new Promise(() => undefined);
    try {
      await node.ping();
      missed = 0;
    } catch (error) {
      missed += 1;
      why = `it has fallen silent: ${errorText(error)}`;
    }
  }
  return why;
}

/** @returns false when it was woken by the signal. */
async function slept(ms: number, signal: AbortSignal): Promise<boolean> {
  return delay(ms, true, { signal }).catch(() => false);
}
