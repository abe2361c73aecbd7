import type { Client } from 'pg';
import { formatTable } from '../src/commands/table.js';
import type { ControllerProcess } from '../test/support/controller-process.js';
import { Harness } from '../test/support/harness.js';
import { waitFor, waitUntilReplayed, type Server } from '../test/support/servers/index.js';
import { waitUntilSynced } from '../test/support/standin/observe.js';
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

/** Kills of the active controller. */
const KILLS = countOf('KILLS', 20);
/** Failovers of the coordinator. */
const RUNS = countOf('RUNS', 5);
const GROUPS = countOf('GROUPS', 4);
/** How exact a time is that is found by looking. */
const LOOK_MS = 2;

interface Failover {
  /** From the end of the promotion, in milliseconds, until all rows are right on the coordinator. */
  readonly coordinatorMs: number;
  /** The same on the coordinator and on every worker. */
  readonly everywhereMs: number;
}

async function main(): Promise<void> {
  const kills: number[] = [];
  const failovers: Failover[] = [];
  const harness = await Harness.start({
    groups: GROUPS,
    standbys: false,
    coordinatorStandby: true,
  });
  try {
    say(`${await serversText(harness.cluster)}, ${GROUPS} worker groups, default settings`);
    await killControllers(harness, kills);
    for (let run = 1; run <= RUNS; run += 1) {
      const failover = await failOver(harness);
      failovers.push(failover);
      const { coordinatorMs, everywhereMs } = failover;
      progress(`failover ${run}: coordinator ${ms(coordinatorMs)}, everywhere ${ms(everywhereMs)}`);
    }
  } finally {
    await harness.stop();
  }
  const coordinator = failovers.map(({ coordinatorMs }) => coordinatorMs);
  const everywhere = failovers.map(({ everywhereMs }) => everywhereMs);
  say(`\n${table(kills, coordinator, everywhere)}\n`);
  sayJson('failover', {
    groups: GROUPS,
    controllerMs: summary(kills),
    coordinatorMs: summary(coordinator),
    everywhereMs: summary(everywhere),
  });
}

/** The active one is killed while one stands by, and a report is there: who takes it, and when? */
async function killControllers(harness: Harness, times: number[]): Promise<void> {
  const { primary } = harness.cluster.group(1);
  let active = await harness.startController(CONTROLLER_SETTINGS);
  for (let round = 1; round <= KILLS; round += 1) {
    const standby = harness.spawnController(CONTROLLER_SETTINGS);
    await standby.logged('that it stands by', ({ msg }) => msg.includes('stands by'));
    const killedAt = performance.now();
    const gone = active.end('SIGKILL');
    // It may still have been taken by the one that dies: then another takes it up again.
    const id = await harness.report({ event: 'after_promote', groupid: 1, node: primary });
    await waitFor(
      'another to take the task',
      async () => {
        const { rowCount } = await harness.db.query(TAKEN, [id, standby.pid]);
        return rowCount === 1;
      },
      { intervalMs: LOOK_MS },
    );
    times.push(performance.now() - killedAt);
    await gone;
    await harness.ended(id);
    active = standby;
    progress(`kill ${round}: ${ms(times.at(-1) ?? Number.NaN)}`);
  }
  await active.end();
}

/** The coordinator dies with a report for every group in its table; its standby is promoted. */
async function failOver(harness: Harness): Promise<Failover> {
  const { cluster } = harness;
  const group = cluster.group(0);
  const { primary: old, standby: next } = group;
  const beside = besideOf(harness, next);
  await beside.logged('that it waits', ({ msg }) => msg.startsWith('the server is a standby'));
  const wanted = new Map([[0, next.address]]);
  for (const { groupid, primary } of cluster.workers) {
    const [row] = await harness.nodes(groupid);
    const host = row?.node.startsWith('localhost') ? '127.0.0.1' : 'localhost';
    const node = { host, port: primary.port };
    await harness.report({ event: 'after_promote', groupid, node });
    wanted.set(groupid, `${host}:${primary.port}`);
  }
  await waitUntilReplayed(old, next);
  await harness.db.end();
  await group.failover();
  const promotedAt = performance.now();
  const [coordinatorMs, ...workersMs] = await Promise.all(
    cluster.groups.map(({ primary }) => rightAfter(harness, primary, wanted, promotedAt)),
  );
  await harness.reconnect();
  await waitUntilSynced(harness.db);
  await beside.end();
  await group.rejoin();
  return {
    coordinatorMs: coordinatorMs ?? Number.NaN,
    everywhereMs: Math.max(coordinatorMs ?? Number.NaN, ...workersMs),
  };
}

function besideOf(harness: Harness, server: Server): ControllerProcess {
  const { host, port } = server;
  const env = { MPP_COORDINATOR_HOST: host, MPP_COORDINATOR_PORT: String(port) };
  return harness.spawnController({ ...CONTROLLER_SETTINGS, ...env }, server);
}

/** @returns how long after `since` a node has the primaries that are wanted, in milliseconds. */
async function rightAfter(
  harness: Harness,
  server: Server,
  wanted: ReadonlyMap<number, string>,
  since: number,
): Promise<number> {
  return server.withSession(async (session: Client) => {
    await waitFor(
      `the right rows on ${server.name}`,
      async () => {
        const rows = await harness.nodes(undefined, session);
        const primaries = rows.filter(({ role }) => role === 'primary');
        return primaries.every(({ groupid, node }) => wanted.get(groupid) === node);
      },
      { timeoutMs: 60_000, intervalMs: LOOK_MS },
    );
    return performance.now() - since;
  });
}

function table(kills: number[], coordinator: number[], everywhere: number[]): string {
  return formatTable(
    ['FROM', 'UNTIL', 'TIMES', 'p50 / max'],
    [
      ['SIGKILL of the active controller', 'another takes a task', KILLS, summaryText(kills)],
      ['promotion of the standby', 'all rows right there', RUNS, summaryText(coordinator)],
      ['the same', 'and on every worker', RUNS, summaryText(everywhere)],
    ],
  );
}

const TAKEN = `
  SELECT
  FROM mpp_tasks AS t
  JOIN mpp_controllers AS c ON c.id = t.claimed_by
  WHERE t.id = $1 AND c.pid = $2`;

await bench('failover', main);
