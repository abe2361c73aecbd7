import { formatTable } from '../src/commands/output.js';
import { Harness } from '../test/kit/harness.js';
import { waitFor, type Server } from '../test/kit/servers/index.js';
import {
  bench,
  CONTROLLER_SETTINGS,
  countOf,
  progress,
  say,
  sayJson,
  serversText,
} from './bench.js';
import { ms, summary, summaryText } from './figures.js';
import { Reports } from './reports.js';
import { makeWide } from './wide.js';

/** Strategy and pause; all is done by pause-node and demoted-row with one call of Citus. */
const SIDES = ['shard-locks writes', 'shard-locks all', 'pause-node writes', 'demoted-row writes'];
const SHARDS = (process.env['SHARDS'] ?? '32,1000,10000').split(',').map(Number);
const RUNS = countOf('RUNS', 10);
const ROOMY = 256;
/** Room for some 3,000 locks: 10 for each of 200 connections and 100 prepared transactions. */
const TIGHT = 10;
const TIGHT_SHARDS = 10_000;
const NEEDED = /max_locks_per_transaction there to (\d+)/;

interface Result {
  readonly shards: number;
  readonly side: string;
  readonly holds: readonly number[];
  /** Locks of our sessions while the group is held, on the coordinator and on the other worker. */
  readonly locks: number;
  readonly locksElsewhere: number;
  readonly reason: string | null;
}

interface Refusal {
  readonly reason: string | null;
  readonly tookMs: number;
  /** What the refusal said to set, and how the hold ended with that. */
  readonly setting: number | null;
  readonly thenMs: number | null;
}

async function main(): Promise<void> {
  const results: Result[] = [];
  for (const shards of SHARDS) results.push(...(await measure(shards)));
  say(`\n${table(results)}\n`);
  const refusal = await refuse();
  say(
    `max_locks_per_transaction = ${TIGHT}, ${TIGHT_SHARDS} shards: refused after ${ms(refusal.tookMs)}`,
  );
  say(`  ${refusal.reason ?? 'without a reason'}`);
  say(`  with ${refusal.setting ?? '?'}: held after ${ms(refusal.thenMs ?? Number.NaN)}`);
  sayJson('shards', {
    sides: results.map(({ holds, ...rest }) => ({ ...rest, holdMs: summary(holds) })),
    refusal,
  });
}

async function measure(shards: number): Promise<Result[]> {
  const settings = { max_locks_per_transaction: ROOMY };
  const harness = await Harness.start({ groups: 2, standbys: false, settings });
  try {
    const { cluster } = harness;
    await makeWide(cluster, shards);
    progress(`${shards} shards on ${await serversText(cluster)}`);
    const results: Result[] = [];
    for (const side of SIDES) results.push(await measureSide(harness, shards, side));
    return results;
  } finally {
    await harness.stop();
  }
}

async function measureSide(harness: Harness, shards: number, side: string): Promise<Result> {
  const [strategy, pause] = side.split(' ') as [string, 'writes' | 'all'];
  const { coordinator } = harness.cluster;
  const [node, elsewhere] = [harness.cluster.group(1).primary, harness.cluster.group(2).primary];
  const env = { ...CONTROLLER_SETTINGS, MPP_STRATEGY: strategy };
  const controller = await harness.startController(env);
  const reports = await Reports.start(coordinator);
  const holds: number[] = [];
  let [locks, locksElsewhere]: [number, number] = [0, 0];
  let reason: string | null = null;
  // The first one opens sessions and fills Citus's cache of the catalog.
  for (let run = 0; run <= RUNS; run += 1) {
    const demote = { event: 'before_demote', groupid: 1, node, pause } as const;
    const { id, sentAt, answeredAt } = await reports.send(demote, 'holding');
    if (run > 0) holds.push(answeredAt - sentAt);
    else [locks, locksElsewhere] = [await locksOn(coordinator), await locksOn(elsewhere)];
    reason ??= await reports.reason(id);
    await reports.send({ event: 'after_promote', groupid: 1, node }, 'done');
    await waitFor('the locks to be given back', async () => {
      return (await locksOn(coordinator)) + (await locksOn(elsewhere)) === 0;
    });
  }
  await reports.stop();
  await controller.end('SIGTERM');
  progress(`${side}: held after ${summaryText(holds)}, ${locks} locks`);
  return { shards, side, holds, locks, locksElsewhere, reason };
}

/** Of tables and shards, in sessions that hold a group or pause its traffic; not that of its group. */
async function locksOn(server: Server): Promise<number> {
  return server.withSession(async (session) => {
    const { rows } = await session.query<{ locks: number }>(LOCKS);
    return rows[0]?.locks ?? 0;
  });
}

/** The controller's are in the modes that make others wait; a session has some more for its own statements. */
const LOCKS = `
  SELECT count(*)::integer AS locks
  FROM pg_locks AS l
  JOIN pg_stat_activity AS a ON a.pid = l.pid
  WHERE a.application_name ~ '^mpp-controller (group|pause of|shared)'
    AND l.locktype IN ('relation', 'advisory')
    AND l.mode IN ('ExclusiveLock', 'AccessExclusiveLock')`;

/** What happens where the lock table is too small, and whether what it then says is right. */
async function refuse(): Promise<Refusal> {
  const settings = { max_locks_per_transaction: TIGHT };
  const harness = await Harness.start({ groups: 2, standbys: false, settings });
  try {
    await makeWide(harness.cluster, TIGHT_SHARDS);
    const { coordinator } = harness.cluster;
    const controller = await harness.startController(CONTROLLER_SETTINGS);
    const node = harness.cluster.group(1).primary;
    const demote = { event: 'before_demote', groupid: 1, node, pause: 'writes' } as const;
    const reports = await Reports.start(coordinator);
    const { id, sentAt, answeredAt } = await reports.send(demote, 'failed');
    const reason = await reports.reason(id);
    await reports.stop();
    await controller.end('SIGTERM');
    const setting = Number(NEEDED.exec(reason ?? '')?.[1] ?? Number.NaN);
    const refused = { reason, tookMs: answeredAt - sentAt };
    if (Number.isNaN(setting)) return { ...refused, setting: null, thenMs: null };
    for (const { primary } of harness.cluster.groups) {
      primary.configure({ max_locks_per_transaction: setting });
      await primary.restart();
    }
    await harness.startController(CONTROLLER_SETTINGS);
    const again = await Reports.start(coordinator);
    const held = await again.send(demote, 'holding');
    await again.stop();
    return { ...refused, setting, thenMs: held.answeredAt - held.sentAt };
  } finally {
    await harness.stop();
  }
}

function table(results: readonly Result[]): string {
  return formatTable(
    [
      'SHARDS',
      'STRATEGY, PAUSE',
      'TIME TO HOLD p50 / max',
      'LOCKS ON THE COORDINATOR',
      'ON ANOTHER WORKER',
    ],
    results.map(({ shards, side, holds, locks, locksElsewhere }) => [
      shards,
      side,
      summaryText(holds),
      locks,
      locksElsewhere,
    ]),
  );
}

await bench('shards', main);
