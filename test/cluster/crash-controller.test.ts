import { afterAll, beforeAll, describe, expect, inject, it } from 'vitest';
import type { ControllerProcess } from '../kit/controller-process.js';
import { Barrier } from '../kit/faults/barrier.js';
import { terminateSessions } from '../kit/faults/sessions.js';
import { primaryAddress, subjectOf } from '../kit/faults/subject.js';
import { STEPS, switchWithFault } from '../kit/faults/switch-with-fault.js';
import { Harness } from '../kit/harness.js';
import { waitFor } from '../kit/servers/index.js';

let h: Harness;

beforeAll(async () => {
  h = await Harness.start({ template: inject('template'), standbys: false });
});
afterAll(async () => h.stop());

describe('the controller gets SIGKILL', () => {
  let active: ControllerProcess;

  beforeAll(async () => {
    active = await h.startController();
  });
  afterAll(async () => active.end('SIGKILL'));

  it.each(STEPS)('%s, and a second controller takes over', async (step) => {
    await active.active();
    const standby = await startStandby();
    await switchWithFault(h, 1, step, async () => {
      await active.end('SIGKILL');
      active = standby;
    });
  });

  it.each(STEPS)('%s, and it is started again', async (step) => {
    await active.active();
    await switchWithFault(h, 2, step, async () => {
      await active.end('SIGKILL');
      active = h.spawnController();
    });
  });
});

describe('two controllers at once', () => {
  let first: ControllerProcess;
  let second: ControllerProcess;

  beforeAll(async () => {
    first = await h.startController();
    second = await startStandby();
  });
  afterAll(async () => Promise.all([first.end('SIGKILL'), second.end('SIGKILL')]));

  it('one is active, and does all the work', async () => {
    await switchWithFault(h, 1, 'while holding', async () => {
      await waitFor('both to be told apart', async () => {
        return (await states()).join() === 'active,standby';
      });
    });
    expect(worked(second)).toBe(false);
  });

  it('the active one loses its control session: there is one hold, and one active afterwards', async () => {
    await switchWithFault(h, 1, 'while holding', async () => {
      await terminateSessions(h.db, 'control');
      await waitFor('one to be active', async () => {
        return (await states()).filter((state) => state === 'active').length === 1;
      });
      expect(await h.holds()).toBeLessThanOrEqual(1);
    });
  });

  it('the active one hangs and its session is ended: the other leads, and waits for its hold', async () => {
    const [hung, other] = await byState();
    const subject = await subjectOf(h, 2);
    const { node, next } = subject;
    const demote = await h.request({ event: 'before_demote', groupid: 2, node });
    expect(demote.status).toBe('holding');
    hung.signal('SIGSTOP');
    const after = await h.report({ event: 'after_promote', groupid: 2, node: next });
    await terminateSessions(h.db, 'control');
    await waitFor('the other to be active', () => Promise.resolve(leads(other)));
    // The hung one's hold has the group still, so nobody else works on it: never two holds.
    await waitFor('the other to find the group locked', async () => {
      return (await h.task(after)).reason?.startsWith('another session works on its group');
    });
    expect(await h.holds()).toBe(1);
    hung.signal('SIGCONT');
    expect((await h.ended(after)).status).toBe('done');
    expect(await primaryAddress(h, 2)).toEqual(next);
    await subject.settled();
  });

  it('the active one hangs for good: the server takes its lead and its hold, and the report is done', async () => {
    const [hung, other] = await byState();
    const subject = await subjectOf(h, 1);
    const { node, next } = subject;
    const demote = await h.request({
      event: 'before_demote',
      groupid: 1,
      node,
      timeout: '1s',
    });
    expect(demote.status).toBe('holding');
    hung.signal('SIGSTOP');
    const after = await h.report({ event: 'after_promote', groupid: 1, node: next });
    expect((await h.ended(after)).status).toBe('done');
    expect(leads(other)).toBe(true);
    await subject.settled();
    await hung.end('SIGKILL');
  });

  /** The active one first. */
  async function byState(): Promise<[ControllerProcess, ControllerProcess]> {
    let active: number | undefined;
    await waitFor('one to be active, and the other to stand by', async () => {
      const { rows } = await h.db.query<{ pid: number; state: string }>(
        "SELECT pid, state FROM mpp_status WHERE state <> 'gone' ORDER BY state",
      );
      active = rows[0]?.pid;
      return rows.map(({ state }) => state).join() === 'active,standby';
    });
    return active === first.pid ? [first, second] : [second, first];
  }
});

describe('a controller that was stopped while a claim was on its way', () => {
  it('finds its task taken over, and changes nothing', async () => {
    const subject = await subjectOf(h, 1);
    const { next } = subject;
    const first = await h.startController();
    const barrier = await Barrier.beforeClaim(h);
    const after = await h.report({ event: 'after_promote', groupid: 1, node: next });
    await barrier.reached();
    first.signal('SIGSTOP');
    await barrier.lift();
    await waitFor('the claim to be made', async () => (await h.task(after)).status === 'claimed');
    const second = h.spawnController();
    await terminateSessions(h.db, 'control');
    expect(await h.ended(after)).toMatchObject({ status: 'done', attempt: 2 });
    first.signal('SIGCONT');
    await first.logged('that it has lost the lead', ({ msg }) =>
      msg.startsWith('the leadership is lost'),
    );
    await subject.settled();
    expect(await h.history(after)).toEqual(['pending', 'claimed', 'pending', 'claimed', 'done']);
    await Promise.all([first.end(), second.end()]);
  });
});

async function startStandby(): Promise<ControllerProcess> {
  const standby = h.spawnController();
  await standby.logged('that it stands by', ({ msg }) => msg.includes('stands by'));
  return standby;
}

async function states(): Promise<string[]> {
  const { rows } = await h.db.query<{ state: string }>(
    "SELECT state FROM mpp_status WHERE state <> 'gone' ORDER BY state",
  );
  return rows.map(({ state }) => state);
}

function worked(controller: ControllerProcess): boolean {
  return controller.log.some((line) => 'task' in line);
}

function leads(controller: ControllerProcess): boolean {
  return controller.log.some(({ msg }) => msg.startsWith('active,'));
}
