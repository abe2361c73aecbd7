import { formatTable } from '../src/commands/output.js';
import type { ControllerProcess } from '../test/kit/controller-process.js';
import { BusyClient } from '../test/kit/faults/busy-client.js';
import { terminated } from '../test/kit/faults/hold-log.js';
import { waitUntilNothingHeld } from '../test/kit/faults/hold-sessions.js';
import { waitUntilWarm } from '../test/kit/faults/warm.js';
import { Harness } from '../test/kit/harness.js';
import type { Server } from '../test/kit/servers/index.js';
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
import { rowsOfGroup, stopClients } from './load.js';
import { Reports } from './reports.js';

const PAUSES = ['writes', 'all'] as const;
type Pause = (typeof PAUSES)[number];

/** How many other groups are held. */
const BESIDE = [0, 1, 7] as const;
const MOST_BESIDE = Math.max(...BESIDE);

const RUNS = countOf('RUNS', 10);
/** With transactions on the measured group, on each of two entry nodes, without a pause between them. */
const CLIENTS = countOf('CLIENTS', 6);
const LASTS_MS = countOf('LASTS_MS', 25);

interface Result {
  readonly pause: Pause;
  /** Times to hold in milliseconds, by the number of groups held. */
  readonly holds: ReadonlyMap<number, number[]>;
  readonly terminated: number;
  readonly failed: number;
}

async function main(): Promise<void> {
  const harness = await Harness.start({ groups: 2 + MOST_BESIDE, standbys: false });
  try {
    const { coordinator } = harness.cluster;
    const entries = [coordinator, harness.cluster.group(2 + MOST_BESIDE).primary];
    say(`${await serversText(harness.cluster)}, ${RUNS} runs,`);
    say(`${CLIENTS} clients on each of 2 nodes, transactions of ${LASTS_MS} ms on one group`);
    const controller = await harness.startController(CONTROLLER_SETTINGS);
    await waitUntilWarm(entries);
    const results: Result[] = [];
    for (const pause of choicesOf('PAUSES', PAUSES))
      results.push(await measure(harness, controller, entries, pause));
    say(`\n${table(results)}\n`);
    sayJson('beside', { runs: RUNS, clients: CLIENTS, pauses: results.map(toJson) });
  } finally {
    await harness.stop();
  }
}

async function measure(
  harness: Harness,
  controller: ControllerProcess,
  entries: readonly Server[],
  pause: Pause,
): Promise<Result> {
  const measured = await clientsOf(harness, entries, 1, CLIENTS);
  // One client for each group beside: it waits for that group's hold.
  const others: BusyClient[] = [];
  for (let groupid = 2; groupid <= 1 + MOST_BESIDE; groupid += 1)
    others.push(...(await clientsOf(harness, entries.slice(0, 1), groupid, 1)));
  const all = [...measured, ...others];
  const reports = await Reports.start(harness.cluster.coordinator);
  const before = terminated(controller.log).length;
  const holds = new Map<number, number[]>(BESIDE.map((count) => [count, []]));
  for (let run = 1; run <= RUNS; run += 1) {
    for (const count of BESIDE) {
      await Promise.all(all.map((client) => client.progress(2)));
      for (let groupid = 2; groupid < 2 + count; groupid += 1)
        await hold(harness, reports, groupid, pause);
      const took = await hold(harness, reports, 1, pause);
      holds.get(count)?.push(took);
      progress(`${pause} ${run}: beside ${count} held ${ms(took)}`);
      for (let groupid = 1; groupid < 2 + count; groupid += 1)
        await harness.db.query('SELECT mpp_release($1)', [groupid]);
      await waitUntilNothingHeld(harness);
    }
  }
  const failed = await stopClients(all);
  await reports.stop();
  return {
    ...{ pause, holds, failed },
    terminated: terminated(controller.log).length - before,
  };
}

async function hold(
  harness: Harness,
  reports: Reports,
  groupid: number,
  pause: Pause,
): Promise<number> {
  const node = harness.cluster.group(groupid).primary;
  const report = { event: 'before_demote', groupid, node, pause, timeout: '2min' } as const;
  const { sentAt, answeredAt } = await reports.send(report, 'holding');
  return answeredAt - sentAt;
}

/** Clients with transactions on rows of their own, so many on each node. */
async function clientsOf(
  harness: Harness,
  entries: readonly Server[],
  groupid: number,
  count: number,
): Promise<BusyClient[]> {
  const ids = await rowsOfGroup(harness.db, groupid, 2 * count * entries.length);
  return Promise.all(
    entries.flatMap((server, entry) =>
      Array.from({ length: count }, (_, index) => {
        const first = 2 * (entry * count + index);
        return BusyClient.start(server, [
          [UPDATE, [ids[first]]],
          [`SELECT pg_sleep(${LASTS_MS / 1_000})`],
          [UPDATE, [ids[first + 1]]],
        ]);
      }),
    ),
  );
}

const UPDATE = 'UPDATE items SET v = v + 1 WHERE id = $1';

function table(results: readonly Result[]): string {
  return formatTable(
    [
      'PAUSE',
      'ALONE p50 / max',
      ...BESIDE.slice(1).flatMap((count) => [`BESIDE ${count}`, 'RATIO OF p50']),
      'TERMINATED',
      'FAILED',
    ],
    results.map((result) => [
      result.pause,
      summaryText(result.holds.get(0) ?? []),
      ...BESIDE.slice(1).flatMap((count) => [
        summaryText(result.holds.get(count) ?? []),
        `${ratio(result, count).toFixed(2)} x`,
      ]),
      String(result.terminated),
      String(result.failed),
    ]),
  );
}

function ratio({ holds }: Result, count: number): number {
  return percentile(holds.get(count) ?? [], 50) / percentile(holds.get(0) ?? [], 50);
}

function toJson(result: Result): object {
  const { pause, holds, failed } = result;
  return {
    ...{ pause, failed, terminated: result.terminated },
    holdMs: Object.fromEntries([...holds].map(([count, times]) => [count, summary(times)])),
    ratios: Object.fromEntries(
      BESIDE.slice(1).map((count) => [count, hundredths(ratio(result, count))]),
    ),
  };
}

await bench('beside', main);
