import { formatTable } from '../src/commands/table.js';
import { Actor } from '../test/support/faults/actor.js';
import { terminated } from '../test/support/faults/hold-log.js';
import { waitUntilNothingHeld } from '../test/support/faults/hold-sessions.js';
import { Harness } from '../test/support/harness.js';
import type { Server } from '../test/support/servers/index.js';
import { keysOfGroup } from '../test/support/standin/schema.js';
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
import { Reports } from './reports.js';
import { SteadyClient, waitForWork, type Work } from './steady-client.js';
import { waitUntilWarm } from './warm.js';

const PAUSES = ['writes', 'all'] as const;
const ENTRIES = ['coordinator', 'worker'] as const;
const WORKS: readonly Work[] = ['read', 'write', 'transaction'];

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
  const keys = await keysOfGroup(harness.db, 1, 1 + 4 * perNode);
  for (const key of keys)
    await harness.db.query('INSERT INTO items VALUES ($1, 0) ON CONFLICT DO NOTHING', [key]);
  const nodes = entries.map((server, node) =>
    Array.from({ length: perNode }, (_, index) => {
      const first = 1 + 2 * (node * perNode + index);
      const work = WORKS[index % WORKS.length] ?? 'read';
      return new SteadyClient({
        ...{ server, work, thinkMs: THINK_MS },
        ids: keys.slice(first, first + 2),
      });
    }),
  );
  const clients = nodes.flat();
  const writer = await Actor.connect(entries[writerEntry] ?? entries[0], 'idle writer');
  await writer.begin('UPDATE items SET v = v + 1 WHERE id = $1', [keys[0]]);
  for (const client of clients) client.start();
  await waitForWork(clients, 3);
  const reports = await Reports.start(harness.cluster.coordinator);
  const report = { event: 'before_demote', groupid: 1, pause, timeout: '1min' } as const;
  const node = harness.cluster.group(1).primary;
  const { sentAt, answeredAt } = await reports.send(
    { ...report, node, cooldown: `${COOLDOWN_S}s` },
    'holding',
  );
  const longest = nodes.map((some) =>
    Math.max(...some.map((client) => client.waitedMs(sentAt, answeredAt, USUAL_MS))),
  );
  await harness.db.query('SELECT mpp_release(1)');
  await waitUntilNothingHeld(harness);
  await Promise.all(clients.map((client) => client.stop()));
  await writer.end();
  await reports.stop();
  const ended = terminated(controller.log);
  await controller.end('SIGTERM');
  const failures = clients.flatMap((client) => client.failures);
  for (const failure of failures.slice(0, 5)) progress(`failed: ${failure}`);
  return {
    heldMs: hundredths(answeredAt - sentAt),
    longestMs: [hundredths(longest[0] ?? 0), hundredths(longest[1] ?? 0)],
    others: ended.filter(({ application }) => application !== 'idle writer').length,
    isWriterTerminated: writer.isLost,
    failed: failures.length,
  };
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
