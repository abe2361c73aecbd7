import { setTimeout as delay } from 'node:timers/promises';
import { formatTable } from '../src/commands/output.js';
import { Harness } from '../test/kit/harness.js';
import type { Group } from '../test/kit/servers/index.js';
import { waitUntilSynced } from '../test/kit/standin/observe.js';
import { startTraffic } from '../test/kit/traffic/traffic.js';
import {
  bench,
  choicesOf,
  CONTROLLER_SETTINGS,
  countOf,
  progress,
  say,
  sayJson,
  serversText,
} from './bench.js';
import { hundredths, ms, percentile, summary, summaryText } from './figures.js';
import { reasonsText } from './load.js';
import { Reports } from './reports.js';

const SIDES = ['shard-locks writes', 'shard-locks all', 'demoted-row writes'] as const;
type Side = (typeof SIDES)[number];

const GROUPS = countOf('GROUPS', 8);
const ROUNDS = countOf('RUNS', 5);
const PROMOTION_MS = countOf('PROMOTION_MS', 300);
/** Writers and as many readers on the coordinator, over all groups; 0 is none. */
const CLIENTS = countOf('CLIENTS', 8);
const THINK_MS = countOf('THINK_MS', 20);

/** In milliseconds: a round as a whole, and each report of before_demote until its hold. */
interface Times {
  readonly rounds: number[];
  readonly holds: number[];
}

interface Result {
  readonly side: Side;
  readonly one: Times;
  readonly all: Times;
  readonly failed: number;
}

async function main(): Promise<void> {
  const harness = await Harness.start({ groups: GROUPS });
  try {
    // Of 8 promotions at once the machine would be the bottleneck: they are done, and take a pause.
    await Promise.all(harness.cluster.workers.map(({ standby }) => standby.promote()));
    say(`${await serversText(harness.cluster)}, ${GROUPS} groups, a reference table,`);
    say(`${PROMOTION_MS} ms of pretended promotion, ${ROUNDS} rounds, ${2 * CLIENTS} clients`);
    const results: Result[] = [];
    for (const side of choicesOf('SIDES', SIDES)) results.push(await measure(harness, side));
    say(`\n${table(results)}\n`);
    sayJson('groups', { groups: GROUPS, promotionMs: PROMOTION_MS, sides: results.map(toJson) });
  } finally {
    await harness.stop();
  }
}

async function measure(harness: Harness, side: Side): Promise<Result> {
  const { coordinator, workers } = harness.cluster;
  const [strategy, pause] = side.split(' ') as [string, 'writes' | 'all'];
  // The servers were promoted apart from each other, which a check of the timeline would refuse.
  const env = { ...CONTROLLER_SETTINGS, MPP_STRATEGY: strategy, MPP_VERIFY: 'off' };
  const controller = await harness.startController(env);
  const traffic = startTraffic({
    connection: coordinator.connection,
    clients: { readers: CLIENTS, writers: CLIENTS },
    thinkMs: THINK_MS,
    firstId: 1 + 100_000 * SIDES.indexOf(side),
  });
  const movers = await Promise.all(
    workers.map(async (group) => new Mover(await Reports.start(coordinator), group, pause)),
  );
  const one: Times = { rounds: [], holds: [] };
  const all: Times = { rounds: [], holds: [] };
  for (let run = 1; run <= ROUNDS; run += 1) {
    if (CLIENTS > 0) await traffic.waitForProgress(100);
    await round(harness, movers.slice(0, 1), one);
    if (CLIENTS > 0) await traffic.waitForProgress(100);
    await round(harness, movers, all);
    const [alone = 0, together = 0] = [one.rounds.at(-1), all.rounds.at(-1)];
    progress(`${side} ${run}: one ${ms(alone)}, ${GROUPS} at once ${ms(together)}`);
  }
  const { failures } = await traffic.stop();
  for (const line of reasonsText(failures)) progress(`failed ${line}`);
  await Promise.all(movers.map((mover) => mover.stop()));
  await waitUntilSynced(harness.db);
  await controller.end('SIGTERM');
  return { side, one, all, failed: failures.length };
}

async function round(harness: Harness, movers: readonly Mover[], times: Times): Promise<void> {
  const beganAt = performance.now();
  await Promise.all(movers.map((mover) => mover.move()));
  times.rounds.push(performance.now() - beganAt);
  times.holds.push(...movers.flatMap((mover) => mover.takeHolds()));
  await waitUntilSynced(harness.db);
}

/** Switches one group over to the other of its two servers, and back the next time. */
class Mover {
  readonly #reports: Reports;
  readonly #group: Group;
  readonly #pause: 'writes' | 'all';
  readonly #holds: number[] = [];
  #away = false;

  constructor(reports: Reports, group: Group, pause: 'writes' | 'all') {
    this.#reports = reports;
    this.#group = group;
    this.#pause = pause;
  }

  async move(): Promise<void> {
    const { groupid, primary, standby } = this.#group;
    const [old, node] = this.#away ? [standby, primary] : [primary, standby];
    const report = { groupid, pause: this.#pause, timeout: '60s' } as const;
    const demote = { ...report, event: 'before_demote', node: old } as const;
    const { sentAt, answeredAt } = await this.#reports.send(demote, 'holding');
    this.#holds.push(answeredAt - sentAt);
    await this.#reports.send({ ...report, event: 'before_promote', node }, 'holding');
    await delay(PROMOTION_MS);
    await this.#reports.send({ ...report, event: 'after_promote', node }, 'done');
    this.#away = !this.#away;
  }

  /** How long its holds took to be acknowledged since the last call, in milliseconds. */
  takeHolds(): number[] {
    return this.#holds.splice(0);
  }

  /** The next side finds the group where this one did. */
  async stop(): Promise<void> {
    if (this.#away) await this.move();
    await this.#reports.stop();
  }
}

function table(results: readonly Result[]): string {
  return formatTable(
    [
      'STRATEGY, PAUSE',
      'ONE GROUP p50 / max',
      `${GROUPS} AT ONCE`,
      'RATIO OF p50',
      'HOLD OF ONE p50 / max',
      `OF ${GROUPS}`,
      'FAILED',
    ],
    results.map(({ side, one, all, failed }) => [
      side,
      summaryText(one.rounds),
      summaryText(all.rounds),
      `${ratio(one, all).toFixed(2)} x`,
      summaryText(one.holds),
      summaryText(all.holds),
      failed,
    ]),
  );
}

function ratio(one: Times, all: Times): number {
  return percentile(all.rounds, 50) / percentile(one.rounds, 50);
}

function toJson({ side, one, all, failed }: Result): object {
  return {
    side,
    rounds: ROUNDS,
    oneMs: summary(one.rounds),
    allMs: summary(all.rounds),
    ratio: hundredths(ratio(one, all)),
    holdOfOneMs: summary(one.holds),
    holdOfAllMs: summary(all.holds),
    failed,
  };
}

await bench('groups', main);
