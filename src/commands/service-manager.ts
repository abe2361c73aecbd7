import { spawn } from 'node:child_process';
import { ControllerHealth } from '../controller/health.js';
import type { Logger } from '../logger.js';
import { type ControllerState, NO_OBSERVER, type Observer } from '../tasks/observer.js';

interface ServiceManagerOptions {
  readonly env: NodeJS.ProcessEnv;
  readonly logger: Logger;
  readonly pollMs: number;
  /** Sends one notification, such as `READY=1`. */
  readonly send?: (assignments: readonly string[]) => Promise<void>;
  /** A clock in milliseconds. */
  readonly now?: () => number;
}

/** How long systemd-notify may take, in milliseconds. */
const SEND_MS = 5_000;

/** What `systemctl status` shows. */
const STATES: Readonly<Record<ControllerState, string>> = {
  connecting: 'waiting for the coordinator; see the log',
  standby: 'standing by',
  active: 'active',
  reconnecting: 'active, opening its control session again',
  ending: 'rolling back its holds',
};

/**
 * Lets systemd know what the controllers of this process do, where NOTIFY_SOCKET is set: READY=1, STATUS=…,
 * STOPPING=1, and WATCHDOG=1 for as long as their loops go on. A server that does not answer ends no loop. What cannot
 * be sent is logged once and changes nothing.
 */
export class ServiceManager {
  readonly #options: ServiceManagerOptions;
  readonly #isThere: boolean;
  readonly #controllers = new Map<string | undefined, ControllerHealth>();
  readonly #unsent = new Map<string, string>();
  #sending: Promise<void> | undefined;
  #timer: NodeJS.Timeout | undefined;
  #isReady = false;
  #hasFailed = false;
  #wasStuck = false;

  constructor(options: ServiceManagerOptions) {
    this.#options = options;
    this.#isThere = Boolean(options.env['NOTIFY_SOCKET']);
  }

  /** For the controller of one database of MPP_DATABASES; without it, for the one that there is. */
  readonly observe = (database: string | undefined): Observer => {
    const health = new ControllerHealth(this.#options.pollMs, this.#options.now);
    this.#controllers.set(database, health);
    return {
      ...NO_OBSERVER,
      stateIs: (state) => {
        health.enter(state);
        this.#showStates(state);
      },
      turned: () => health.turned(),
    };
  };

  start(): void {
    const everyMs = watchdogOf(this.#options.env, process.pid);
    if (!this.#isThere || everyMs === undefined || this.#timer !== undefined) return;
    this.ping();
    this.#timer = setInterval(() => this.ping(), everyMs / 2);
    this.#timer.unref();
  }

  /** A loop that stands ends the pings; systemd then ends the process, and PostgreSQL rolls its holds back. */
  ping(): void {
    const isStuck = [...this.#controllers.values()].some((health) => health.isStuck);
    if (!isStuck) this.#notify('WATCHDOG', '1');
    else if (!this.#wasStuck) {
      const line = 'the loop of this controller stands; systemd gets no ping until it goes on';
      this.#options.logger.error(line);
    }
    this.#wasStuck = isStuck;
  }

  /** The process is asked to stop. */
  stopping(): void {
    this.#notify('STOPPING', '1');
  }

  /** No more pings. Resolves when all has been sent. */
  async stop(): Promise<void> {
    clearInterval(this.#timer);
    await this.#sending;
  }

  /** Ready once each has found out what it is: one that waits for a server that is down is ready as well. */
  #showStates(newest: ControllerState): void {
    const texts = [...this.#controllers].map(([database, { state }]) =>
      database === undefined ? STATES[state] : `${database}: ${STATES[state]}`,
    );
    this.#notify('STATUS', texts.join('; '));
    if (this.#isReady || newest === 'ending') return;
    this.#isReady = true;
    this.#notify('READY', '1');
  }

  #notify(name: string, value: string): void {
    if (!this.#isThere) return;
    this.#unsent.set(name, value);
    this.#sending ??= this.#sendAll().finally(() => (this.#sending = undefined));
  }

  /** One at a time, so that an older status never arrives last. */
  async #sendAll(): Promise<void> {
    const { send = sendBySystemdNotify(this.#options.env), logger } = this.#options;
    // What is said in the same turn goes together.
    await Promise.resolve();
    while (this.#unsent.size > 0) {
      const assignments = [...this.#unsent].map(([name, value]) => `${name}=${value}`);
      this.#unsent.clear();
      try {
        await send(assignments);
      } catch (error) {
        if (this.#hasFailed) continue;
        this.#hasFailed = true;
        logger.warn({ err: error }, 'systemd cannot be notified: is systemd-notify installed?');
      }
    }
  }
}

/**
 * How often systemd wants a ping, in milliseconds. Pure.
 *
 * @returns undefined where it wants none, or not from this process
 */
export function watchdogOf(env: NodeJS.ProcessEnv, pid: number): number | undefined {
  const usec = Number(env['WATCHDOG_USEC']);
  if (!Number.isSafeInteger(usec) || usec < 1_000) return undefined;
  return [undefined, '', String(pid)].includes(env['WATCHDOG_PID']) ? usec / 1_000 : undefined;
}

/** Node.js has no datagram sockets of the Unix kind. The program gets no setting, so no password. */
function sendBySystemdNotify({
  PATH,
  NOTIFY_SOCKET,
}: NodeJS.ProcessEnv): (assignments: readonly string[]) => Promise<void> {
  return (assignments) =>
    new Promise((resolve, reject) => {
      const child = spawn('systemd-notify', ['--', ...assignments], {
        env: { PATH, NOTIFY_SOCKET },
        stdio: 'ignore',
        timeout: SEND_MS,
        killSignal: 'SIGKILL',
      });
      // It keeps no controller from ending.
      child.unref();
      child.once('error', reject);
      child.once('exit', (code, signal) => {
        if (code === 0) resolve();
        else reject(new Error(`systemd-notify ended with ${code ?? signal ?? 'nothing'}`));
      });
    });
}
