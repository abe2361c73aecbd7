import { afterAll, beforeAll, describe, expect, inject, it } from 'vitest';
import { loadSettings } from '../../src/config.js';
import { createController, type Controller } from '../../src/controller/controller.js';
import { createLogger } from '../../src/observe/logger.js';
import type { Address } from '../../src/tasks/task.js';
import { sessionsOf, waitUntilNoSession } from '../support/faults/sessions.js';
import { primaryAddress, subjectOf } from '../support/faults/subject.js';
import { Harness } from '../support/harness.js';
import { waitFor } from '../support/servers/index.js';

const SWITCHOVERS = 200;
/** On a machine that is busy besides, one takes up to half a second. */
const TIMEOUT_MS = 600_000;
/** So often the timers are counted to find how many there are when nothing is going on. */
const LOOKS = 50;
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
      const before = await fewestTimers();
      for (let round = 1; round <= SWITCHOVERS; round += 1) {
        await switchOver(present, next);
        [present, next] = [next, present];
      }
      expect((await sessionsOf(h.db)).length).toBeLessThanOrEqual(MOST_SESSIONS);
      await waitFor(`${before} timers to be left`, async () => {
        const found = await timersWithoutIdle();
        if (found > before) throw new Error(`there are ${found}`);
        return true;
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
    // A timer that outlives it keeps its process alive: that of waitFor is the only one, before long.
    const isLast = (): Promise<boolean> => Promise.resolve(timers() === 1);
    await waitFor('no timer to be left', isLast, { timeoutMs: 500 });
    await controller.stop();
    await controller.finished;
    await waitUntilNoSession(h.db);
  });

  function timers(): number {
    return process.getActiveResourcesInfo().filter((kind) => kind === 'Timeout').length;
  }

  /** Timers of this process, but for one for each session that a pool keeps for later. */
  async function timersWithoutIdle(): Promise<number> {
    let idle = 0;
    for (const { primary } of h.cluster.groups) {
      idle += await primary.withSession(async (db) => {
        const { rows } = await db.query<{ n: number }>(IDLE_IN_POOLS);
        return rows[0]?.n ?? NaN;
      });
    }
    return timers() - idle;
  }

  async function fewestTimers(): Promise<number> {
    let fewest = Infinity;
    for (let look = 1; look <= LOOKS; look += 1) {
      fewest = Math.min(fewest, await timersWithoutIdle());
    }
    return fewest;
  }
});

const IDLE_IN_POOLS = `
  SELECT count(*)::integer AS n
  FROM pg_stat_activity AS a
  WHERE a.application_name ~ '^mpp-controller (queue|group|pause|watch)' AND a.state = 'idle'`;
