import { formatTable } from '../src/commands/output.js';
import { runCli } from '../test/kit/cli.js';
import { ControllerProcess } from '../test/kit/controller-process.js';
import { startCluster, type Cluster, type Server } from '../test/kit/servers/index.js';
import { prepareCluster } from '../test/kit/standin/prepare.js';
import { BareProcess } from './bare-process.js';
import { BARE_CONTRACT, BARE_SCHEMA, type Strategy } from './bare-script.js';
import { bench, serversText } from './bench.js';
import { percentile } from './figures.js';
import { CONTROLLER_CONTRACT, Reporter, type Target } from './reporter.js';

const WARM_UP_ROUNDS = 50;
const ROUNDS = 300;
const STRATEGIES: readonly Strategy[] = ['pause-node', 'demoted-row'];

/** What a controller has without any setting; the test support would change some. */
const DEFAULT_SETTINGS = { MPP_POLL: '1s', MPP_HEARTBEAT: '10s', MPP_LOG_LEVEL: 'info' };

/** How long rounds took, in milliseconds. */
interface Samples {
  readonly controller: number[];
  readonly bare: number[];
}

/**
 * Time from report to acknowledged hold, through the controller and by a bare script, in turn.
 * See README.md in this folder.
 */
async function main(): Promise<void> {
  const cluster = await startCluster({ groups: 2, standbys: false });
  try {
    await prepareCluster(cluster);
    await cluster.coordinator.withSession((session) => session.query(BARE_SCHEMA));
    const url = `postgresql://postgres@${cluster.coordinator.address}/postgres`;
    const { exitCode, stderr } = await runCli(['migrate'], { DATABASE_URL: url });
    if (exitCode !== 0) throw new Error(`mpp-controller migrate failed: ${stderr.trim()}`);
    process.stdout.write(`${await heading(cluster)}\n\n`);
    for (const strategy of chosenStrategies(process.env['MPP_STRATEGY'])) {
      process.stdout.write(`${resultText(strategy, await measure(cluster, strategy))}\n\n`);
    }
  } finally {
    await cluster.stop();
  }
}

function chosenStrategies(wanted: string | undefined): readonly Strategy[] {
  if (wanted === undefined || wanted === '') return STRATEGIES;
  const strategy = STRATEGIES.find((known) => known === wanted);
  if (strategy !== undefined) return [strategy];
  throw new Error(`MPP_STRATEGY is '${wanted}'; this measures ${STRATEGIES.join(' and ')}`);
}

async function heading(cluster: Cluster): Promise<string> {
  return (
    `${await serversText(cluster)}, ` +
    `${ROUNDS} rounds after ${WARM_UP_ROUNDS} to warm up; from report to acknowledged hold`
  );
}

async function measure(cluster: Cluster, strategy: Strategy): Promise<Samples> {
  const { coordinator, testBed } = cluster;
  const { reaper } = testBed;
  const target = await targetOf(cluster, 1);
  const controller = ControllerProcess.start({
    coordinator,
    reaper,
    env: { ...DEFAULT_SETTINGS, MPP_STRATEGY: strategy },
  });
  try {
    await controller.active();
    const { connection } = coordinator;
    const bare = await BareProcess.start({ connection, strategy, target }, reaper);
    try {
      return await alternate(coordinator, target);
    } finally {
      await bare.stop();
    }
  } finally {
    await controller.end('SIGTERM');
  }
}

async function alternate(coordinator: Server, target: Target): Promise<Samples> {
  const controller = await Reporter.start(coordinator, CONTROLLER_CONTRACT, target);
  const bare = await Reporter.start(coordinator, BARE_CONTRACT, target);
  const samples: Samples = { controller: [], bare: [] };
  for (let round = 0; round < WARM_UP_ROUNDS + ROUNDS; round += 1) {
    const [viaController, viaScript] = [await controller.round(), await bare.round()];
    if (round < WARM_UP_ROUNDS) continue;
    samples.controller.push(viaController);
    samples.bare.push(viaScript);
  }
  await Promise.all([controller.stop(), bare.stop()]);
  return samples;
}

async function targetOf(cluster: Cluster, groupid: number): Promise<Target> {
  const { host, port } = cluster.group(groupid).primary;
  const nodeid = await cluster.coordinator.withSession(async (session) => {
    const { rows } = await session.query<{ nodeid: number }>(NODEID, [groupid]);
    return rows[0]?.nodeid;
  });
  if (nodeid === undefined) throw new Error(`group ${groupid} has no primary in pg_dist_node`);
  return { nodeid, groupid, host, port };
}

function resultText(strategy: Strategy, { controller, bare }: Samples): string {
  const rows = [50, 99].map((percent) => {
    const [own, script] = [percentile(controller, percent), percentile(bare, percent)];
    return [`p${percent}`, ms(own), ms(script), `${(own / script).toFixed(2)} x`];
  });
  return `${strategy}\n${formatTable(['', 'CONTROLLER', 'BARE SCRIPT', 'RATIO'], rows)}`;
}

function ms(value: number): string {
  return `${value.toFixed(2)} ms`;
}

const NODEID = `
  SELECT nodeid
  FROM pg_dist_node
  WHERE groupid = $1 AND noderole = 'primary' AND nodecluster = 'default'`;

await bench('hold-latency', main);
