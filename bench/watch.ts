import { setTimeout as delay } from 'node:timers/promises';
import type { Client } from 'pg';
import { formatTable } from '../src/commands/output.js';
import { Harness } from '../test/kit/harness.js';
import { waitFor } from '../test/kit/servers/index.js';
import {
  bench,
  CONTROLLER_SETTINGS,
  countOf,
  progress,
  say,
  sayJson,
  serversText,
} from './bench.js';
import { hundredths, ms, percentile, summary, summaryText } from './figures.js';
import { GroupIds, mixedLoad } from './load.js';
import { heldLocks, LOGGED_ROLE, LookLog, makeLoggedRole, type Look } from './look-log.js';
import { Reports } from './reports.js';
import { makeWide, shardsOf } from './wide.js';

const LOCKS = countOf('LOCKS', 10_000);
const WAITING = countOf('WAITING', 100);
const WAIT_MS = 3_000;
/** What takes locks in small units after all, because of a blocking session, releases what it had. */
const SETTLED_MS = 2_000;
/** So long it may take until the crowd is there. */
const CROWD_MS = 120_000;
const RUNS = countOf('RUNS', 8);
const CLIENTS = countOf('CLIENTS', 6);
const PROGRESS = 300;
const COPIES = 20;

/** What was looked at while holds were opened. */
interface Result {
  readonly situation: string;
  readonly holds: readonly number[];
  readonly looks: readonly Look[];
}

async function main(): Promise<void> {
  const crowd = await measureCrowd();
  const results = [crowd.result];
  for (const pause of ['writes', 'all'] as const) {
    for (const thinkMs of [20, 0]) results.push(await measureDrain(pause, thinkMs));
  }
  say(`\n${table(results)}\n`);
  say(`one copy of pg_locks in the crowd, which no look makes: ${summaryText(crowd.copies)}`);
  sayJson('watch', {
    locks: LOCKS,
    waiting: WAITING,
    copyOfPgLocksMs: summary(crowd.copies),
    situations: results.map(toJson),
  });
}

/** A hold that has nearly all of many locks waits for one, and many clients wait for it. */
async function measureCrowd(): Promise<{ result: Result; copies: number[] }> {
  const settings = { max_locks_per_transaction: 256 };
  const harness = await Harness.start({ groups: 2, standbys: false, settings });
  try {
    const { cluster, db } = harness;
    await makeWide(cluster, LOCKS);
    await startLoggedController(harness);
    const shards = await shardsOf(db, 1, LOCKS);
    const node = cluster.group(1).primary;
    const reports = await Reports.start(cluster.coordinator);
    const log = new LookLog([cluster.coordinator, cluster.group(2).primary]);
    progress(`${WAITING} waiting, ${LOCKS} locks on ${await serversText(cluster)}`);

    const writer = await cluster.coordinator.connect('bench');
    await writer.query('BEGIN');
    await writer.query(AS_A_WRITER, [shards.slice(-1)]);
    const demote = { event: 'before_demote', groupid: 1, node, pause: 'writes' } as const;
    const holding = reports.send({ ...demote, cooldown: '3min', timeout: '6min' }, 'holding');
    holding.catch(() => undefined);
    const clients = await crowd(harness, shards);
    await log.take();
    const beganAt = performance.now();
    const copies = await copyLocks(await cluster.coordinator.connect('bench'));
    await delay(WAIT_MS - (performance.now() - beganAt));
    const looks = await log.take();
    const took = performance.now() - beganAt;

    await writer.end();
    await holding;
    await reports.send({ event: 'after_promote', groupid: 1, node }, 'done');
    await Promise.all(clients);
    await reports.stop();
    const situation = `${LOCKS} locks, ${WAITING} waiting`;
    return { result: { situation, holds: [took], looks }, copies };
  } finally {
    await harness.stop();
  }
}

/** Clients that wait as writers do, each for another of the locks that the hold has by then. */
async function crowd(
  { cluster, db }: Harness,
  shards: readonly string[],
): Promise<Promise<void>[]> {
  let since = performance.now();
  await waitFor(
    'the hold to have all locks but one, and no longer to be at it',
    async () => {
      if ((await heldLocks(db)) < 0.9 * LOCKS) since = performance.now();
      return performance.now() - since > SETTLED_MS;
    },
    { timeoutMs: CROWD_MS },
  );
  const sessions: Client[] = [];
  // One after the other: all at once they would not be let in before they give up.
  while (sessions.length < WAITING) sessions.push(await cluster.coordinator.connect('test'));
  const clients = sessions.map(async (session, index) => {
    const shard = shards[Math.floor((index * 0.9 * LOCKS) / WAITING)] ?? '';
    await session.query(AS_A_WRITER, [[shard]]);
    await session.end();
  });
  const through = Promise.all(clients).then(() => {
    throw new Error('clients that were to wait have gone on');
  });
  const waiting = waitFor(
    'the clients to wait',
    async () => {
      const { rows } = await db.query<{ count: number }>(WAITERS);
      const [{ count } = { count: 0 }] = rows;
      if (count < WAITING) throw new Error(`${count} wait`);
      return true;
    },
    { timeoutMs: CROWD_MS },
  );
  await Promise.race([through, waiting]);
  through.catch(() => undefined);
  return clients;
}

async function copyLocks(session: Client): Promise<number[]> {
  const took: number[] = [];
  for (let copy = 0; copy < COPIES; copy += 1) {
    const beganAt = performance.now();
    await session.query('SELECT count(*) FROM pg_locks');
    took.push(performance.now() - beganAt);
  }
  await session.end();
  return took;
}

/** Holds of a group under the mixed load of two entry nodes, ended without a change. */
async function measureDrain(pause: 'writes' | 'all', thinkMs: number): Promise<Result> {
  const harness = await Harness.start({ groups: 2, standbys: false });
  try {
    const { cluster, db } = harness;
    await startLoggedController(harness);
    const ids = await GroupIds.read(db, 1);
    const node = cluster.group(1).primary;
    const entries = [cluster.coordinator, cluster.group(2).primary];
    const traffic = mixedLoad(entries, ids, { clients: CLIENTS, thinkMs });
    const reports = await Reports.start(cluster.coordinator);
    const log = new LookLog(entries);
    const holds: number[] = [];
    for (let run = 1; run <= RUNS; run += 1) {
      await traffic.waitForProgress(PROGRESS);
      const demote = { event: 'before_demote', groupid: 1, node, pause } as const;
      const { sentAt, answeredAt } = await reports.send(demote, 'holding');
      holds.push(answeredAt - sentAt);
      await reports.send({ event: 'after_promote', groupid: 1, node }, 'done');
    }
    const { failures } = await traffic.stop();
    await reports.stop();
    const situation = `mixed load, ${thinkMs} ms of thought, ${pause}`;
    const looks = await log.take();
    progress(`${situation}: ${looks.length} looks, ${failures.length} failed`);
    return { situation, holds, looks };
  } finally {
    await harness.stop();
  }
}

async function startLoggedController(harness: Harness): Promise<void> {
  const { coordinator } = harness.cluster;
  await makeLoggedRole(harness.cluster);
  await harness.startController({
    ...CONTROLLER_SETTINGS,
    DATABASE_URL: `postgres://${LOGGED_ROLE}@${coordinator.address}/postgres`,
  });
}

function table(results: readonly Result[]): string {
  return formatTable(
    [
      'WHILE HOLDS ARE OPENED',
      'HOLDS',
      'TIME p50 / max',
      'LOOKS A HOLD',
      'AROUND OWN p50 / max',
      'AT ALL p50 / max',
      'SERVER TIME A SECOND',
    ],
    results.map(({ situation, holds, looks }) => [
      situation,
      holds.length,
      summaryText(holds),
      Math.round(looks.length / holds.length),
      summaryText(costs(looks, 'chains')),
      summaryText(costs(looks, 'waits')),
      ms(costASecond(holds, looks)),
    ]),
  );
}

function costs(looks: readonly Look[], kind: Look['kind']): number[] {
  return looks.filter((look) => look.kind === kind).map((look) => look.ms);
}

/** Of all servers together, in milliseconds a second. */
function costASecond(holds: readonly number[], looks: readonly Look[]): number {
  const spent = looks.reduce((sum, look) => sum + look.ms, 0);
  const seconds = holds.reduce((sum, hold) => sum + hold, 0) / 1_000;
  return spent / seconds;
}

function toJson({ situation, holds, looks }: Result): object {
  return {
    situation,
    holds: holds.length,
    holdMs: summary(holds),
    looks: looks.length,
    chainsMs: { ...summary(costs(looks, 'chains')), p99: p99(costs(looks, 'chains')) },
    waitsMs: { ...summary(costs(looks, 'waits')), p99: p99(costs(looks, 'waits')) },
    serverMsASecond: hundredths(costASecond(holds, looks)),
  };
}

function p99(samples: readonly number[]): number {
  return hundredths(percentile(samples, 99));
}

/** 5 is the lock that a writer takes on its shard. */
const AS_A_WRITER = 'SELECT lock_shard_metadata(5, $1::bigint[])';

const WAITERS = `
  SELECT count(*)::integer AS count
  FROM pg_stat_activity
  WHERE application_name = 'mpp-controller test' AND wait_event_type = 'Lock'`;

await bench('watch', main);
