import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import type { Reaper } from '../test/kit/servers/reaper.js';
import type { BareScriptOptions } from './bare-script.js';

const PROGRAM = fileURLToPath(new URL('bare-main.js', import.meta.url));

/** The process of the bare script. */
export class BareProcess {
  readonly #child: ChildProcess;

  private constructor(child: ChildProcess) {
    this.#child = child;
  }

  /** @throws Error when it ends before it is ready */
  static async start(options: BareScriptOptions, reaper: Reaper): Promise<BareProcess> {
    const child = spawn(process.execPath, [PROGRAM, JSON.stringify(options)], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    const { pid } = child;
    if (pid !== undefined) reaper.watchProcess(pid);
    child.once('exit', () => {
      if (pid !== undefined) reaper.forgetProcess(pid);
    });
    const ended = once(child, 'exit').then(() => {
      throw new Error('the bare script ended; see above');
    });
    ended.catch(() => undefined);
    await Promise.race([once(child.stdout, 'data'), ended]);
    return new BareProcess(child);
  }

  async stop(): Promise<void> {
    if (this.#child.exitCode !== null || this.#child.signalCode !== null) return;
    const ended = once(this.#child, 'exit');
    this.#child.kill('SIGTERM');
    await ended;
  }
}
