import { setTimeout as pause } from 'node:timers/promises';
import type { ClientBase } from 'pg';
import type { Group, Server } from '../test/kit/servers/index.js';
import { waitUntilSynced } from '../test/kit/standin/observe.js';
import type { Effects, Traffic, TrafficReport } from '../test/kit/traffic/traffic.js';
import { waitUntilRefused } from './detector.js';
import type { Narrator } from './narrator.js';
import { report, sumOfChanges, type Pause, type Report } from './reports.js';
import type { Stage } from './stage.js';
import { reasonText } from './text.js';

/** One change of the group's primary, and what it cost the clients. */
export interface Act {
  /** What tells it from the others of its kind: the title of its line. */
  readonly name: string;
  readonly traffic: TrafficReport;
  readonly changes: Changes;
}

/** Rows inserted and increments of rows, by the clients of one act. */
export interface Changes {
  /** Those that the clients were told are in. */
  readonly acknowledged: number;
  /** Those whose answer was lost: in, or not. */
  readonly perhaps: number;
  /** Those that are there at the end. */
  readonly found: number;
}

/** What an act needs. */
export interface ActOptions {
  readonly stage: Stage;
  readonly session: ClientBase;
  readonly narrator: Narrator;
  /** @throws Interrupted once the demo is to end */
  readonly check: () => void;
}

/** The HA manager of the demo takes so long to see that a primary is gone. */
export const DETECTION_MS = 2_000;

/** How much work of each kind must succeed before and after a change. */
const PROGRESS = 30;
const KINDS = ['write', 'read', 'transaction'] as const;

/** A planned switchover, as an HA manager reports it. */
export async function switchover(options: ActOptions, what: Pause): Promise<Act> {
  return perform(options, what, `switchover, pause = ${what}`, async (scene, group) => {
    const [old, next] = [group.primary, group.standby];
    await scene.report({ event: 'before_demote', node: old, pause: what });
    scene.step('stopping the old primary');
    await old.stop('fast');
    // Without its own word it would make wait what the first report left alone.
    await scene.report({ event: 'before_promote', node: next, pause: what });
    await scene.promote(group, next);
  });
}

/** A crash, which nobody can report before it. @param suspect whether a client reports it at once */
export async function crash(options: ActOptions, suspect: boolean): Promise<Act> {
  const title = suspect ? 'the same crash, and suspect is sent' : 'crash';
  return perform(options, suspect ? 'sent' : 'not sent', title, async (scene, group) => {
    const [old, next] = [group.primary, group.standby];
    scene.step('SIGKILL to the primary and all its backends');
    await Promise.all([
      old.kill().then(() => pause(DETECTION_MS, undefined, { ref: false })),
      suspect ? scene.suspect(old) : undefined,
    ]);
    scene.step(`${DETECTION_MS / 1_000} s later: the HA manager notices`);
    await scene.report({ event: 'before_promote', node: next, pause: 'all' });
    await scene.promote(group, next);
  });
}

async function perform(
  options: ActOptions,
  name: string,
  title: string,
  script: (scene: Scene, group: Group) => Promise<void>,
): Promise<Act> {
  const { stage, session, narrator, check } = options;
  const { group } = stage;
  if (await stage.restoreStandby(group)) narrator.step('  the old primary is back, as a standby');
  check();
  await waitUntilSynced(session);
  narrator.step(`${title}: ${group.primary.address} -> ${group.standby.address}`);
  const before = await sumOfChanges(session);
  const traffic = stage.startTraffic();
  await progress(traffic);
  await script(new Scene(options), group);
  // The clients of the other entry node are served again when it knows of the new primary.
  await waitUntilSynced(session);
  await progress(traffic);
  const seen = await traffic.stop();
  const found = (await sumOfChanges(session)) - before;
  const changes = { acknowledged: sum(seen.acknowledged), perhaps: sum(seen.perhaps), found };
  return { name, traffic: seen, changes };
}

async function progress(traffic: Traffic): Promise<void> {
  await Promise.all(KINDS.map((kind) => traffic.waitForProgress(PROGRESS, { kind })));
}

function sum({ inserted, items, notes }: Effects): number {
  return inserted + items + notes;
}

/** Does the steps of one act, and tells them. */
class Scene {
  readonly #options: ActOptions;

  constructor(options: ActOptions) {
    this.#options = options;
  }

  step(text: string): void {
    this.#options.check();
    this.#options.narrator.step(`  ${text}`);
  }

  /** @throws Error when the task does not end as an HA manager needs it */
  async report(what: Omit<Report, 'groupid'>): Promise<void> {
    const { check, session, stage, narrator } = this.#options;
    check();
    const expected = what.event === 'after_promote' ? 'done' : 'holding';
    const task = await report(session, { ...what, groupid: stage.group.groupid }, expected);
    const took = Math.round((task.finishedAt ?? task.heldAt ?? Date.now()) - task.createdAt);
    this.step(`INSERT ${task.event} ${task.node}: ${task.status} after ${took} ms`);
    if (task.reason !== null) narrator.lines(reasonText(task.reason));
  }

  /** What any client may do that gets no connection. */
  async suspect(node: Server): Promise<void> {
    await waitUntilRefused(node);
    await this.report({ event: 'suspect', node, pause: 'all' });
  }

  async promote(group: Group, next: Server): Promise<void> {
    this.step('promoting the standby');
    await group.promoteStandby();
    await this.report({ event: 'after_promote', node: next });
  }
}
