import { setTimeout as delay } from 'node:timers/promises';
import { formatTable } from '../src/commands/output.js';
import { Harness } from '../test/kit/harness.js';
import type { Server } from '../test/kit/servers/index.js';
import { waitUntilSynced } from '../test/kit/standin/observe.js';
import { keysOfGroup } from '../test/kit/standin/schema.js';
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
import { Reports } from './reports.js';
import { epochOffset, Stopwatch, type Lap } from './stopwatch.js';
import { ByController, ByHand, switchOver, type Switcher } from './switch.js';

const MODES = ['by-hand', 'writes', 'all'] as const;
type Mode = (typeof MODES)[number];

const RUNS = countOf('RUNS', 12);
/** Clients on each entry node, half of them writers. */
const CLIENTS = countOf('CLIENTS', 12);
const THINK_MS = countOf('THINK_MS', 20);
/** So long clients go on after a commit: Citus takes up to 230 ms to tell the other nodes. */
const AFTER_MS = 400;

/** What one switchover meant to the clients of one entry node, in milliseconds. */
interface Seen {
  /** From the commit to the first statement of each kind that got through. */
  readonly firstWrite: number;
  readonly firstRead: number;
  /** The longest answered statement, less what stopping and promoting took. */
  readonly beyond: number;
  readonly failed: number;
}

interface Result {
  readonly mode: Mode;
  readonly coordinator: readonly Seen[];
  readonly worker: readonly Seen[];
}

async function main(): Promise<void> {
  const results: Result[] = [];
  for (const mode of choicesOf('MODES', MODES)) results.push(await measure(mode));
  say(`\n${table(results)}\n`);
  sayJson('resume', { thinkMs: THINK_MS, clients: CLIENTS, modes: results.map(toJson) });
}

async function measure(mode: Mode): Promise<Result> {
  const settings = { track_commit_timestamp: true };
  const harness = await Harness.start({ groups: 2, secondaries: true, settings });
  try {
    const { cluster } = harness;
    progress(`${mode}: ${RUNS} runs on ${await serversText(cluster)}`);
    await harness.startController(CONTROLLER_SETTINGS);
    const keys = await keysOfGroup(harness.db, 1, CLIENTS);
    for (const key of keys) await harness.db.query('INSERT INTO items VALUES ($1, 0)', [key]);
    const [coordinator, worker] = [cluster.coordinator, cluster.group(2).primary];
    const clients = await Stopwatch.start([coordinator, worker], keys, THINK_MS);
    const reports = await Reports.start(coordinator);
    const switcher: Switcher =
      mode === 'by-hand'
        ? new ByHand(await coordinator.connect('bench'))
        : new ByController(reports, mode);
    const seen = await repeat(harness, clients, switcher, [coordinator, worker]);
    await clients.stop();
    await reports.stop();
    return {
      mode,
      coordinator: seen.map(([here]) => here),
      worker: seen.map(([, there]) => there),
    };
  } finally {
    await harness.stop();
  }
}

async function repeat(
  harness: Harness,
  clients: Stopwatch,
  switcher: Switcher,
  [coordinator, worker]: readonly [Server, Server],
): Promise<[Seen, Seen][]> {
  const group = harness.cluster.group(1);
  const seen: [Seen, Seen][] = [];
  for (let run = 1; run <= RUNS; run += 1) {
    await delay(AFTER_MS);
    clients.take();
    const { workMs } = await switchOver(switcher, group);
    const committedAt = (await switcher.committedAt()) - epochOffset();
    await waitUntilSynced(harness.db);
    await delay(AFTER_MS);
    const laps = clients.take();
    const here = seenAt(laps, coordinator, committedAt, workMs);
    seen.push([here, seenAt(laps, worker, committedAt, workMs)]);
    progress(
      `run ${run}: first write ${ms(here.firstWrite)} after the commit; ` +
        `stop and promote ${ms(workMs)}, longest wait ${ms(here.beyond)} more`,
    );
    await group.rejoin();
  }
  return seen;
}

function seenAt(all: readonly Lap[], entry: Server, committedAt: number, workMs: number): Seen {
  const laps = all.filter((lap) => lap.entry === entry.address);
  const through = laps.filter(({ ok }) => ok);
  const first = (kind: Lap['kind']): number => {
    const after = through.filter((lap) => lap.kind === kind && lap.answeredAt >= committedAt);
    return Math.min(...after.map(({ answeredAt }) => answeredAt)) - committedAt;
  };
  const longest = Math.max(...through.map(({ sentAt, answeredAt }) => answeredAt - sentAt));
  return {
    firstWrite: first('write'),
    firstRead: first('read'),
    beyond: longest - workMs,
    failed: laps.length - through.length,
  };
}

function table(results: readonly Result[]): string {
  return formatTable(
    [
      'PAUSE',
      'ENTRY',
      'FIRST WRITE p50 / max',
      'FIRST READ',
      'WAIT BEYOND STOP + PROMOTE',
      'FAILED',
    ],
    results.flatMap(({ mode, coordinator, worker }) => [
      [mode, 'coordinator', ...cells(coordinator)],
      [mode, 'another worker', ...cells(worker)],
    ]),
  );
}

function cells(seen: readonly Seen[]): (string | number)[] {
  return [
    summaryText(seen.map(({ firstWrite }) => firstWrite)),
    summaryText(seen.map(({ firstRead }) => firstRead)),
    summaryText(seen.map(({ beyond }) => beyond)),
    seen.reduce((sum, { failed }) => sum + failed, 0),
  ];
}

function toJson({ mode, coordinator, worker }: Result): object {
  const describe = (seen: readonly Seen[]): object => ({
    firstWriteMs: summary(seen.map(({ firstWrite }) => firstWrite)),
    firstReadMs: summary(seen.map(({ firstRead }) => firstRead)),
    beyondMs: summary(seen.map(({ beyond }) => beyond)),
    failed: seen.reduce((sum, { failed }) => sum + failed, 0),
  });
  return { mode, runs: RUNS, coordinator: describe(coordinator), worker: describe(worker) };
}

await bench('resume', main);
