import type { ClientBase } from 'pg';
import type { Group } from '../servers/cluster.js';
import type { Traffic, TrafficReport } from '../traffic/traffic.js';
import type { Narrator } from './narrator.js';
import { countItems, report, type ReportedTask } from './reports.js';
import type { Stage } from './stage.js';

/** Something that happened, in milliseconds since 1970. */
export interface Moment {
  readonly at: number;
  readonly what: 'reported' | 'paused' | 'stopped' | 'killed' | 'promoted' | 'committed';
  readonly text: string;
}

/** What the clients of one group saw during an act. */
export interface GroupTraffic {
  readonly groupid: number;
  readonly report: TrafficReport;
}

/** One change of a primary, and what it cost the clients. */
export interface Act {
  readonly kind: 'switchover' | 'crash';
  readonly groupid: number;
  readonly from: string;
  readonly to: string;
  readonly moments: readonly Moment[];
  readonly traffic: readonly GroupTraffic[];
  /** Rows that the clients were told are in, of all acts so far, and rows that are there. */
  readonly rows: {
    readonly acknowledged: number;
    readonly perhaps: number;
    readonly found: number;
  };
}

/** What an act needs. */
export interface ActOptions {
  readonly stage: Stage;
  readonly session: ClientBase;
  readonly narrator: Narrator;
  /** @throws Interrupted once the demo is to end */
  readonly check: () => void;
}

/** How many statements of each group must succeed before and after a change. */
const PROGRESS = 100;

/** Steps that a change is made of: each says what it does, notes when it was done. */
type Script = (scene: Scene, group: Group) => Promise<void>;

/** A planned switchover, as an HA manager reports it. */
export async function switchover(options: ActOptions, groupid: number): Promise<Act> {
  return perform(options, 'switchover', groupid, 0, async (scene, group) => {
    const [old, next] = [group.primary, group.standby];
    const demote = await scene.report('before_demote', old, 'holding');
    scene.paused(demote);
    scene.step('stopping the old primary');
    await old.stop('fast');
    scene.note('stopped', 'the old primary is down');
    await scene.report('before_promote', next, 'holding');
    scene.step('promoting the standby');
    await group.promoteStandby();
    scene.note('promoted', 'the standby takes writes');
    scene.committed(await scene.report('after_promote', next, 'done'), next.address);
  });
}

/** A crash: nobody could report before it. */
export async function crash(options: ActOptions, groupid: number): Promise<Act> {
  return perform(options, 'crash', groupid, 1, async (scene, group) => {
    const [old, next] = [group.primary, group.standby];
    scene.step('SIGKILL to the primary and all its backends');
    scene.note('killed', 'the primary gets SIGKILL');
    await old.kill();
    scene.paused(await scene.report('before_promote', next, 'holding'));
    scene.step('promoting the standby');
    await group.promoteStandby();
    scene.note('promoted', 'the standby takes writes');
    scene.committed(await scene.report('after_promote', next, 'done'), next.address);
  });
}

async function perform(
  options: ActOptions,
  kind: Act['kind'],
  groupid: number,
  phase: number,
  script: Script,
): Promise<Act> {
  const { stage, session } = options;
  const group = stage.cluster.group(groupid);
  const [from, to] = [group.primary.address, group.standby.address];
  const before = await countItems(session);
  const traffic = stage.cluster.workers.map((worker) => ({
    groupid: worker.groupid,
    clients: stage.startTraffic(worker.groupid, phase),
  }));
  await progress(traffic);
  const scene = new Scene(options, groupid);
  await script(scene, group);
  await progress(traffic);
  const reports = await Promise.all(
    traffic.map(async (each) => ({ groupid: each.groupid, report: await each.clients.stop() })),
  );
  return {
    kind,
    groupid,
    from,
    to,
    moments: scene.moments,
    traffic: reports,
    rows: {
      acknowledged: before + sum(reports, (report) => report.inserted),
      perhaps: sum(reports, (report) => report.insertedPerhaps),
      found: await countItems(session),
    },
  };
}

async function progress(traffic: readonly { clients: Traffic }[]): Promise<void> {
  await Promise.all(
    traffic.map(({ clients }) => clients.waitForProgress(PROGRESS, { kind: 'write' })),
  );
}

function sum(reports: readonly GroupTraffic[], count: (report: TrafficReport) => number): number {
  return reports.reduce((total, { report }) => total + count(report), 0);
}

/** Does the steps of one act, tells them, and notes their times. */
class Scene {
  readonly #options: ActOptions;
  readonly #groupid: number;
  readonly #moments: Moment[] = [];

  constructor(options: ActOptions, groupid: number) {
    this.#options = options;
    this.#groupid = groupid;
  }

  /** In the order in which they happened, by one clock: all of it runs on this machine. */
  get moments(): readonly Moment[] {
    return this.#moments.toSorted((a, b) => a.at - b.at);
  }

  step(text: string): void {
    this.#options.check();
    this.#options.narrator.step(`  ${text}`);
  }

  note(what: Moment['what'], text: string, at = Date.now()): void {
    this.#moments.push({ at, what, text });
  }

  async report(...[event, node, expected]: ReportArguments): Promise<ReportedTask> {
    this.#options.check();
    const { session } = this.#options;
    const task = await report(session, event, this.#groupid, node, expected);
    this.note('reported', `${event} (task ${task.id})`, task.createdAt);
    const took = Math.round((task.finishedAt ?? task.heldAt ?? Date.now()) - task.createdAt);
    this.step(`INSERT ${event} ${task.node}: ${task.status} after ${took} ms`);
    return task;
  }

  paused(task: ReportedTask): void {
    this.note('paused', `writes to group ${this.#groupid} wait`, task.heldAt ?? Date.now());
  }

  committed(task: ReportedTask, address: string): void {
    this.note(
      'committed',
      `pg_dist_node says ${address}; writes go on`,
      task.finishedAt ?? Date.now(),
    );
  }
}

type ReportArguments = [
  event: Parameters<typeof report>[1],
  node: Parameters<typeof report>[3],
  expected: Parameters<typeof report>[4],
];
