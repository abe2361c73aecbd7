import { formatTable } from '../src/commands/output.js';
import { Harness } from '../test/kit/harness.js';
import { RestServer } from '../test/kit/patroni/rest-server.js';
import { waitFor, type Group } from '../test/kit/servers/index.js';
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

/** What the HA side tells of a failover: nothing but this. */
const SOURCES = ['table', 'probe', 'patroni'] as const;
type Source = (typeof SOURCES)[number];

const CHOSEN = choicesOf('SOURCES', SOURCES);
/** Failovers of a worker with each source. */
const RUNS = countOf('RUNS', 5);
/** How exact a time is that is found by looking. */
const LOOK_MS = 5;

async function main(): Promise<void> {
  const harness = await Harness.start({ secondaries: true });
  const patroni = await RestServer.start();
  const times = new Map<Source, number[]>();
  try {
    say(`${await serversText(harness.cluster)}, default settings (a heartbeat of 10 s)`);
    for (const source of CHOSEN) times.set(source, await failOver(harness, source, patroni));
  } finally {
    await harness.stop();
    await patroni.stop();
  }
  say(`\n${table(times)}\n`);
  const results = [...times].map(([source, samples]) => ({ source, ...summary(samples) }));
  sayJson('unreported', { runs: RUNS, results });
}

/** @returns how long after each promotion the rows of the group were right, in milliseconds. */
async function failOver(harness: Harness, source: Source, patroni: RestServer): Promise<number[]> {
  const group = harness.cluster.group(1);
  const times: number[] = [];
  await tell(harness, group, source, patroni, 'streaming');
  const controller = await harness.startController({
    ...CONTROLLER_SETTINGS,
    MPP_TOPOLOGY: source,
    ...(source === 'patroni' ? { MPP_PATRONI: `1=${patroni.url}` } : {}),
  });
  for (let run = 1; run <= RUNS; run += 1) {
    await group.failover();
    const promotedAt = performance.now();
    await tell(harness, group, source, patroni, 'stopped');
    await untilRight(harness, group);
    times.push(performance.now() - promotedAt);
    progress(`${source}, failover ${run}: ${ms(times.at(-1) ?? Number.NaN)}`);
    await group.rejoin();
    await tell(harness, group, source, patroni, 'streaming');
    await untilRight(harness, group);
    await waitUntilSynced(harness.db);
  }
  const { rowCount } = await harness.db.query("SELECT FROM mpp_tasks WHERE source = 'client'");
  if (rowCount !== 0) throw new Error('a failover was reported that no client should report');
  await controller.end();
  await harness.db.query('DELETE FROM mpp_members');
  return times;
}

/** What a hook says, or Patroni answers from now on. Nothing is reported to the probe. */
async function tell(
  harness: Harness,
  { groupid, primary, standby }: Group,
  source: Source,
  patroni: RestServer,
  state: string,
): Promise<void> {
  const members = [
    { node: primary, role: 'primary', state: 'running' },
    { node: standby, role: 'replica', state },
  ];
  if (source === 'patroni') {
    patroni.members = members.map(({ node: { host, port }, role, state }) => {
      return { host, port, role: role === 'primary' ? 'leader' : role, state };
    });
  }
  if (source !== 'table') return;
  for (const { node, role, state } of members) {
    const member = [groupid, node.host, node.port, role, state];
    await harness.db.query('SELECT mpp_report($1, $2, $3, $4, $5)', member);
  }
}

async function untilRight(harness: Harness, { groupid, primary }: Group): Promise<void> {
  await waitFor(
    `the right row of group ${groupid}`,
    async () => {
      const rows = await harness.nodes(groupid);
      return rows.some(({ role, node }) => role === 'primary' && node === primary.address);
    },
    { timeoutMs: 60_000, intervalMs: LOOK_MS },
  );
}

function table(times: ReadonlyMap<Source, readonly number[]>): string {
  const rows = [...times].map(([source, samples]) => [source, RUNS, summaryText(samples)]);
  return formatTable(['MPP_TOPOLOGY', 'FAILOVERS', 'PROMOTION TO RIGHT ROW p50 / max'], rows);
}

await bench('unreported', main);
