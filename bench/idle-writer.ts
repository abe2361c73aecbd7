import { formatTable } from '../src/commands/output.js';
import { Actor } from '../test/kit/faults/actor.js';
import { BusyClient, type BusyStatement } from '../test/kit/faults/busy-client.js';
import { terminated } from '../test/kit/faults/hold-log.js';
import { waitUntilNothingHeld } from '../test/kit/faults/hold-sessions.js';
import { waitUntilWarm } from '../test/kit/faults/warm.js';
import { Harness } from '../test/kit/harness.js';
import type { Server } from '../test/kit/servers/index.js';
import {
  bench,
  CONTROLLER_SETTINGS,
  countOf,
  progress,
  say,
  sayJson,
  serversText,
} from './bench.js';
import { hundredths, ms } from './figures.js';
import { rowsOfGroup, stopClients } from './load.js';
import { Reports } from './reports.js';

const PAUSES = ['writes', 'all'] as const;
const ENTRIES = ['coordinator', 'worker'] as const;
const UPDATE = 'UPDATE items SET v = v + 1 WHERE id = $1';
/** What clients repeat, on two rows of their own: a read, a write, and a transaction of two writes. */
const WORKS: readonly ((one: number, other: number) => readonly BusyStatement[])[] = [
  (one) => [['SELECT v FROM items WHERE id = $1', [one]]],
  (one) => [[UPDATE, [one]]],
  (one, other) => [
    [UPDATE, [one]],
    [UPDATE, [other]],
  ],
];

const RUNS = countOf('RUNS', 2);
/** Of each kind, on each entry node. */
const CLIENTS = countOf('CLIENTS', 3);
const THINK_MS = countOf('THINK_MS', 20);
const COOLDOWN_S = countOf('COOLDOWN_S', 10);
/** What a statement may take that waits for no hold. */
const USUAL_MS = countOf('USUAL_MS', 50);

interface Result {
  readonly pause: string;
  readonly entry: string;
  readonly heldMs: number;
  /** Of the client that waited longest, until the hold was there; on each entry node. */
  readonly longestMs: readonly [number, number];
  /** Sessions terminated beside the idle writer's. */
  readonly others: number;
  readonly isWriterTerminated: boolean;
  readonly failed: number;
}

async function main(): Promise<void> {
  const harness = await Harness.start({ groups: 2, standbys: false });
  try {
    const { cluster } = harness;
    const entries = [cluster.coordinator, cluster.group(2).primary] as const;
    say(`${await serversText(cluster)}, cooldown ${COOLDOWN_S} s, ${THINK_MS} ms of thought,`);
    say(`${3 * CLIENTS} clients on each of 2 nodes, and one that has written and idles`);
    const results: Result[] = [];
    for (let run = 1; run <= RUNS; run += 1)
      for (const pause of PAUSES)
        for (const [index, entry] of ENTRIES.entries()) {
          const result = await measure(harness, entries, pause, index);
          results.push({ ...result, pause, entry });
          const [one, other] = result.longestMs;
          progress(
            `${pause}, writer on the ${entry}: held after ${ms(result.heldMs)}, waited ` +
              `${ms(one)} on the coordinator, ${ms(other)} on the worker; ${result.others} others terminated`,
          );
        }
    say(`\n${table(results)}\n`);
    sayJson('idle-writer', { cooldownMs: 1_000 * COOLDOWN_S, runs: RUNS, results });
  } finally {
    await harness.stop();
  }
}

async function measure(
  harness: Harness,
  entries: readonly [Server, Server],
  pause: (typeof PAUSES)[number],
  writerEntry: number,
): Promise<Omit<Result, 'pause' | 'entry'>> {
  const controller = await harness.startController(CONTROLLER_SETTINGS);
  await waitUntilWarm(entries);
  const perNode = WORKS.length * CLIENTS;
  const [own = 0, ...ids] = await rowsOfGroup(harness.db, 1, 1 + 4 * perNode);
  const writer = await Actor.connect(entries[writerEntry] ?? entries[0], 'idle writer');
  await writer.begin(UPDATE, [own]);
  const nodes = await Promise.all(
    entries.map((server, node) => startClients(server, ids.slice(2 * node * perNode))),
  );
  const clients = nodes.flat();
  await Promise.all(clients.map((client) => client.progress(3)));
  const reports = await Reports.start(harness.cluster.coordinator);
  const report = { event: 'before_demote', groupid: 1, pause, timeout: '1min' } as const;
  const node = harness.cluster.group(1).primary;
  const waits = nodes.map((some) => some.map((client) => client.measureWaits(USUAL_MS)));
  const { sentAt, answeredAt } = await reports.send(
    { ...report, node, cooldown: `${COOLDOWN_S}s` },
    'holding',
  );
  // At once: from now on they wait for the hold itself.
  const longest = waits.map((some) => Math.max(...some.map((waitedMs) => waitedMs())));
  await harness.db.query('SELECT mpp_release(1)');
  await waitUntilNothingHeld(harness);
  const failed = await stopClients(clients);
  await writer.end();
  await reports.stop();
  const ended = terminated(controller.log);
  await controller.end('SIGTERM');
  return {
    heldMs: hundredths(answeredAt - sentAt),
    longestMs: [hundredths(longest[0] ?? 0), hundredths(longest[1] ?? 0)],
    others: ended.filter(({ application }) => application !== 'idle writer').length,
    isWriterTerminated: writer.isLost,
    failed,
  };
}

/** Of each kind of work so many clients, with the first of these rows. */
async function startClients(server: Server, ids: readonly number[]): Promise<BusyClient[]> {
  return Promise.all(
    WORKS.flatMap((work, kind) =>
      Array.from({ length: CLIENTS }, (_, index) => {
        const first = 2 * (kind * CLIENTS + index);
        const [one = 0, other = 0] = ids.slice(first, first + 2);
        return BusyClient.start(server, work(one, other), THINK_MS);
      }),
    ),
  );
}

function table(results: readonly Result[]): string {
  return formatTable(
    [
      'PAUSE',
      'IDLE WRITER ON',
      'HELD AFTER',
      'LONGEST WAIT, COORDINATOR',
      'WORKER',
      'WRITER TERMINATED',
      'OTHERS',
      'FAILED',
    ],
    results.map(({ pause, entry, heldMs, longestMs, isWriterTerminated, others, failed }) => [
      ...[pause, entry, ms(heldMs), ms(longestMs[0]), ms(longestMs[1])],
      ...[isWriterTerminated ? 'yes' : 'no', String(others), String(failed)],
    ]),
  );
}

await bench('idle-writer', main);
