import { describe, expect, it } from 'vitest';
import { Loop } from '../../../src/wait.js';

const NEVER_MS = 1_000_000;

/** Work that ends when it is told to, and says when it begins. */
function gate() {
  let begun: () => void = () => undefined;
  let finish: () => void = () => undefined;
  let count = 0;
  let next = new Promise<void>((resolve) => (begun = resolve));
  return {
    get count() {
      return count;
    },
    async begins() {
      await next;
      next = new Promise<void>((resolve) => (begun = resolve));
    },
    finish: () => finish(),
    work: async () => {
      count += 1;
      const done = new Promise<void>((resolve) => (finish = resolve));
      begun();
      await done;
    },
  };
}

describe('Loop', () => {
  it('works at once, again when woken, and never twice at a time', async () => {
    const { signal } = new AbortController();
    const work = gate();
    const loop = new Loop({ intervalMs: NEVER_MS, work: work.work, signal });
    loop.start();
    loop.start();
    await work.begins();
    loop.wake();
    loop.wake();
    expect(work.count).toBe(1);
    work.finish();
    await work.begins();
    expect(work.count).toBe(2);
    const stopped = loop.stop();
    work.finish();
    await stopped;
    await loop.stop();
    loop.wake();
    expect(work.count).toBe(2);
  });

  it('ends with its signal while it sleeps', async () => {
    const abort = new AbortController();
    const loop = new Loop({
      intervalMs: NEVER_MS,
      work: () => Promise.resolve(),
      signal: abort.signal,
    });
    loop.start();
    await Promise.resolve();
    abort.abort();
    await loop.stop();
  });

  it('does not begin after a stop', async () => {
    const { signal } = new AbortController();
    const work = gate();
    const loop = new Loop({ intervalMs: NEVER_MS, work: work.work, signal });
    await loop.stop();
    loop.start();
    await loop.stop();
    expect(work.count).toBe(0);
  });
});
