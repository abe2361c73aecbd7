import { afterEach, describe, expect, it, vi } from 'vitest';
import { Condition } from '../../src/wait.js';
import type { Lock } from '../../src/locks/lock.js';
import { LockSession, type LockOwner } from '../../src/locks/lock-session.js';
import { Server } from '../../src/locks/server.js';
import { Backend, failure } from '../kit/faults/backend.js';

function lock(name: string): Lock {
  return {
    key: name,
    text: `LOCK ${name}`,
    nowait: `LOCK NOWAIT ${name}`,
    tables: new Set([name]),
    strength: 1,
    conflictGroup: name,
  };
}

/** All is held that was not released, and nothing kept but what was said to be. */
class Owner implements LockOwner {
  readonly released = new Set<Lock>();
  readonly kept = new Set<Lock>();

  isHeld(one: Lock): boolean {
    return !this.released.has(one);
  }

  isKept(one: Lock): boolean {
    return this.kept.has(one);
  }
}

function start(backend: Backend, owner = new Owner()): LockSession {
  return new LockSession({
    server: new Server({ key: '1', name: 'a:1', watch: backend.watch }),
    pid: 1,
    client: () => backend.client,
    owner,
    condition: new Condition(),
    onActive: () => undefined,
  });
}

function taken(session: LockSession): string[] {
  return session.taken.map(({ key }) => key);
}

const [A, B, C] = [lock('a'), lock('b'), lock('c')];
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
    session.take([A, B]);
    session.take([B, C]);
    expect(await session.taking([A, B, C])).toBe(true);
    expect(backend.ours).toEqual(['a', 'b', 'c']);
    expect(taken(session)).toEqual(['a', 'b', 'c']);
    await vi.waitUntil(() => !session.isActive);
  });

  it('yields the latest first, no more than is needed, and queues again behind', async () => {
    const backend = new Backend();
    const session = start(backend);
    backend.held.add('c');
    for (const one of [A, B, C]) session.take([one]);
    await vi.waitUntil(() => backend.waitsFor === 'c');
    backend.waiting.set(CLIENT, 'b');
    session.yieldTo([CLIENT]);
    await vi.waitUntil(() => backend.waitsFor === 'c' && !backend.ours.includes('b'));
    expect(backend.ours).toEqual(['a']);
    backend.waiting.delete(CLIENT);
    backend.free('c');
    expect(await session.taking([A, B, C])).toBe(true);
    expect(backend.ours).toEqual(['a', 'c', 'b']);
    expect(session.yields).toBe(1);
  });

  it('yields its place in a queue as well', async () => {
    const backend = new Backend();
    const session = start(backend);
    backend.held.add('a');
    session.take([A]);
    await vi.waitUntil(() => backend.waitsFor === 'a');
    session.yieldTo([CLIENT]);
    await vi.waitUntil(() => backend.statements.filter((text) => text === 'LOCK a').length === 2);
    backend.free('a');
    expect(await session.taking([A])).toBe(true);
  });

  it('never yields nor releases what is kept', async () => {
    const backend = new Backend();
    const owner = new Owner();
    const session = start(backend, owner);
    session.take([A]);
    session.take([B]);
    await session.taking([A, B]);
    owner.kept.add(A);
    backend.waiting.set(CLIENT, 'a');
    backend.held.add('c');
    session.take([C]);
    await vi.waitUntil(() => backend.waitsFor === 'c');
    session.yieldTo([CLIENT]);
    await vi.waitUntil(() => !session.isActive || !backend.ours.includes('b'));
    await vi.waitUntil(() => taken(session).includes('b') && !session.isActive);
    expect(backend.ours).toEqual(['a', 'b']);
    owner.kept.add(B);
    expect(session.canYield).toBe(false);
    session.yieldTo([CLIENT]);
    expect(session.yields).toBe(1);
    owner.released.add(A);
    await session.release();
    expect(session.has(A)).toBe(true);

    // No hold keeps it any more.
    owner.kept.clear();
    await session.release();
    expect(backend.ours).toEqual(['b']);
    expect(backend.statements).toContain('ROLLBACK TO SAVEPOINT mpp_lock_0');
  });

  it('gives up a lock whose blocker waits for what is kept, and says so', async () => {
    const backend = new Backend();
    const owner = new Owner();
    const session = start(backend, owner);
    session.take([A]);
    await session.taking([A]);
    owner.kept.add(A);
    backend.waiting.set(CLIENT, 'a');
    backend.held.add('c');
    session.take([C]);
    await vi.waitUntil(() => backend.waitsFor === 'c');
    session.yieldTo([CLIENT]);
    expect(await session.taking([C])).toBe(false);
    expect(session.unresolvable).toEqual([C]);
    expect(backend.ours).toEqual(['a']);
  });

  it('waits again for what it took only because it was free', async () => {
    const backend = new Backend();
    const session = start(backend);
    session.take([A], true);
    session.take([B]);
    backend.held.add('b');
    await vi.waitUntil(() => backend.waitsFor === 'b');
    backend.waiting.set(CLIENT, 'a');
    backend.held.add('a');
    session.yieldTo([CLIENT]);
    await vi.waitUntil(() => backend.waitsFor === 'b' && !backend.ours.includes('a'));
    backend.free('b');
    await vi.waitUntil(() => backend.waitsFor === 'a');
    expect(backend.statements.at(-1)).toBe('LOCK a');
    backend.free('a');
    expect(await session.taking([A, B])).toBe(true);
  });

  it('turns to what it can have when it is to postpone', async () => {
    const backend = new Backend();
    const session = start(backend);
    backend.held.add('a');
    session.take([A]);
    session.take([B]);
    await vi.waitUntil(() => backend.waitsFor === 'a');
    session.postpone();
    await vi.waitUntil(() => taken(session).includes('b') && backend.waitsFor === 'a');
    backend.free('a');
    expect(await session.taking([A, B])).toBe(true);
  });

  it('has nothing and takes nothing once it was stopped', async () => {
    const backend = new Backend();
    const session = start(backend);
    backend.held.add('b');
    session.take([A, B]);
    const waiting = session.taking([A, B]).catch(() => 'failed');
    await vi.waitUntil(() => backend.waitsFor === 'b');
    await session.stop();
    expect(await waiting).toBe('failed');
    expect(backend.waitsFor).toBeUndefined();
    expect(session.has(A)).toBe(false);
    const count = backend.statements.length;
    session.take([C]);
    await expect(session.taking([C])).rejects.toThrow();
    expect(session.canYield).toBe(false);
    expect(backend.statements.length).toBe(count);
  });

  it('takes several locks in one message, and one by one once a blocker has turned up', async () => {
    const backend = new Backend();
    const session = start(backend);
    backend.held.add('b');
    session.take([A, B]);
    await vi.waitUntil(() => backend.waitsFor === 'b');
    expect(backend.statements.at(-1)).toBe('LOCK a;\nLOCK b');
    session.yieldTo([CLIENT]);
    await vi.waitUntil(() => backend.waitsFor === 'b' && backend.statements.at(-1) === 'LOCK b');
    backend.free('b');
    expect(await session.taking([A, B])).toBe(true);
  });

  it('waits no more for what is released, and takes the rest', async () => {
    const backend = new Backend();
    const owner = new Owner();
    const session = start(backend, owner);
    backend.held.add('b');
    for (const one of [A, B, C]) session.take([one]);
    await vi.waitUntil(() => backend.waitsFor === 'b');
    const waiting = session.taking([B]);
    owner.released.add(A).add(B);
    await session.release();
    expect(await waiting).toBe(false);
    expect(await session.taking([C])).toBe(true);
    expect(backend.ours).toEqual(['c']);
  });

  it('takes a deadlock that it died of for a yield', async () => {
    const backend = new Backend();
    const session = start(backend);
    backend.held.add('b');
    session.take([A, B]);
    await vi.waitUntil(() => backend.waitsFor === 'b');
    backend.held.delete('b');
    backend.fail(failure('40P01'));
    expect(await session.taking([A, B])).toBe(true);
    expect(backend.ours).toEqual(['a', 'b']);
  });

  it('queues again when it was interrupted by a query that was lost itself', async () => {
    const backend = new Backend();
    const session = start(backend);
    backend.held.add('a');
    session.take([A]);
    await vi.waitUntil(() => backend.waitsFor === 'a');
    session.expect(Promise.reject(failure('57P01')));
    backend.fail(failure('57014'));
    await vi.waitUntil(() => backend.waitsFor === 'a');
    backend.free('a');
    expect(await session.taking([A])).toBe(true);
  });

  it('gives up with the error of a statement that fails, and what it has stays', async () => {
    const backend = new Backend();
    const session = start(backend);
    backend.held.add('b');
    session.take([A]);
    session.take([B]);
    const refused = expect(session.taking([A, B])).rejects.toMatchObject({ code: '42501' });
    await vi.waitUntil(() => backend.waitsFor === 'b');
    backend.fail(failure('42501'));
    await refused;
    expect(backend.ours).toEqual(['a']);
    expect(session.canYield).toBe(false);
  });

  it('does not wait for what was asked for only if it is free', async () => {
    const backend = new Backend();
    const session = start(backend);
    backend.held.add('a');
    session.take([A], true);
    session.take([B]);
    await vi.waitUntil(() => backend.waitsFor === 'a');
    backend.fail(failure('55P03'));
    expect(await session.taking([B])).toBe(true);
    expect(await session.taking([A])).toBe(false);
  });

  describe('while its savepoint is being set', () => {
    /** It has a and is about to ask for b, which is not free. */
    async function atSavepoint() {
      const backend = new Backend();
      const owner = new Owner();
      const session = start(backend, owner);
      session.take([A]);
      await session.taking([A]);
      await vi.waitUntil(() => !session.isActive);
      let go = (): void => undefined;
      backend.delay = new Promise((resolve) => (go = resolve));
      backend.held.add('b');
      session.take([B]);
      await vi.waitUntil(() => backend.statements.at(-1) === 'SAVEPOINT mpp_lock_1');
      return { backend, session, owner, go };
    }

    it('it need not wait', async () => {
      const { backend, session, owner, go } = await atSavepoint();
      owner.released.add(B);
      const dropped = session.release();
      go();
      await dropped;
      expect(backend.waitsFor).toBeUndefined();
      expect(session.has(A)).toBe(true);
    });

    it('it can be made to yield', async () => {
      const { backend, session, go } = await atSavepoint();
      backend.waiting.set(CLIENT, 'a');
      session.yieldTo([CLIENT]);
      go();
      await vi.waitUntil(() => !backend.ours.includes('a'));
      backend.free('b');
      expect(await session.taking([A, B])).toBe(true);
    });

    it('it can be stopped', async () => {
      const { backend, session, go } = await atSavepoint();
      const stopped = session.stop();
      go();
      await stopped;
      expect(backend.waitsFor).toBeUndefined();
    });
  });

  // A process that runs no statement ignores the signal, and the statement may not have arrived there yet.
  it('a cancel that came before the statement is sent again', async () => {
    const backend = new Backend();
    backend.cancelsLost = 1;
    const owner = new Owner();
    const session = start(backend, owner);
    backend.held.add('a');
    session.take([A]);
    await vi.waitUntil(() => backend.waitsFor === 'a');
    owner.released.add(A);
    await session.release();
    expect(backend.cancels).toBeGreaterThan(1);
    expect(session.isActive).toBe(false);
  });

  it('a cancel that fails, as when the server is gone, is no unhandled rejection', async () => {
    process.on('unhandledRejection', unhandled);
    const backend = new Backend();
    backend.watchError = failure('57P03');
    const session = start(backend);
    backend.held.add('a');
    session.take([A]);
    const waiting = session.taking([A]).catch(() => false);
    await vi.waitUntil(() => backend.waitsFor === 'a');
    session.yieldTo([CLIENT]);
    // An unhandled rejection is told once the queue of microtasks is empty.
    await new Promise((resolve) => setImmediate(resolve));
    backend.free('a');
    await waiting;
    expect(unhandled).not.toHaveBeenCalled();
  });
});
