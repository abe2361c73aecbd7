import { afterEach, describe, expect, it, vi } from 'vitest';
import { LockSession } from '../../src/drain/lock-session.js';
import type { LockUnit } from '../../src/drain/lock-unit.js';
import { Server } from '../../src/drain/server.js';
import { Backend, failure } from '../support/faults/backend.js';

function unit(name: string, rest: Partial<LockUnit> = {}): LockUnit {
  return { key: name, text: `LOCK ${name}`, ...rest };
}

function start(backend: Backend): LockSession {
  return new LockSession({
    server: new Server({ key: '1', name: 'a:1', watch: backend.watch }),
    pid: 1,
    client: () => backend.client,
    onActive: () => undefined,
  });
}

const [A, B, C] = [unit('a'), unit('b'), unit('c')];
const CLIENT = 50;

describe('LockSession', () => {
  const unhandled = vi.fn();
  afterEach(() => {
    process.removeListener('unhandledRejection', unhandled);
    unhandled.mockReset();
  });

  it('takes locks in the order in which they were wanted, and none twice', async () => {
    const backend = new Backend();
    const session = start(backend);
    session.want([A, B]);
    session.want([B, C]);
    expect(await session.obtain([A, B, C])).toBe(true);
    expect(backend.ours).toEqual(['a', 'b', 'c']);
    expect(session.order).toEqual(['a', 'b', 'c']);
    await vi.waitUntil(() => !session.active);
  });

  it('gives back the latest first, no more than is needed, and queues again behind', async () => {
    const backend = new Backend();
    const session = start(backend);
    backend.held.add('c');
    session.want([A, B, C]);
    await vi.waitUntil(() => backend.waitsFor === 'c');
    backend.waiting.set(CLIENT, 'b');
    session.giveWayTo([CLIENT]);
    await vi.waitUntil(() => backend.waitsFor === 'c' && !backend.ours.includes('b'));
    expect(backend.ours).toEqual(['a']);
    backend.waiting.delete(CLIENT);
    backend.free('c');
    expect(await session.obtain([A, B, C])).toBe(true);
    expect(backend.ours).toEqual(['a', 'c', 'b']);
    expect(session.yields).toBe(1);
  });

  it('gives back its place in a queue as well', async () => {
    const backend = new Backend();
    const session = start(backend);
    backend.held.add('a');
    session.want([A]);
    await vi.waitUntil(() => backend.waitsFor === 'a');
    session.giveWayTo([CLIENT]);
    await vi.waitUntil(() => backend.statements.filter((text) => text === 'LOCK a').length === 2);
    backend.free('a');
    expect(await session.obtain([A])).toBe(true);
  });

  it('never gives back what is kept, as long as somebody keeps it', async () => {
    const backend = new Backend();
    const session = start(backend);
    const [one, two] = [{}, {}];
    session.want([A, B]);
    await session.obtain([A, B]);
    session.keep([A], one);
    backend.waiting.set(CLIENT, 'a');
    backend.held.add('c');
    session.want([C]);
    await vi.waitUntil(() => backend.waitsFor === 'c');
    session.giveWayTo([CLIENT]);
    await vi.waitUntil(() => !backend.ours.includes('b') && backend.waitsFor === 'c');
    expect(backend.ours).toEqual(['a']);
    backend.free('c');
    await session.obtain([A, B, C]);
    await vi.waitUntil(() => !session.active);
    session.keep([A, B, C], two);
    session.letGo(one);
    expect(session.canYield).toBe(false);
    session.giveWayTo([CLIENT]);
    expect(session.yields).toBe(1);
    await session.drop([A, B, C]);
    expect(session.has([A, B, C])).toBe(true);

    // Nobody keeps it any more, and somebody still waits.
    session.letGo(two);
    expect(session.canYield).toBe(true);
    session.giveWayTo([CLIENT]);
    await vi.waitUntil(() => session.yields === 2 && !session.active);
    expect(backend.statements).toContain('ROLLBACK TO SAVEPOINT mpp_lock_0');
  });

  it('wants again as it was what it took only because it was free', async () => {
    const backend = new Backend();
    const session = start(backend);
    const once: LockUnit = { ...A, text: 'LOCK NOWAIT a', once: true, parts: [A] };
    session.want([once, B]);
    backend.held.add('b');
    await vi.waitUntil(() => backend.waitsFor === 'b');
    backend.waiting.set(CLIENT, 'a');
    backend.held.add('a');
    session.giveWayTo([CLIENT]);
    await vi.waitUntil(() => backend.waitsFor === 'b' && !backend.ours.includes('a'));
    backend.free('b');
    await vi.waitUntil(() => backend.waitsFor === 'a');
    expect(backend.statements.at(-1)).toBe('LOCK a');
    backend.free('a');
    expect(await session.obtain([A, B])).toBe(true);
  });

  it('has nothing and takes nothing once it was stopped', async () => {
    const backend = new Backend();
    const session = start(backend);
    backend.held.add('b');
    session.want([A, B]);
    const waiting = session.obtain([A, B]).catch(() => 'failed');
    await vi.waitUntil(() => backend.waitsFor === 'b');
    await session.stop();
    expect(await waiting).toBe('failed');
    expect(backend.waitsFor).toBeUndefined();
    expect(session.has([A])).toBe(false);
    const count = backend.statements.length;
    session.want([C]);
    await expect(session.obtain([C])).rejects.toThrow();
    expect(session.canYield).toBe(false);
    expect(backend.statements.length).toBe(count);
  });

  it('takes a bundle at once, and in parts once somebody was in the way', async () => {
    const backend = new Backend();
    const session = start(backend);
    const bundle = unit('whole', { parts: [A, B] });
    backend.held.add('whole');
    session.want([bundle]);
    await vi.waitUntil(() => backend.waitsFor === 'whole');
    session.giveWayTo([CLIENT]);
    expect(await session.obtain([bundle])).toBe(true);
    expect(backend.ours).toEqual(['a', 'b']);
    expect(session.has([bundle])).toBe(true);
  });

  it('waits no more for what is dropped, and takes the rest', async () => {
    const backend = new Backend();
    const session = start(backend);
    backend.held.add('b');
    session.want([A, B, C]);
    await vi.waitUntil(() => backend.waitsFor === 'b');
    const waiting = session.obtain([B]);
    await session.drop([A, B]);
    expect(await waiting).toBe(false);
    expect(await session.obtain([C])).toBe(true);
    expect(backend.ours).toEqual(['c']);
  });

  it('takes a deadlock that it died of for a yield', async () => {
    const backend = new Backend();
    const session = start(backend);
    backend.held.add('b');
    session.want([A, B]);
    await vi.waitUntil(() => backend.waitsFor === 'b');
    backend.held.delete('b');
    backend.fail(failure('40P01'));
    expect(await session.obtain([A, B])).toBe(true);
    expect(backend.ours).toEqual(['a', 'b']);
  });

  it('queues again when it was interrupted by a look that was lost itself', async () => {
    const backend = new Backend();
    const session = start(backend);
    backend.held.add('a');
    session.want([A]);
    await vi.waitUntil(() => backend.waitsFor === 'a');
    session.lookedAt(Promise.reject(failure('57P01')));
    backend.fail(failure('57014'));
    await vi.waitUntil(() => backend.waitsFor === 'a');
    backend.free('a');
    expect(await session.obtain([A])).toBe(true);
  });

  it('gives up with the error of a statement that fails, and what it has stays', async () => {
    const backend = new Backend();
    const session = start(backend);
    backend.held.add('b');
    session.want([A, B]);
    const refused = expect(session.obtain([A, B])).rejects.toMatchObject({ code: '42501' });
    await vi.waitUntil(() => backend.waitsFor === 'b');
    backend.fail(failure('42501'));
    await refused;
    expect(backend.ours).toEqual(['a']);
    expect(session.canYield).toBe(false);
  });

  it('does not want again what was wanted only if it is free', async () => {
    const backend = new Backend();
    const session = start(backend);
    backend.held.add('a');
    const once = unit('a', { once: true });
    session.want([once, B]);
    await vi.waitUntil(() => backend.waitsFor === 'a');
    backend.fail(failure('55P03'));
    expect(await session.obtain([B])).toBe(true);
    expect(await session.obtain([once])).toBe(false);
  });

  describe('while its savepoint is being set', () => {
    /** It has a and is about to want b, which is not to be had. */
    async function atSavepoint() {
      const backend = new Backend();
      const session = start(backend);
      session.want([A]);
      await session.obtain([A]);
      await vi.waitUntil(() => !session.active);
      let go = (): void => undefined;
      backend.delay = new Promise((resolve) => (go = resolve));
      backend.held.add('b');
      session.want([B]);
      await vi.waitUntil(() => backend.statements.at(-1) === 'SAVEPOINT mpp_lock_1');
      return { backend, session, go };
    }

    it('it can be told not to wait', async () => {
      const { backend, session, go } = await atSavepoint();
      const dropped = session.drop([B]);
      go();
      await dropped;
      expect(backend.waitsFor).toBeUndefined();
      expect(session.has([A])).toBe(true);
    });

    it('it can be told to give way', async () => {
      const { backend, session, go } = await atSavepoint();
      backend.waiting.set(CLIENT, 'a');
      session.giveWayTo([CLIENT]);
      go();
      await vi.waitUntil(() => !backend.ours.includes('a'));
      backend.free('b');
      expect(await session.obtain([A, B])).toBe(true);
    });

    it('it can be stopped', async () => {
      const { backend, session, go } = await atSavepoint();
      const stopped = session.stop();
      go();
      await stopped;
      expect(backend.waitsFor).toBeUndefined();
    });
  });

  // A process that runs no statement ignores the signal, and ours may not have arrived there yet.
  it('a cancel that came before the statement is sent again', async () => {
    const backend = new Backend();
    backend.cancelsLost = 1;
    const session = start(backend);
    backend.held.add('a');
    session.want([A]);
    await vi.waitUntil(() => backend.waitsFor === 'a');
    await session.drop([A]);
    expect(backend.cancels).toBeGreaterThan(1);
    expect(session.active).toBe(false);
  });

  it('a cancel that fails, as when the server is gone, brings nobody down', async () => {
    process.on('unhandledRejection', unhandled);
    const backend = new Backend();
    backend.watchError = failure('57P03');
    const session = start(backend);
    backend.held.add('a');
    session.want([A]);
    const waiting = session.obtain([A]).catch(() => false);
    await vi.waitUntil(() => backend.waitsFor === 'a');
    session.giveWayTo([CLIENT]);
    // An unhandled rejection is told once the queue of microtasks is empty.
    await new Promise((resolve) => setImmediate(resolve));
    backend.free('a');
    await waiting;
    expect(unhandled).not.toHaveBeenCalled();
  });
});
