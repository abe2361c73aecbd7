import type { Client } from 'pg';
import { formatTable } from '../src/commands/output.js';
import type { ControllerProcess } from '../test/kit/controller-process.js';
import { FaultProxy } from '../test/kit/faults/proxy.js';
import { Harness } from '../test/kit/harness.js';
import {
  waitFor,
  waitUntilReplayed,
  type Server,
  type StopMode,
} from '../test/kit/servers/index.js';
import { waitUntilSynced } from '../test/kit/standin/observe.js';
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

const CASES = ['kill', 'restart-fast', 'restart-immediate', 'failover', 'swallowed'] as const;
type Case = (typeof CASES)[number];

const RUNS = countOf('RUNS', 5);
const GROUPS = countOf('WORKER_GROUPS', 4);
/** How exact a time is that is found by looking. */
const LOOK_MS = 2;
/** What takes longer than this has not recovered. */
const MOST_MS = 180_000;

/** Times of one kind, in milliseconds. */
interface Row {
  readonly from: string;
  readonly until: string;
  readonly times: number[];
}

const ROWS = {
  taken: row('SIGKILL of the active controller', 'another takes a report'),
  held: row('the same', 'the hold is open again'),
  fast: row('PostgreSQL is back after a fast restart', 'the first claim'),
  immediate: row('the same after an immediate one', 'the first claim'),
  group0: row("promotion of the coordinator's standby", 'the row of group 0 is right there'),
  all: row('the same', 'all rows are right there'),
  everywhere: row('the same', 'and on every worker'),
  swallowed: row('the same, sessions swallowed', 'the row of group 0 is right there'),
};

function row(from: string, until: string): Row {
  return { from, until, times: [] };
}

async function main(): Promise<void> {
  const cases = new Set(choicesOf('CASES', CASES));
  const harness = await Harness.start({
    groups: GROUPS,
    standbys: false,
    coordinatorStandby: true,
  });
  try {
    say(`${await serversText(harness.cluster)}, ${GROUPS} worker groups, default settings`);
    if (cases.has('kill')) await killControllers(harness);
    if (cases.has('restart-fast')) await restart(harness, 'fast', ROWS.fast);
    if (cases.has('restart-immediate')) await restart(harness, 'immediate', ROWS.immediate);
    if (cases.has('failover')) await repeat('failover', () => failOver(harness));
    if (cases.has('swallowed')) await repeat('swallowed', () => failOverSwallowed(harness));
  } finally {
    await harness.stop();
  }
  const rows = Object.entries(ROWS).filter(([, { times }]) => times.length > 0);
  say(
    `\n${formatTable(
      ['FROM', 'UNTIL', 'TIMES', 'p50 / max'],
      rows.map(([, { from, until, times }]) => [from, until, times.length, summaryText(times)]),
    )}\n`,
  );
  sayJson('recovery', {
    groups: GROUPS,
    ...Object.fromEntries(rows.map(([name, { times }]) => [`${name}Ms`, summary(times)])),
  });
}

async function repeat(name: Case, run: () => Promise<string>): Promise<void> {
  for (let round = 1; round <= RUNS; round += 1) progress(`${name} ${round}: ${await run()}`);
}

/** The active one is killed while it holds a group, one stands by, and a report of another group comes in. */
async function killControllers(harness: Harness): Promise<void> {
  const [held, other] = [harness.cluster.group(1).primary, harness.cluster.group(2).primary];
  let active = await harness.startController(CONTROLLER_SETTINGS);
  await repeat('kill', async () => {
    const standby = harness.spawnController(CONTROLLER_SETTINGS);
    await standby.logged('that it stands by', ({ msg }) => msg.includes('stands by'));
    const hold = await harness.request({
      event: 'before_demote',
      groupid: 1,
      node: held,
      timeout: '5min',
    });
    if (hold.status !== 'holding')
      throw new Error(`the hold is ${hold.status}: ${hold.reason ?? ''}`);
    const killedAt = performance.now();
    const gone = active.end('SIGKILL');
    // It may still have been taken by the one that dies: then another takes it up again.
    const id = await harness.report({ event: 'after_promote', groupid: 2, node: other });
    const [takenMs, heldMs] = await Promise.all([
      until(harness.db, killedAt, TAKEN, [id, standby.pid]),
      until(harness.db, killedAt, HELD, [hold.id, standby.pid]),
    ]);
    ROWS.taken.times.push(takenMs);
    ROWS.held.times.push(heldMs);
    await gone;
    await harness.ended(id);
    await harness.db.query('SELECT mpp_release(1)');
    await harness.ended(hold.id);
    active = standby;
    return `taken after ${ms(takenMs)}, held after ${ms(heldMs)}`;
  });
  await active.end();
}

/** A report is there as soon as a session can be had. */
async function restart(harness: Harness, mode: StopMode, { times }: Row): Promise<void> {
  const { primary } = harness.cluster.group(1);
  const controller = await harness.startController(CONTROLLER_SETTINGS);
  await repeat(`restart-${mode}` as Case, async () => {
    await harness.db.end().catch(() => undefined);
    await harness.cluster.coordinator.restart(mode);
    const backAt = performance.now();
    await harness.reconnect();
    const id = await harness.report({ event: 'after_promote', groupid: 1, node: primary });
    times.push(await until(harness.db, backAt, TAKEN, [id, controller.pid]));
    await harness.ended(id);
    return ms(times.at(-1) ?? Number.NaN);
  });
  await controller.end();
}

/** The coordinator dies with a report for every group in its table; its standby is promoted. */
async function failOver(harness: Harness): Promise<string> {
  const { cluster } = harness;
  const group = cluster.group(0);
  const { primary: old, standby: next } = group;
  const beside = besideOf(harness, next);
  await beside.logged('that it waits', ({ msg }) => msg.startsWith('the server is a standby'));
  const wanted = new Map([[0, next.address]]);
  for (const { groupid, primary } of cluster.workers) {
    const [node] = await harness.nodes(groupid);
    const host = node?.node.startsWith('localhost') ? '127.0.0.1' : 'localhost';
    await harness.report({
      event: 'after_promote',
      groupid,
      node: { host, port: primary.port },
    });
    wanted.set(groupid, `${host}:${primary.port}`);
  }
  await waitUntilReplayed(old, next);
  await harness.db.end();
  await group.failover();
  const promotedAt = performance.now();
  const [group0Ms, coordinatorMs, ...workersMs] = await Promise.all([
    rightAfter(harness, next, new Map([[0, next.address]]), promotedAt),
    ...cluster.groups.map(({ primary }) => rightAfter(harness, primary, wanted, promotedAt)),
  ]);
  const allMs = coordinatorMs ?? Number.NaN;
  ROWS.group0.times.push(group0Ms);
  ROWS.all.times.push(allMs);
  ROWS.everywhere.times.push(Math.max(allMs, ...workersMs));
  await settle(harness, beside);
  return `group 0 ${ms(group0Ms)}, all ${ms(allMs)}, everywhere ${ms(Math.max(allMs, ...workersMs))}`;
}

/**
 * The same behind an address that moves: what the controller's sessions send is lost from then on, and no
 * one closes them. Sessions that it opens reach the new coordinator once that is promoted.
 */
async function failOverSwallowed(harness: Harness): Promise<string> {
  const group = harness.cluster.group(0);
  const { primary: old, standby: next } = group;
  const proxy = await FaultProxy.start(old);
  try {
    const address = { host: '127.0.0.1', port: proxy.port };
    const controller = harness.spawnController(CONTROLLER_SETTINGS, address);
    await controller.active();
    await waitUntilReplayed(old, next);
    await harness.db.end();
    proxy.swallow('mpp-controller');
    await group.failover();
    proxy.leadTo(next);
    const promotedAt = performance.now();
    await harness.reconnect();
    await harness.report({ event: 'after_promote', groupid: 0, node: next });
    const group0Ms = await rightAfter(harness, next, new Map([[0, next.address]]), promotedAt);
    ROWS.swallowed.times.push(group0Ms);
    await settle(harness, controller);
    return ms(group0Ms);
  } finally {
    await proxy.stop();
  }
}

/** Ends the controller and makes the old coordinator the standby. */
async function settle(harness: Harness, controller: ControllerProcess): Promise<void> {
  await harness.reconnect();
  await waitUntilSynced(harness.db);
  await controller.end();
  await harness.cluster.group(0).rejoin();
}

function besideOf(harness: Harness, server: Server): ControllerProcess {
  const { host, port } = server;
  const env = { MPP_COORDINATOR_HOST: host, MPP_COORDINATOR_PORT: String(port) };
  return harness.spawnController({ ...CONTROLLER_SETTINGS, ...env }, server);
}

/** @returns how long after `since` the statement finds a row, in milliseconds. */
async function until(db: Client, since: number, text: string, values: unknown[]): Promise<number> {
  await waitFor('recovery', async () => (await db.query(text, values)).rowCount === 1, {
    timeoutMs: MOST_MS,
    intervalMs: LOOK_MS,
  });
  return performance.now() - since;
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
        const primaries = new Map(
          rows.filter(({ role }) => role === 'primary').map(({ groupid, node }) => [groupid, node]),
        );
        return [...wanted].every(([groupid, node]) => primaries.get(groupid) === node);
      },
      { timeoutMs: MOST_MS, intervalMs: LOOK_MS },
    );
    return performance.now() - since;
  });
}

const TAKEN = `
  SELECT
  FROM mpp_tasks AS t
  JOIN mpp_controllers AS c ON c.id = t.claimed_by
  WHERE t.id = $1 AND c.pid = $2`;

/** Acknowledged by that controller, and its session is there. */
const HELD = `
  SELECT
  FROM mpp_tasks AS t
  JOIN mpp_controllers AS c ON c.id = t.claimed_by
  JOIN mpp_holds AS h ON h.groupid = t.groupid
  WHERE t.id = $1 AND c.pid = $2 AND t.status = 'holding' AND h.pid IS NOT NULL`;

await bench('recovery', main);
