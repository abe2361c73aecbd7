import { connect } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import { formatTable } from '../src/commands/output.js';
import { Harness } from '../test/kit/harness.js';
import type { Server } from '../test/kit/servers/index.js';
import { waitUntilWarm } from '../test/kit/faults/warm.js';
import { waitUntilSynced } from '../test/kit/standin/observe.js';
import { startTraffic, type Traffic } from '../test/kit/traffic/traffic.js';
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
import { ms, summary, summaryText } from './figures.js';
import { GroupIds, IDS, reasonsText } from './load.js';
import { Reports } from './reports.js';

/** `young`: suspect is reported to a controller that has been active for a second. */
const SIDES = ['before_promote', 'suspect', 'young'] as const;
type Side = (typeof SIDES)[number];

const RUNS = countOf('RUNS', 5);
/** Of each kind, on each entry node. */
const CLIENTS = countOf('CLIENTS', 6);
const THINK_MS = countOf('THINK_MS', 20);
/** From the crash to the decision of the HA manager. */
const DETECTION_MS = countOf('DETECTION_MS', 2_000);
const PROGRESS = 5;
const YOUNG_MS = 1_000;
const ATTEMPT_MS = 2;

interface Run {
  /** From the end of the server to the first refused connection, and to the acknowledged hold. */
  readonly refusedMs: number;
  readonly heldMs: number;
  /** Failed statements (or transactions) of each client, and what of them had failed when it was reported. */
  readonly failed: readonly number[];
  readonly failedBefore: readonly number[];
}

async function main(): Promise<void> {
  const results = new Map<Side, Run[]>();
  for (const side of choicesOf('SIDES', SIDES)) results.set(side, await measure(side));
  say(`\n${table(results)}\n`);
  sayJson('crash', {
    thinkMs: THINK_MS,
    detectionMs: DETECTION_MS,
    sides: [...results].map(([side, runs]) => toJson(side, runs)),
  });
}

async function measure(side: Side): Promise<Run[]> {
  const harness = await Harness.start({ groups: 2, secondaries: true });
  try {
    const { cluster } = harness;
    progress(`${side}: ${RUNS} crashes on ${await serversText(cluster)}`);
    const settings = { ...CONTROLLER_SETTINGS, MPP_PAUSE: 'all' };
    let controller = await harness.startController(settings);
    const ids = await GroupIds.read(harness.db, 1);
    const clients = startClients([cluster.coordinator, cluster.group(2).primary], ids);
    const reports = await Reports.start(cluster.coordinator);
    await waitUntilWarm([cluster.coordinator, cluster.group(2).primary]);
    const runs: Run[] = [];
    for (let run = 1; run <= RUNS; run += 1) {
      if (side === 'young') {
        await controller.end('SIGTERM');
        controller = await harness.startController(settings);
        await delay(YOUNG_MS);
      }
      runs.push(await crash(harness, clients, reports, side));
      const { refusedMs, heldMs, failed, failedBefore } = runs.at(-1) as Run;
      progress(
        `run ${run}: refused after ${ms(refusedMs)}, held after ${ms(heldMs)}, ` +
          `${sumOf(failed)} failed, ${sumOf(failedBefore)} of them before the report`,
      );
    }
    const ended = await Promise.all(clients.map((client) => client.stop()));
    for (const line of reasonsText(ended.flatMap(({ failures }) => failures))) progress(line);
    await reports.stop();
    return runs;
  } finally {
    await harness.stop();
  }
}

/** Each client by itself, because the traffic counts all of its clients together. */
function startClients(entries: readonly Server[], ids: GroupIds): Traffic[] {
  const kinds = [
    { writers: 1, readers: 0 },
    { writers: 0, readers: 1 },
    { writers: 0, readers: 0, transactions: 1 },
  ];
  const all = entries.flatMap(({ connection }) =>
    kinds.flatMap((clients) => Array.from({ length: CLIENTS }, () => ({ connection, clients }))),
  );
  const share = Math.floor(IDS / all.length);
  return all.map(({ connection, clients }, index) =>
    startTraffic({
      connection,
      clients,
      thinkMs: THINK_MS,
      firstId: 1 + index * share,
      accepts: ids.accepts,
    }),
  );
}

async function crash(
  harness: Harness,
  clients: readonly Traffic[],
  reports: Reports,
  side: Side,
): Promise<Run> {
  const group = harness.cluster.group(1);
  const { groupid, primary: old, standby: next } = group;
  await allGoOn(clients);
  const before = failuresOf(clients);
  const end = watchEnd(old);
  const killed = old.kill();
  const { lostAt, refusedAt } = await end;
  const decision = delay(DETECTION_MS);
  let heldAt: number | undefined;
  let reportedAt = failuresOf(clients);
  if (side !== 'before_promote') {
    const { answeredAt } = await reports.send({ event: 'suspect', groupid, node: old }, 'holding');
    heldAt = answeredAt;
  }
  await Promise.all([killed, decision]);
  if (side === 'before_promote') reportedAt = failuresOf(clients);
  const promote = { event: 'before_promote', groupid, node: next } as const;
  const { answeredAt } = await reports.send(promote, 'holding');
  await group.promoteStandby();
  await reports.send({ event: 'after_promote', groupid, node: next }, 'done');
  await allGoOn(clients);
  await waitUntilSynced(harness.db);
  const since = (counts: readonly number[]): number[] =>
    counts.map((count, index) => count - (before[index] ?? 0));
  const failed = since(failuresOf(clients));
  await group.rejoin();
  return {
    refusedMs: refusedAt - lostAt,
    heldMs: (heldAt ?? answeredAt) - lostAt,
    failed,
    failedBefore: since(reportedAt),
  };
}

async function allGoOn(clients: readonly Traffic[]): Promise<void> {
  await Promise.all(clients.map((client) => client.waitForProgress(PROGRESS)));
}

function failuresOf(clients: readonly Traffic[]): number[] {
  return clients.map((client) => client.snapshot().failures.length);
}

/**
 * What a client library, a pooler or a probe sees of a crash: its connection is lost, a new one refused.
 *
 * @returns when that was, by performance.now()
 */
async function watchEnd({ host, port }: Server): Promise<{ lostAt: number; refusedAt: number }> {
  let lostAt = 0;
  for (;;) {
    const isOpen = await new Promise<boolean>((resolve) => {
      let opened = false;
      const socket = connect(port, host, () => (opened = true));
      socket.on('error', () => undefined);
      socket.once('close', () => resolve(opened));
    });
    const now = performance.now();
    if (!isOpen) return { lostAt: lostAt || now, refusedAt: now };
    lostAt ||= now;
    await delay(ATTEMPT_MS);
  }
}

function table(results: ReadonlyMap<Side, readonly Run[]>): string {
  return formatTable(
    [
      'HELD FROM',
      'RUNS',
      'CLIENTS',
      'FAILED IN A RUN p50 / max',
      'OF A CLIENT mean / most',
      'BEFORE THE REPORT mean / most',
      'SINCE IT mean / most',
      'REFUSED AFTER p50 / max',
      'HELD AFTER p50 / max',
    ],
    [...results].map(([side, runs]) => {
      const { p50, max } = summary(runs.map(({ failed }) => sumOf(failed)));
      return [
        side,
        runs.length,
        runs[0]?.failed.length ?? 0,
        `${p50} / ${max}`,
        ofOneText(runs.flatMap(({ failed }) => failed)),
        ofOneText(runs.flatMap(({ failedBefore }) => failedBefore)),
        ofOneText(runs.flatMap(sinceReport)),
        summaryText(runs.map(({ refusedMs }) => refusedMs)),
        summaryText(runs.map(({ heldMs }) => heldMs)),
      ];
    }),
  );
}

function sinceReport({ failed, failedBefore }: Run): number[] {
  return failed.map((count, index) => count - (failedBefore[index] ?? 0));
}

function ofOneText(counts: readonly number[]): string {
  const { mean, most } = ofOne(counts);
  return `${mean.toFixed(1)} / ${most}`;
}

/** Of the counts of single clients. */
function ofOne(counts: readonly number[]): { mean: number; most: number } {
  return { mean: sumOf(counts) / counts.length, most: Math.max(0, ...counts) };
}

function sumOf(counts: readonly number[]): number {
  return counts.reduce((sum, count) => sum + count, 0);
}

function toJson(side: Side, runs: readonly Run[]): object {
  return {
    side,
    runs: runs.length,
    clients: runs[0]?.failed.length ?? 0,
    failed: summary(runs.map(({ failed }) => sumOf(failed))),
    ofOneClient: ofOne(runs.flatMap(({ failed }) => failed)),
    ofOneClientBeforeReport: ofOne(runs.flatMap(({ failedBefore }) => failedBefore)),
    ofOneClientSinceReport: ofOne(runs.flatMap(sinceReport)),
    refusedMs: summary(runs.map(({ refusedMs }) => refusedMs)),
    heldMs: summary(runs.map(({ heldMs }) => heldMs)),
  };
}

await bench('crash', main);
