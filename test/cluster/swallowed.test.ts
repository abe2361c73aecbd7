import { afterAll, beforeAll, describe, expect, inject, it } from 'vitest';
import { FaultProxy } from '../kit/faults/proxy.js';
import { Harness } from '../kit/harness.js';
import { waitFor, waitUntilReplayed } from '../kit/servers/index.js';

/** What counts as soon, in milliseconds: a peer that is waited for without bound takes minutes. */
const SOON_MS = 8_000;
const STOP_MS = 5_000;

describe('a coordinator whose address moves while its old sessions are swallowed', () => {
  let h: Harness;
  let proxy: FaultProxy;

  beforeAll(async () => {
    h = await Harness.start({
      template: inject('template'),
      groups: 1,
      standbys: false,
      coordinatorStandby: true,
    });
    proxy = await FaultProxy.start(h.cluster.coordinator);
  });
  afterAll(async () => {
    await proxy.stop();
    await h.stop();
  });

  it.each([
    ['idle', false],
    ['with a group held', true],
  ])('%s: the controller acts on the new one soon, and SIGTERM ends it then', async (_, held) => {
    const group = h.cluster.group(0);
    const [old, next] = [group.primary, group.standby];
    proxy.leadTo(old);
    const controller = h.spawnController({}, { host: '127.0.0.1', port: proxy.port });
    await controller.active();
    const worker = h.cluster.group(1).primary;
    if (held) {
      const demote = await h.request({ event: 'before_demote', groupid: 1, node: worker });
      expect(demote.status).toBe('holding');
    }
    await waitUntilReplayed(old, next);
    const times = (): number =>
      controller.log.filter(({ msg }) => msg.startsWith('active,')).length;
    const before = times();
    // What is open stays open, and nothing arrives any more.
    proxy.swallowOpen();
    await group.failover();
    proxy.leadTo(next);
    await h.reconnect();
    const began = performance.now();
    await waitFor('it to be active on the new one', () => Promise.resolve(times() > before));
    expect(performance.now() - began).toBeLessThan(SOON_MS);
    const after = await h.request({ event: 'after_promote', groupid: 1, node: worker });
    expect(after.status).toBe('done');

    const asked = performance.now();
    expect(await controller.end('SIGTERM')).toBe(0);
    expect(performance.now() - asked).toBeLessThan(STOP_MS);
    await group.rejoin();
  });

  it('SIGTERM ends a controller soon when nothing answers any more', async () => {
    const own = await FaultProxy.start(h.cluster.coordinator);
    const controller = h.spawnController({}, { host: '127.0.0.1', port: own.port });
    await controller.active();
    const worker = h.cluster.group(1).primary;
    const demote = await h.request({ event: 'before_demote', groupid: 1, node: worker });
    expect(demote.status).toBe('holding');
    own.swallowAll();
    const asked = performance.now();
    expect(await controller.end('SIGTERM')).toBe(1);
    expect(controller.stderr).toContain('ended without writing down what was rolled back');
    expect(performance.now() - asked).toBeLessThan(STOP_MS);
    await own.stop();
  });
});
