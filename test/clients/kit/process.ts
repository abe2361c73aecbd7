import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { CommandError, run, type Owner } from '../../kit/servers/processes.js';
import { waitFor } from '../../kit/servers/wait.js';

export interface ProcessOptions {
  readonly args: readonly string[];
  readonly env?: Readonly<Record<string, string>>;
  readonly owner?: Owner;
}

/** A program of a test that runs beside it. Its standard input stays open until `closeInput`. */
export class ClientProcess {
  readonly #child: ChildProcess;
  readonly #closed: Promise<unknown>;
  #stdout = '';
  #stderr = '';

  private constructor(child: ChildProcess) {
    this.#child = child;
    this.#closed = once(child, 'close');
    this.#closed.catch(() => undefined);
    child.stdout?.setEncoding('utf8').on('data', (text: string) => (this.#stdout += text));
    child.stderr?.setEncoding('utf8').on('data', (text: string) => (this.#stderr += text));
    // A program that has ended takes no input; its exit code says why.
    child.stdin?.on('error', () => undefined);
  }

  /** @throws Error when there is no such program. */
  static async start(file: string, options: ProcessOptions): Promise<ClientProcess> {
    const { args, env = {}, owner = {} } = options;
    const child = spawn(file, args, {
      ...owner,
      cwd: '/',
      env: { PATH: process.env['PATH'], LC_ALL: 'C.UTF-8', ...env },
    });
    const started = new ClientProcess(child);
    await once(child, 'spawn');
    return started;
  }

  get stdout(): string {
    return this.#stdout;
  }

  get stderr(): string {
    return this.#stderr;
  }

  get exitCode(): number | null {
    return this.#child.exitCode;
  }

  get hasEnded(): boolean {
    return this.#child.exitCode !== null || this.#child.signalCode !== null;
  }

  write(text: string): void {
    this.#child.stdin?.write(text);
  }

  closeInput(): void {
    this.#child.stdin?.end();
  }

  signal(name: NodeJS.Signals): void {
    if (!this.hasEnded) this.#child.kill(name);
  }

  /** Waits for its end; one that does not come in time is killed, and an error. */
  async ended(timeoutMs = 60_000): Promise<void> {
    try {
      await waitFor(`${this.#child.spawnfile} to end`, () => Promise.resolve(this.hasEnded), {
        timeoutMs,
      });
    } catch (error) {
      this.#child.kill('SIGKILL');
      throw new Error(`it had printed:\n${this.#stdout}\n${this.#stderr}`, { cause: error });
    } finally {
      await this.#closed;
    }
  }
}

/** The first of these programs that runs with `args` and ends with 0. */
export async function firstThatRuns(
  files: readonly string[],
  args: readonly string[],
): Promise<string | undefined> {
  for (const file of files) {
    try {
      await run(file, args);
      return file;
    } catch (error) {
      if (!(error instanceof CommandError)) throw error;
    }
  }
  return undefined;
}
