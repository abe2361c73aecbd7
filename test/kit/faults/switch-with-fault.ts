import { expect } from 'vitest';
import type { Harness, ReportInput } from '../harness.js';
import { Barrier } from './barrier.js';
import { primaryAddress, subjectOf } from './subject.js';

/** Where a switchover can be struck, in order. */
export const STEPS = [
  'before the claim',
  'after the claim',
  'while waiting for locks',
  'while holding',
  'after before_promote',
  'during after_promote',
  'right after the commit',
] as const;

export type Step = (typeof STEPS)[number];

/**
 * Takes a group through before_demote, before_promote and after_promote to the other name of its
 * server, with a fault at one step, and expects the right end all the same: the row moved, every
 * waiter answered, nothing paused or left open, the log complete.
 *
 * @param strike makes the fault; what has to be mended after it (a session, a controller) as well.
 */
export async function switchWithFault(
  h: Harness,
  groupid: number,
  step: Step,
  strike: () => Promise<unknown>,
): Promise<void> {
  const subject = await subjectOf(h, groupid);
  const { key, node, next } = subject;
  const report = async (
    event: ReportInput['event'],
    address: ReportInput['node'],
  ): Promise<string> =>
    h.report({ event, groupid, node: address, timeout: '20s', cooldown: '10s' });
  const struck = async (barrier: Barrier | undefined, id: Promise<string>): Promise<string> => {
    await id;
    if (barrier === undefined) return id;
    try {
      await barrier.reached();
      await strike();
    } finally {
      await barrier.lift();
    }
    return id;
  };

  const demote = await struck(await demoteBarrier(h, step, key), report('before_demote', node));
  expect(await h.acknowledged(demote)).toMatchObject({ status: 'holding' });
  if (step === 'while holding') await strike();

  const promote = await report('before_promote', next);
  expect(await h.acknowledged(promote)).toMatchObject({ status: 'holding' });
  if (step === 'after before_promote') await strike();

  const barrier =
    step === 'during after_promote' ? await Barrier.beforeCommit(h, promote) : undefined;
  const after = await struck(barrier, report('after_promote', next));
  expect(await h.ended(after)).toMatchObject({ status: 'done' });
  if (step === 'right after the commit') await strike();

  expect(await primaryAddress(h, groupid)).toEqual(next);
  await subject.settled();
  expect((await h.task(after)).status).toBe('done');
}

async function demoteBarrier(h: Harness, step: Step, key: number): Promise<Barrier | undefined> {
  if (step === 'before the claim') return Barrier.beforeClaim(h);
  if (step === 'after the claim') return Barrier.afterClaim(h);
  if (step === 'while waiting for locks') return Barrier.beforeHold(h, key);
  return undefined;
}
