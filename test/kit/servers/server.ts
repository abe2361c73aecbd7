import { spawn, type ChildProcess } from 'node:child_process';
import { open, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { Client } from 'pg';
import { nameSchema } from '../../../src/postgres/schema-name.js';
import { openSession, type Connection } from '../../../src/postgres/session.js';
import type { Binaries } from './binaries.js';
import { give, removeFolder } from './folder.js';
import { LOOPBACK } from './ports.js';
import { childrenOf, cleanEnvironment, CommandError, isAlive, run, signal } from './processes.js';
import type { Reaper } from './reaper.js';
import { renderSettings, type Settings } from './settings.js';
import { waitFor } from './wait.js';

/** How to stop: `fast` ends sessions and writes a checkpoint, `immediate` only ends. */
export type StopMode = 'fast' | 'immediate';

/** What a server is made from. `folder` has, or will have, its data folder and its log. */
export interface ServerOptions {
  readonly name: string;
  readonly folder: string;
  readonly port: number;
  readonly binaries: Binaries;
  readonly reaper: Reaper;
  readonly settings: Settings;
}

const START_TIMEOUT_MS = 30_000;
const STOP_TIMEOUT_MS = 30_000;
/** In postmaster.pid, from 0: the key and the id of the shared memory. */
const SHARED_MEMORY_LINE = 6;
const STOP_SIGNALS = { fast: 'SIGINT', immediate: 'SIGQUIT' } as const;

/** One postmaster on the loopback address. Its port and data folder stay the same over restarts. */
export class Server {
  readonly name: string;
  readonly host = LOOPBACK;
  readonly port: number;
  /** The data folder. */
  readonly data: string;
  readonly binaries: Binaries;
  readonly #folder: string;
  readonly #logFile: string;
  readonly #reaper: Reaper;
  #settings: Settings;
  #child: ChildProcess | undefined;

  constructor(options: ServerOptions) {
    this.name = options.name;
    this.port = options.port;
    this.binaries = options.binaries;
    this.data = join(options.folder, 'data');
    this.#folder = options.folder;
    this.#logFile = join(options.folder, 'server.log');
    this.#reaper = options.reaper;
    this.#settings = options.settings;
  }

  /** As the superuser, to the database `postgres`. */
  get connection(): Connection {
    return { host: this.host, port: this.port, user: 'postgres', database: 'postgres' };
  }

  get address(): string {
    return `${this.host}:${this.port}`;
  }

  get isRunning(): boolean {
    return this.#child !== undefined;
  }

  /** The postmaster's process id; undefined while the server is not running. */
  get pid(): number | undefined {
    return this.#child?.pid;
  }

  /** Opens a session; the caller ends it. */
  async connect(purpose = 'test', database = 'postgres'): Promise<Client> {
    const session = await openSession({ ...this.connection, database }, purpose);
    await session.query('RESET search_path');
    return nameSchema(session, 'public');
  }

  /** Runs `work` in a session of its own, which is ended in any case. */
  async withSession<T>(work: (session: Client) => Promise<T>, database?: string): Promise<T> {
    const session = await this.connect('test', database);
    try {
      return await work(session);
    } finally {
      await session.end();
    }
  }

  /** Changes settings; they hold from the next start on. */
  configure(settings: Settings): void {
    this.#settings = { ...this.#settings, ...settings };
  }

  /**
   * Starts the postmaster and waits until it takes connections. Nothing to do when it runs.
   *
   * @throws Error with the end of the server's log when it does not come up within 30 s.
   */
  async start(): Promise<void> {
    if (this.#child !== undefined) return;
    const configuration = renderSettings({ ...this.#settings, port: this.port });
    await this.writeData('postgresql.conf', configuration);
    const log = await open(this.#logFile, 'a');
    try {
      this.#child = this.#spawnPostmaster(log.fd);
    } finally {
      await log.close();
    }
    try {
      await this.#waitUntilReady(this.#child);
    } catch (error) {
      await this.stop('immediate');
      throw new Error(
        `server ${this.name} (${this.address}) did not start; its log ends with:\n${await this.logTail()}`,
        { cause: error },
      );
    }
  }

  /** Stops the server and waits until its process is gone. Nothing to do when it is not running. */
  async stop(mode: StopMode = 'fast'): Promise<void> {
    const child = this.#child;
    if (child?.pid === undefined) return;
    signal(child.pid, STOP_SIGNALS[mode]);
    try {
      await this.#waitUntilGone(child);
    } catch (error) {
      await this.kill();
      throw error;
    }
  }

  /**
   * As behind a network that swallows everything: connections are taken, and nothing is answered.
   *
   * @returns the process ids of the backends.
   */
  async freeze(): Promise<number[]> {
    const { pid } = this;
    if (pid === undefined) return [];
    // A stopped postmaster starts no backend between our look and the signal.
    signal(pid, 'SIGSTOP');
    const backends = await childrenOf(pid);
    for (const backend of backends) signal(backend, 'SIGSTOP');
    return backends;
  }

  /** Undoes `freeze`. */
  async thaw(): Promise<void> {
    const { pid } = this;
    if (pid === undefined) return;
    for (const process of [...(await childrenOf(pid)), pid]) signal(process, 'SIGCONT');
  }

  /**
   * A crash: the postmaster and all its backends get SIGKILL at once. Resolves when all are gone,
   * as a backend that lives on would keep the shared memory and make a restart fail.
   */
  async kill(): Promise<void> {
    const child = this.#child;
    if (child?.pid === undefined) return;
    const backends = await this.freeze();
    for (const pid of [child.pid, ...backends]) signal(pid, 'SIGKILL');
    await this.#waitUntilGone(child);
    await waitFor(`the backends of server ${this.name} to be gone`, async () => {
      const alive = await Promise.all(backends.map(isAlive));
      return !alive.includes(true);
    });
    await this.#freeSharedMemory();
  }

  async restart(mode: StopMode = 'fast'): Promise<void> {
    await this.stop(mode);
    await this.start();
  }

  async isInRecovery(): Promise<boolean> {
    return this.withSession(async (session) => {
      const { rows } = await session.query<{ in_recovery: boolean }>(IS_IN_RECOVERY);
      return rows[0]?.in_recovery === true;
    });
  }

  /** Makes a standby a primary, and waits until it takes writes. */
  async promote(): Promise<void> {
    await this.withSession((session) => session.query(PROMOTE));
    await waitFor(`server ${this.name} to be promoted`, async () => !(await this.isInRecovery()));
  }

  /** Stops the server at once and deletes its folder. */
  async remove(): Promise<void> {
    await this.stop('immediate');
    await removeFolder(this.#folder);
  }

  /** Writes a file of the data folder, as the server's user would. */
  async writeData(name: string, text: string): Promise<void> {
    const path = join(this.data, name);
    await writeFile(path, text, { mode: 0o600 });
    await give(path, this.binaries);
  }

  /** The last lines of the server's log. */
  async logTail(lines = 20): Promise<string> {
    const text = await readFile(this.#logFile, 'utf8').catch(() => '');
    return text.trimEnd().split('\n').slice(-lines).join('\n');
  }

  #spawnPostmaster(log: number): ChildProcess {
    const { bin, uid, gid } = this.binaries;
    const child = spawn(join(bin, 'postgres'), ['-D', this.data], {
      uid,
      gid,
      cwd: '/',
      env: cleanEnvironment(this.binaries),
      // Ctrl-C in a terminal is ours to answer; it must not stop servers behind our back.
      detached: true,
      stdio: ['ignore', log, log],
    });
    const { pid } = child;
    if (pid !== undefined) this.#reaper.watchProcess(pid);
    const forget = () => {
      if (this.#child === child) this.#child = undefined;
      if (pid !== undefined) this.#reaper.forgetProcess(pid);
    };
    child.once('exit', forget);
    child.once('error', forget);
    return child;
  }

  /**
   * A crashed server leaves a small System V segment, which only its next start would remove; many
   * never start again, and the kernel has few. Without ipcrm it stays.
   */
  async #freeSharedMemory(): Promise<void> {
    const lockFile = await readFile(join(this.data, 'postmaster.pid'), 'utf8').catch(() => '');
    const [, id] = lockFile.split('\n')[SHARED_MEMORY_LINE]?.trim().split(/\s+/) ?? [];
    if (id === undefined) return;
    await run('ipcrm', ['-m', id]).catch((error: unknown) => {
      if (!(error instanceof CommandError)) throw error;
    });
  }

  async #waitUntilReady(child: ChildProcess): Promise<void> {
    const description = `server ${this.name} to take connections on ${this.address}`;
    const state = await waitFor(
      description,
      async () => {
        if (this.#child !== child) return 'ended' as const;
        await this.withSession((session) => session.query('SELECT 1'));
        return 'ready' as const;
      },
      { timeoutMs: START_TIMEOUT_MS },
    );
    if (state === 'ended') throw new Error(`the postmaster of server ${this.name} ended`);
  }

  async #waitUntilGone(child: ChildProcess): Promise<void> {
    const description = `server ${this.name} (pid ${child.pid ?? 'none'}) to be gone`;
    const gone = () => Promise.resolve(this.#child !== child);
    await waitFor(description, gone, { timeoutMs: STOP_TIMEOUT_MS, intervalMs: 5 });
  }
}

const IS_IN_RECOVERY = 'SELECT pg_is_in_recovery() AS in_recovery';
const PROMOTE = 'SELECT pg_promote(wait => true, wait_seconds => 30)';
