import { formatTable } from '../src/commands/output.js';
import type { ControllerProcess } from '../test/kit/controller-process.js';
import { Harness } from '../test/kit/harness.js';
import type { Server } from '../test/kit/servers/index.js';
import { waitUntilSynced } from '../test/kit/standin/observe.js';
import type { Traffic, TrafficReport } from '../test/kit/traffic/traffic.js';
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
import { hundredths, ms, summary, summaryText } from './figures.js';
import { holdsOf, warningsOf } from './hold-log.js';
import {
  deadlocksOf,
  failureCounts,
  failuresText,
  GroupIds,
  mixedLoad,
  reasonsText,
} from './load.js';
import { Reports } from './reports.js';
import { ByController, ByHand, switchOver, type SwitchTimes, type Switcher } from './switch.js';

/** How the clients are made to wait, if they are. See README.md in this folder. */
const MODES = ['none', 'by-hand', 'demoted-row', 'writes', 'all'] as const;
type Mode = (typeof MODES)[number];

/** What is shown for comparison needs fewer runs to show it. */
const ASKED: readonly Mode[] = ['writes', 'all'];

const THINK_MS = countOf('THINK_MS', 20);
const CLIENTS = countOf('CLIENTS', 6);
const RUNS = countOf('RUNS', 20);
const OTHER_RUNS = countOf('OTHER_RUNS', Math.min(RUNS, 5));

/** Statements of all clients before and after a switchover. */
const PROGRESS = 300;

interface Result {
  readonly mode: Mode;
  readonly times: readonly SwitchTimes[];
  readonly report: TrafficReport;
  /** Runs in which something failed. */
  readonly badRuns: number;
  /** What did not wait though it was asked for. */
  readonly reasons: readonly string[];
  readonly holdsLost: number;
  readonly yields: readonly number[];
  readonly entries: readonly [Server, Server];
}

async function main(): Promise<void> {
  const modes = choicesOf('MODES', MODES);
  const results: Result[] = [];
  for (const mode of modes) results.push(await measure(mode));
  say(`\n${failuresTable(results)}\n\n${timesTable(results)}\n`);
  for (const { mode, report, reasons } of results) {
    for (const line of reasonsText(report.failures)) say(`  ${mode}: failed ${line}`);
    for (const reason of new Set(reasons)) say(`  ${mode}: ${reason}`);
  }
  sayJson('switchover', {
    thinkMs: THINK_MS,
    clientsOfAKind: CLIENTS,
    modes: results.map(toJson),
  });
}

/** On a cluster of its own, so that no mode meets what another has left. */
async function measure(mode: Mode): Promise<Result> {
  const harness = await Harness.start({ groups: 2, secondaries: true });
  try {
    const { cluster } = harness;
    const runs = ASKED.includes(mode) ? RUNS : OTHER_RUNS;
    progress(`${mode}: ${runs} runs on ${await serversText(cluster)}`);
    const entries = [cluster.coordinator, cluster.group(2).primary] as const;
    const strategy = mode === 'demoted-row' ? { MPP_STRATEGY: 'demoted-row' } : {};
    const controller = await harness.startController({ ...CONTROLLER_SETTINGS, ...strategy });
    const ids = await GroupIds.read(harness.db, 1);
    const traffic = mixedLoad(entries, ids, { clients: CLIENTS, thinkMs: THINK_MS });
    const reports = await Reports.start(cluster.coordinator);
    const hand = new ByHand(await cluster.coordinator.connect('bench'));
    const switcher = mode === 'by-hand' ? hand : new ByController(reports, pauseOf(mode));
    const repeated = await repeat(harness, traffic, switcher, runs);
    const report = await traffic.stop();
    for (const warning of new Set(warningsOf(controller))) progress(`warning: ${warning}`);
    await reports.stop();
    const { holdsLost } = hand;
    return { ...repeated, mode, report, holdsLost, yields: yieldsOf(controller), entries };
  } finally {
    await harness.stop();
  }
}

function pauseOf(mode: Mode): 'none' | 'writes' | 'all' {
  return mode === 'none' || mode === 'all' ? mode : 'writes';
}

async function repeat(
  harness: Harness,
  traffic: Traffic,
  switcher: Switcher,
  runs: number,
): Promise<Pick<Result, 'times' | 'badRuns' | 'reasons'>> {
  const group = harness.cluster.group(1);
  const times: SwitchTimes[] = [];
  const reasons: string[] = [];
  let badRuns = 0;
  for (let run = 1; run <= runs; run += 1) {
    await traffic.waitForProgress(PROGRESS, { timeoutMs: 90_000 });
    const before = traffic.snapshot().failures.length;
    const switched = await switchOver(switcher, group);
    times.push(switched);
    await traffic.waitForProgress(PROGRESS, { timeoutMs: 90_000 });
    await waitUntilSynced(harness.db);
    const failed = traffic.snapshot().failures.length - before;
    if (failed > 0) badRuns += 1;
    const { reason } = switcher;
    if (reason !== null) reasons.push(reason);
    const held = `held after ${ms(switched.heldAt - switched.beganAt)}`;
    const rest = `announced in ${ms(switched.announceMs)}, committed in ${ms(switched.commitMs)}`;
    progress(
      `run ${run}: ${held}, ${rest}, ${failed} failed${reason === null ? '' : `; ${reason}`}`,
    );
    await group.rejoin();
  }
  return { times, badRuns, reasons };
}

function yieldsOf(controller: ControllerProcess): number[] {
  return holdsOf(controller).flatMap(({ yields }) => yields ?? []);
}

function failuresTable(results: readonly Result[]): string {
  return formatTable(
    [
      'PAUSE',
      'RUNS',
      'RUNS THAT FAILED SOME',
      'FAILED ON THE COORDINATOR',
      'ON ANOTHER WORKER',
      'DEADLOCKS',
      'HOLDS LOST',
    ],
    results.map(({ mode, times, report: { failures }, badRuns, holdsLost, entries }) => {
      const { local, distributed } = deadlocksOf(failures);
      const [coordinator, worker] = entries;
      return [
        mode,
        times.length,
        badRuns,
        failuresText(failures, coordinator),
        failuresText(failures, worker),
        `${local} + ${distributed}`,
        holdsLost,
      ];
    }),
  );
}

function timesTable(results: readonly Result[]): string {
  return formatTable(
    [
      'PAUSE',
      'TIME TO HOLD p50 / max',
      'STOP + PROMOTE',
      'BEYOND THAT',
      'LONGEST WAIT r / w / t',
      'YIELDS',
    ],
    results.map(({ mode, times, report: { longestWaits }, yields }) => [
      mode,
      summaryText(holds(times)),
      summaryText(times.map(({ workMs }) => workMs)),
      summaryText(beyond(times)),
      [longestWaits.read, longestWaits.write, longestWaits.transaction].map(ms).join(' / '),
      yields.length === 0 ? '-' : `${Math.min(...yields)} to ${Math.max(...yields)}`,
    ]),
  );
}

function holds(times: readonly SwitchTimes[]): number[] {
  return times.map(({ beganAt, heldAt }) => heldAt - beganAt);
}

/** The most that a client on the coordinator can have waited for our sake alone. */
function beyond(times: readonly SwitchTimes[]): number[] {
  return times.map(({ beganAt, committedAt, workMs }) => committedAt - beganAt - workMs);
}

function toJson({
  mode,
  times,
  report,
  badRuns,
  reasons,
  holdsLost,
  yields,
  entries,
}: Result): object {
  const { sent, failures, longestWaits } = report;
  const [coordinator, worker] = entries;
  return {
    mode,
    runs: times.length,
    badRuns,
    reasons,
    holdsLost,
    sent,
    failed: {
      coordinator: failureCounts(failures, coordinator),
      worker: failureCounts(failures, worker),
    },
    deadlocks: deadlocksOf(failures),
    holdMs: summary(holds(times)),
    workMs: summary(times.map(({ workMs }) => workMs)),
    beyondMs: summary(beyond(times)),
    longestWaitMs: {
      read: hundredths(longestWaits.read),
      write: hundredths(longestWaits.write),
      transaction: hundredths(longestWaits.transaction),
    },
    yields,
  };
}

await bench('switchover', main);
