import { setTimeout as delay } from 'node:timers/promises';
import { errorText } from '../../../postgres/session.js';
import type { PauseNode } from './node.js';

/** How often a node is pinged, in milliseconds, once its part takes longer than that. */
const PING_MS = 250;
/** So many pings in a row may fail: a busy server may miss one. */
const MOST_MISSED = 2;

/** Resolves, with a sentence that says why, once a node counts as silent; never while it answers. */
export async function untilSilent(node: PauseNode, signal: AbortSignal): Promise<string> {
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
