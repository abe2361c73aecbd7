import { getEventListeners } from 'node:events';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { linkSignals, Loop } from '../../src/wait.js';
import { getJson } from '../../src/topology/patroni.js';

/** What a long-lived signal keeps of those that were made from it. */
function kept(signal: AbortSignal): number {
  const dependants = Object.getOwnPropertySymbols(signal)
    .filter((symbol) => String(symbol).includes('Dependant'))
    .map((symbol) => (signal as unknown as Record<symbol, Set<unknown> | undefined>)[symbol]);
  const count = dependants.reduce((sum, set) => sum + (set?.size ?? 0), 0);
  return count + getEventListeners(signal, 'abort').length;
}

describe('linkSignals', () => {
  it('is aborted with any of its sources, for the same reason', () => {
    const [first, second] = [new AbortController(), new AbortController()];
    const { signal } = linkSignals([first.signal, second.signal]);
    const reason = new Error('over');
    second.abort(reason);
    expect(signal.aborted).toBe(true);
    expect(signal.reason).toBe(reason);
    expect(kept(first.signal) + kept(second.signal)).toBe(0);
  });

  it('is aborted at once by a source that is', () => {
    const reason = new Error('over');
    const { signal } = linkSignals([new AbortController().signal, AbortSignal.abort(reason)]);
    expect(signal.reason).toBe(reason);
  });

  it('is aborted when its time is over', async () => {
    const { signal } = linkSignals([], 1);
    await new Promise((resolve) => signal.addEventListener('abort', resolve));
    expect(signal.reason).toMatchObject({ name: 'TimeoutError' });
  });

  it('leaves nothing on a source once it is released', () => {
    const source = new AbortController();
    for (let round = 0; round < 1_000; round += 1) linkSignals([source.signal], 60_000).release();
    expect(kept(source.signal)).toBe(0);
  });

  it('links any number of signals to a source without a warning', async () => {
    const warnings: Error[] = [];
    const listen = (warning: Error): number => warnings.push(warning);
    process.on('warning', listen);
    const source = new AbortController();
    const links = Array.from({ length: 100 }, () => linkSignals([source.signal]));
    // Node.js emits warnings in a later turn.
    await new Promise((resolve) => setImmediate(resolve));
    process.off('warning', listen);
    expect(warnings).toEqual([]);
    for (const link of links) link.release();
  });
});

describe('what polls for as long as a controller runs', () => {
  const server = createServer((_, response) => response.end('{}'));
  let url: string;

  beforeAll(async () => {
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  });

  afterAll(() => new Promise((resolve) => server.close(resolve)));

  it('leaves nothing on its signal after thousands of requests', async () => {
    const { signal } = new AbortController();
    const access = { ca: undefined, auth: undefined };
    for (let round = 0; round < 2_000; round += 1)
      await getJson(url, '/cluster', access, 5_000, signal);
    expect(kept(signal)).toBe(0);
  });

  it('leaves nothing on its signal once a loop has ended', async () => {
    const { signal } = new AbortController();
    for (let round = 0; round < 1_000; round += 1) {
      const loop = new Loop({ intervalMs: 60_000, signal, work: () => Promise.resolve() });
      loop.start();
      await loop.stop();
    }
    expect(kept(signal)).toBe(0);
  });
});
