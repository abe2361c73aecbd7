import { crash, switchover, type Act, type ActOptions } from './acts.js';
import { Interrupt, Interrupted } from './interrupt.js';
import { offer } from './keep.js';
import { Narrator } from './narrator.js';
import { readNodes, readTasks } from './reports.js';
import { Stage } from './stage.js';
import { actText, nodesText, serversText, tasksText } from './text.js';

export interface DemoOptions {
  /** Whether it stays until a signal once all is shown. */
  readonly keep: boolean;
  /** Where `MPP_PG_BIN` and the like are read. */
  readonly env: NodeJS.ProcessEnv;
}

/**
 * Starts a cluster, switches one worker group over and crashes the other under traffic, and prints
 * what happened. Everything is stopped and removed before it returns, also after a signal, of which
 * the process then dies as if it had not been caught.
 *
 * @returns the exit code: 1 when a write failed in the planned switchover
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
    if (!(error instanceof Interrupted)) throw error;
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
    const options = { stage, session, narrator, check };
    const before = await readNodes(session);
    const acts = await play(options);
    narrator.paragraph('');
    for (const act of acts) narrator.paragraph(actText(act));
    narrator.paragraph(tasksText(await readTasks(session)));
    narrator.paragraph(nodesText(before, await readNodes(session)));
    if (keep) await offer(stage, narrator, pid);
    return failedWrites(acts) === 0 ? 0 : 1;
  });
}

/** @returns the process id of the controller */
async function prepare(stage: Stage, narrator: Narrator, check: () => void): Promise<number> {
  narrator.paragraph('A switchover and a crash of Citus workers, with mpp-controller.');
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

async function play(options: ActOptions): Promise<Act[]> {
  const { narrator, check } = options;
  narrator.step('traffic starts; planned switchover of group 1');
  const first = await switchover(options, 1);
  check();
  narrator.step('traffic starts again; crash of group 2');
  const second = await crash(options, 2);
  narrator.step('done');
  return [first, second];
}

/** Writes that a planned switchover cost; it should cost none. */
function failedWrites(acts: readonly Act[]): number {
  return acts
    .filter(({ kind }) => kind === 'switchover')
    .flatMap(({ traffic }) => traffic)
    .reduce((count, { report }) => count + report.failed.write, 0);
}
