import { afterAll, beforeAll, describe, expect, inject, it } from 'vitest';
import { loadSettings } from '../../src/config.js';
import { createController, type Controller } from '../../src/controller/controller.js';
import { createLogger } from '../../src/observe/logger.js';
import { sessionsOf, waitUntilNoSession } from '../support/faults/sessions.js';
import { primaryAddress, subjectOf } from '../support/faults/subject.js';
import { Harness } from '../support/harness.js';

const SWITCHOVERS = 200;
/** Control, listen, four of the queue's pool, and that of the group. */
const MOST_SESSIONS = 7;

describe('a controller that has worked for long', () => {
  let h: Harness;
  let controller: Controller;

  beforeAll(async () => {
    h = await Harness.start({ template: inject('template'), standbys: false });
    const { host, port } = h.cluster.coordinator;
    controller = createController({
      settings: loadSettings({ DATABASE_URL: `postgres://postgres@${host}:${port}/postgres` }),
      logger: createLogger('silent'),
    });
    await controller.start();
  });
  afterAll(async () => {
    await controller.stop();
    await h.stop();
  });

  it(`has the sessions and timers that it had, after ${SWITCHOVERS} switchovers`, async () => {
    const subject = await subjectOf(h, 1);
    let [present, next] = [subject.node, subject.next];
    const switchOver = async (): Promise<void> => {
      const demote = { event: 'before_demote', groupid: 1, node: present } as const;
      expect((await h.request(demote)).status).toBe('holding');
      const after = { event: 'after_promote', groupid: 1, node: next } as const;
      expect((await h.request(after)).status).toBe('done');
      [present, next] = [next, present];
    };
    for (let warmUp = 1; warmUp <= 5; warmUp += 1) await switchOver();
    const before = await resources();
    for (let round = 1; round <= SWITCHOVERS; round += 1) await switchOver();
    const after = await resources();
    expect(after.sessions).toBeLessThanOrEqual(MOST_SESSIONS);
    // Each of a few kinds comes and goes; 200 switchovers would show what is left behind.
    expect(after.timers - before.timers).toBeLessThan(5);
    expect(await primaryAddress(h, 1)).toEqual(present);
    await subject.settled();
  });

  it('leaves nothing when it is stopped, and can be stopped twice', async () => {
    await controller.stop();
    await controller.stop();
    await controller.finished;
    await waitUntilNoSession(h.db);
  });

  /** Timers of this process: what the test itself has of them is there each time. */
  async function resources(): Promise<{ sessions: number; timers: number }> {
    const sessions = (await sessionsOf(h.db)).length;
    const active = process.getActiveResourcesInfo();
    return { sessions, timers: active.filter((kind) => kind === 'Timeout').length };
  }
});
