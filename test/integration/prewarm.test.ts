import { afterAll, afterEach, beforeAll, describe, inject, it } from 'vitest';
import type { ControllerProcess } from '../support/controller-process.js';
import { Harness } from '../support/harness.js';
import { waitFor, type Server } from '../support/servers/index.js';

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

  /** Waits until a controller has idle sessions with each entry node, for locks and for checks. */
  async function areOpen(): Promise<void> {
    for (const { primary } of h.cluster.groups) {
      for (const purpose of ['pause', 'watch']) {
        await waitFor(`sessions for ${purpose} on ${primary.name}`, async () => {
          return (await idleSessions(primary, purpose)) >= 1;
        });
      }
    }
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

async function idleSessions(server: Server, purpose: string): Promise<number> {
  return server.withSession(async (db) => {
    const { rowCount } = await db.query(IDLE, [`mpp-controller ${purpose}`]);
    return rowCount ?? 0;
  });
}

const IDLE = `
  SELECT FROM pg_stat_activity WHERE application_name = $1 AND state = 'idle'`;
