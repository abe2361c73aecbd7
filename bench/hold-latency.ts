import { formatTable } from '../src/commands/table.js';
import { errorText } from '../src/postgres/session.js';
import { runCli } from '../test/support/cli.js';
import { ControllerProcess } from '../test/support/controller-process.js';
import { startCluster, type Cluster } from '../test/support/servers/index.js';
import { prepareCluster } from '../test/support/standin/prepare.js';
import {
  BARE_SCHEMA,
  bareScript,
  throughController,
  type Strategy,
  type Target,
} from './contestants.js';

const WARM_UP_ROUNDS = 50;
const ROUNDS = 300;
const STRATEGIES: readonly Strategy[] = ['pause-node', 'demoted-row'];

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

async function heading({ coordinator, testBed, hasCitus }: Cluster): Promise<string> {
  const version = await coordinator.withSession(async (session) => {
    const { rows } = await session.query<{ version: string }>('SELECT citus_version() AS version');
    return rows[0]?.version.split(' ').slice(0, 2).join(' ');
  });
  const citus = hasCitus ? version : 'the stand-in for Citus';
  return (
    `PostgreSQL ${testBed.binaries.version} with ${citus ?? 'Citus'}, ` +
    `${ROUNDS} rounds after ${WARM_UP_ROUNDS} to warm up; from report to acknowledged hold`
  );
}

async function measure(cluster: Cluster, strategy: Strategy): Promise<Samples> {
  const { coordinator, testBed } = cluster;
  const controllerProcess = ControllerProcess.start({
    coordinator,
    reaper: testBed.reaper,
    env: {
      MPP_STRATEGY: strategy,
      MPP_LOG_LEVEL: 'info',
      MPP_POLL: '1s',
      MPP_HEARTBEAT: '10s',
    },
  });
  try {
    await controllerProcess.active();
    return await alternate(cluster, strategy);
  } finally {
    await controllerProcess.end('SIGTERM');
  }
}

async function alternate(cluster: Cluster, strategy: Strategy): Promise<Samples> {
  const { coordinator } = cluster;
  const target = await targetOf(cluster, 1);
  const controller = await throughController(coordinator, target);
  const bare = await bareScript(coordinator, target, strategy);
  const samples: Samples = { controller: [], bare: [] };
  for (let round = 0; round < WARM_UP_ROUNDS + ROUNDS; round += 1) {
    const [viaController, viaScript] = [await controller.round(), await bare.round()];
    if (round < WARM_UP_ROUNDS) continue;
    samples.controller.push(viaController);
    samples.bare.push(viaScript);
  }
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
    const [ours, script] = [percentile(controller, percent), percentile(bare, percent)];
    return [`p${percent}`, ms(ours), ms(script), `${(ours / script).toFixed(2)} x`];
  });
  return `${strategy}\n${formatTable(['', 'CONTROLLER', 'BARE SCRIPT', 'RATIO'], rows)}`;
}

/** The smallest sample that at least `percent` of 100 samples do not exceed. */
function percentile(samples: readonly number[], percent: number): number {
  const sorted = samples.toSorted((a, b) => a - b);
  return sorted[Math.ceil((percent / 100) * sorted.length) - 1] ?? Number.NaN;
}

function ms(value: number): string {
  return `${value.toFixed(2)} ms`;
}

const NODEID = `
  SELECT nodeid
  FROM pg_dist_node
  WHERE groupid = $1 AND noderole = 'primary' AND nodecluster = 'default'`;

try {
  await main();
} catch (error) {
  process.stderr.write(`hold-latency: ${errorText(error)}\n`);
  process.exitCode = 1;
}
