import { afterAll, beforeAll, describe, expect, inject, it } from 'vitest';
import { loadSettings } from '../../src/config/settings.js';
import { createController, type Controller } from '../../src/controller/controller.js';
import { createLogger } from '../../src/logger.js';
import type { Address } from '../../src/address.js';
import { sessionsOf, waitUntilNoSession } from '../kit/faults/sessions.js';
import { primaryAddress, subjectOf } from '../kit/faults/subject.js';
import { Harness } from '../kit/harness.js';
import { waitFor } from '../kit/servers/index.js';

const SWITCHOVERS = 200;
/** On a machine that is busy besides, one takes up to half a second. */
const TIMEOUT_MS = 600_000;
/** Each session that a pool keeps for later has one, and so has what goes on by itself. */
const MORE_TIMERS = SWITCHOVERS / 10;
/** That by which waitFor bounds its waiting. */
const TIMERS_OF_WAIT = 1;
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

  async function switchOver(from: Address, to: Address): Promise<void> {
    const demote = { event: 'before_demote', groupid: 1, node: from } as const;
    expect((await h.request(demote)).status).toBe('holding');
    const after = { event: 'after_promote', groupid: 1, node: to } as const;
    expect((await h.request(after)).status).toBe('done');
  }

  it(
    `has the sessions and timers that it had, after ${SWITCHOVERS} switchovers`,
    async () => {
      const subject = await subjectOf(h, 1);
      let [present, next] = [subject.node, subject.next];
      // All kinds of sessions are there once something has been switched over.
      for (let round = 1; round <= 2; round += 1) {
        await switchOver(present, next);
        [present, next] = [next, present];
      }
      const before = timers();
      for (let round = 1; round <= SWITCHOVERS; round += 1) {
        await switchOver(present, next);
        [present, next] = [next, present];
      }
      expect((await sessionsOf(h.db)).length).toBeLessThanOrEqual(MOST_SESSIONS);
      await waitFor(`no more than ${before + MORE_TIMERS} timers to be left`, () => {
        const found = timers() - TIMERS_OF_WAIT;
        if (found > before + MORE_TIMERS) throw new Error(`there are ${found}`);
        return Promise.resolve(true);
      });
      expect(await primaryAddress(h, 1)).toEqual(present);
      await subject.settled();
    },
    TIMEOUT_MS,
  );

  it('leaves nothing when it is stopped, and can be stopped twice', async () => {
    const { node, next } = await subjectOf(h, 1);
    await switchOver(node, next);
    await controller.stop();
    // A timer that outlives it keeps its process alive.
    const isLast = (): Promise<boolean> => Promise.resolve(timers() === TIMERS_OF_WAIT);
    await waitFor('no timer to be left', isLast, { timeoutMs: 500 });
    await controller.stop();
    await controller.finished;
    await waitUntilNoSession(h.db);
  });

  function timers(): number {
    return process.getActiveResourcesInfo().filter((kind) => kind === 'Timeout').length;
  }
});
