import { afterAll, afterEach, beforeAll, describe, inject, it } from 'vitest';
import type { ControllerProcess } from '../kit/controller-process.js';
import { waitUntilWarm } from '../kit/faults/warm.js';
import { Harness } from '../kit/harness.js';

/** What a controller does once it is active must not wait for its next heartbeat. */
const SETTINGS = { MPP_HEARTBEAT: '10min', MPP_MEMBER_TTL: '1h' };

describe('the sessions that a hold takes', () => {
  let h: Harness;
  const controllers: ControllerProcess[] = [];

  beforeAll(async () => {
    h = await Harness.start({ template: inject('template'), groups: 2, standbys: false });
  });
  afterEach(async () => {
    await Promise.all(controllers.splice(0).map((controller) => controller.end()));
  });
  afterAll(async () => h.stop());

  function start(): ControllerProcess {
    const controller = h.spawnController(SETTINGS);
    controllers.push(controller);
    return controller;
  }

  async function areOpen(): Promise<void> {
    await waitUntilWarm(h.cluster.groups.map(({ primary }) => primary));
  }

  it('are opened when a controller becomes active, before its first heartbeat', async () => {
    const controller = start();
    await controller.logged('that it is active', ({ msg }) => msg.startsWith('active'));
    await areOpen();
  });

  it('are opened by the controller that takes over from one that was killed', async () => {
    const first = start();
    await first.logged('that it is active', ({ msg }) => msg.startsWith('active'));
    const second = start();
    await second.logged('that it stands by', ({ msg }) => msg.includes('stands by'));
    await areOpen();
    await first.end('SIGKILL');
    await second.logged('that it is active', ({ msg }) => msg.startsWith('active'));
    await areOpen();
  });
});
