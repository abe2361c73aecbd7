import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import type { Reaper } from './servers/reaper.js';
import { builtCli, type Program } from './cli.js';
import { waitFor } from './servers/wait.js';

/** One line of the controller's log. */
export type LogLine = Readonly<Record<string, unknown>> & { readonly msg: string };

export interface ControllerProcessOptions {
  readonly coordinator: { readonly host: string; readonly port: number };
  readonly reaper: Reaper;
  /** MPP_* settings, over those that make tests quick. */
  readonly env?: Readonly<Record<string, string>>;
  /** Another installation than this checkout. */
  readonly program?: Program;
}

/** `mpp-controller run` as a process of its own, so that it can be killed like one. */
export class ControllerProcess {
  readonly #child: ChildProcess;
  readonly #reaper: Reaper;
  readonly #log: LogLine[] = [];
  readonly #lines: string[] = [];
  #stderr = '';

  private constructor(child: ChildProcess, reaper: Reaper) {
    this.#child = child;
    this.#reaper = reaper;
    if (child.pid !== undefined) reaper.watchProcess(child.pid);
    child.once('exit', () => {
      if (child.pid !== undefined) reaper.forgetProcess(child.pid);
    });
    if (child.stdout) {
      createInterface({ input: child.stdout }).on('line', (line) => {
        this.#lines.push(line);
        this.#log.push(JSON.parse(line) as LogLine);
      });
    }
    child.stderr?.on('data', (chunk: Buffer) => (this.#stderr += chunk.toString()));
  }

  static start(options: ControllerProcessOptions): ControllerProcess {
    const { coordinator, reaper, env = {}, program = builtCli() } = options;
    const { host, port } = coordinator;
    const [file, ...args] = program;
    const child = spawn(file, [...args, 'run'], {
      env: {
        PATH: process.env['PATH'],
        DATABASE_URL: `postgres://postgres@${host}:${port}/postgres`,
        MPP_LOG_LEVEL: 'debug',
        MPP_POLL: '200ms',
        MPP_HEARTBEAT: '500ms',
        // What a test is about is not changed by the probe, nor by readers that wait.
        MPP_PAUSE: 'writes',
        MPP_TOPOLOGY: 'table',
        ...env,
      },
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    return new ControllerProcess(child, reaper);
  }

  get pid(): number {
    if (this.#child.pid === undefined) throw new Error('the controller did not start');
    return this.#child.pid;
  }

  get log(): readonly LogLine[] {
    return this.#log;
  }

  /** The same as it was written, for what is lost when it is read. */
  get lines(): readonly string[] {
    return this.#lines;
  }

  get stderr(): string {
    return this.#stderr;
  }

  get exitCode(): number | null {
    return this.#child.exitCode;
  }

  /** Waits for a line of the log. */
  async logged(what: string, test: (line: LogLine) => boolean): Promise<LogLine> {
    const look = (): Promise<LogLine | undefined> => {
      const line = this.#log.find(test);
      if (line === undefined && this.exitCode !== null) {
        throw new Error(`it ended with exit code ${this.exitCode}: ${this.#stderr}`);
      }
      return Promise.resolve(line);
    };
    return waitFor(`the controller to log ${what}`, look, { timeoutMs: 20_000 });
  }

  async active(): Promise<void> {
    await this.logged('that it is active', ({ msg }) => msg.startsWith('active,'));
  }

  /** The reader of its log goes away. */
  closeLog(): void {
    this.#child.stdout?.destroy();
  }

  signal(signal: NodeJS.Signals): void {
    this.#child.kill(signal);
  }

  /**
   * Sends a signal and waits for the end.
   *
   * @returns the exit code, null when a signal ended it.
   * @throws Error when Node.js has warned of something, such as two statements at once on one session.
   */
  async end(signal: NodeJS.Signals = 'SIGTERM'): Promise<number | null> {
    if (this.#child.exitCode !== null || this.#child.signalCode !== null) return this.exitCode;
    const exited = once(this.#child, 'exit');
    this.#child.kill(signal);
    // A stopped process takes no other signal than SIGKILL until it goes on.
    if (signal !== 'SIGKILL') this.#child.kill('SIGCONT');
    await exited;
    if (this.#stderr.includes('Warning:')) throw new Error(`it was warned: ${this.#stderr}`);
    return this.exitCode;
  }
}
