import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { WATCHER_SOURCE } from './watcher-source.js';

/**
 * Ends registered processes and removes registered folders when this process is gone, however it
 * went: a detached watcher process reads a pipe that only we hold open, and acts when it ends.
 */
export class Reaper {
  #watcher: ChildProcess | undefined;

  /** Starts the watcher. Register nothing before. */
  start(): void {
    if (this.#watcher !== undefined) return;
    const watcher = spawn(process.execPath, ['-e', WATCHER_SOURCE], {
      cwd: '/',
      // A terminal's Ctrl-C goes to the whole process group; the watcher must outlive us.
      detached: true,
      env: { PATH: process.env['PATH'], TMPDIR: tmpdir() },
      stdio: ['pipe', 'ignore', 'ignore'],
    });
    // Without a watcher only the clean-up after a SIGKILL is lost, and `stop` still works.
    watcher.on('error', () => undefined);
    watcher.stdin.on('error', () => undefined);
    watcher.unref();
    // Nor may the pipe keep us alive; its type does not tell that it is a socket.
    if (watcher.stdin instanceof Socket) watcher.stdin.unref();
    this.#watcher = watcher;
  }

  /** From now on the process (a postmaster, or anything that ends on SIGQUIT) goes when we go. */
  watchProcess(pid: number): void {
    this.#tell({ watchProcess: pid });
  }

  /** Tell it as soon as a process has ended: its pid may soon be another's. */
  forgetProcess(pid: number): void {
    // A process can end because we have been stopped, which has forgotten everything.
    if (this.#watcher !== undefined) this.#tell({ forgetProcess: pid });
  }

  watchFolder(folder: string): void {
    this.#tell({ watchFolder: folder });
  }

  /** Ends and removes what is still registered, and the watcher with it. Resolves when all is gone. */
  async stop(): Promise<void> {
    const watcher = this.#watcher;
    this.#watcher = undefined;
    if (watcher?.pid === undefined || watcher.exitCode !== null || watcher.signalCode !== null) {
      return;
    }
    watcher.ref();
    const ended = once(watcher, 'exit');
    watcher.stdin?.end();
    await ended;
  }

  #tell(message: Record<string, string | number>): void {
    if (this.#watcher === undefined) throw new Error('the reaper is not started');
    this.#watcher.stdin?.write(`${JSON.stringify(message)}\n`);
  }
}
