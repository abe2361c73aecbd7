import { errorText } from '../src/postgres/session.js';
import { crash, DETECTION_MS, switchover, type Act, type ActOptions } from './acts.js';
import { Interrupt, Interrupted } from './interrupt.js';
import { offer } from './keep.js';
import { Narrator } from './narrator.js';
import { readNodes } from './reports.js';
import { Stage } from './stage.js';
import {
  clientsText,
  crashesText,
  nodesText,
  serversText,
  switchoversText,
  faultsOf,
} from './text.js';

export interface DemoOptions {
  /** Whether it stays until a signal once all is shown. */
  readonly keep: boolean;
  /** Where `MPP_PG_BIN` and the like are read. */
  readonly env: NodeJS.ProcessEnv;
}

/**
 * Starts a cluster, switches a worker group over with each pause and crashes it with and without
 * `suspect`, under traffic, and prints what failed side by side. Everything is stopped and removed
 * before it returns, also after a signal, of which the process then dies as if it had not been caught.
 *
 * @returns the exit code: 1 when something failed that a pause should have made wait
 * @throws Error when the demo cannot go on
 */
export async function runDemo({ keep, env }: DemoOptions): Promise<number> {
  const narrator = new Narrator((text) => process.stdout.write(text));
  const interrupt = new Interrupt();
  const stage = new Stage(env);
  interrupt.start();
  try {
    const play = perform(stage, narrator, interrupt, keep);
    const exitCode = await Promise.race([play, interrupt.raised()]);
    if (keep) await interrupt.asked();
    return exitCode;
  } catch (error) {
    if (!(error instanceof Interrupted)) throw explained(error, stage);
    await close(stage, narrator);
    interrupt.stop();
    // Whoever started us sees how it really ended.
    process.kill(process.pid, error.signal);
    return 1;
  } finally {
    await close(stage, narrator);
    interrupt.stop();
  }
}

async function close(stage: Stage, narrator: Narrator): Promise<void> {
  if (stage.closed) return;
  await stage.close();
  narrator.step('everything is stopped and removed');
}

async function perform(
  stage: Stage,
  narrator: Narrator,
  interrupt: Interrupt,
  keep: boolean,
): Promise<number> {
  const check = () => interrupt.check();
  const pid = await prepare(stage, narrator, check);
  return stage.coordinator.withSession(async (session) => {
    const before = await readNodes(session);
    const { switchovers, crashes } = await play({ stage, session, narrator, check });
    narrator.lines('');
    narrator.paragraph(nodesText(before, await readNodes(session)));
    narrator.paragraph(switchoversText(switchovers));
    narrator.paragraph(crashesText(crashes, DETECTION_MS));
    if (keep) await offer(stage, narrator, pid);
    return switchovers.flatMap(faultsOf).length === 0 ? 0 : 1;
  });
}

/** A controller that has ended explains what was only seen to hang. */
function explained(error: unknown, stage: Stage): unknown {
  const failure = stage.controllerFailure;
  if (failure === undefined) return error;
  return new Error(`${errorText(error)}; ${failure}`, { cause: error });
}

/** @returns the process id of the controller */
async function prepare(stage: Stage, narrator: Narrator, check: () => void): Promise<number> {
  narrator.paragraph('Switchovers and crashes of a Citus worker, with mpp-controller.');
  narrator.step('starting a coordinator and two worker groups of a primary and a standby');
  await stage.startServers();
  check();
  await stage.registerNodes();
  const { binaries } = stage.cluster.testBed;
  narrator.paragraph(`\n${serversText(binaries, await stage.citusVersion())}`);
  narrator.step(`data and logs of the servers: ${stage.folder}`);
  narrator.step(`group 0: coordinator ${stage.coordinator.address}`);
  for (const { groupid, primary, standby } of stage.cluster.workers) {
    narrator.step(`group ${groupid}: primary ${primary.address}, standby ${standby.address}`);
  }
  check();
  narrator.step('mpp-controller migrate');
  await stage.migrate();
  check();
  narrator.step('mpp-controller run');
  const pid = await stage.startController();
  narrator.step(`the controller is active, process ${pid}`);
  check();
  return pid;
}

interface Played {
  readonly switchovers: readonly Act[];
  readonly crashes: readonly Act[];
}

async function play(options: ActOptions): Promise<Played> {
  const { narrator, stage } = options;
  narrator.paragraph(`\n${clientsText(stage.clients)}`);
  const switchovers: Act[] = [];
  for (const pause of ['none', 'writes', 'all'] as const) {
    switchovers.push(await switchover(options, pause));
  }
  const crashes = [await crash(options, false), await crash(options, true)];
  narrator.step('done');
  return { switchovers, crashes };
}
