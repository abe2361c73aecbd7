import { spawn, type ChildProcess } from 'node:child_process';
import { mkdir, open, readFile, writeFile } from 'node:fs/promises';
import { delimiter, join } from 'node:path';
import { createDataFolder, exists, give, removeFolder } from '../servers/folder.js';
import { resolveOwner } from '../servers/binaries.js';
import { LOOPBACK, PortAllocator } from '../servers/ports.js';
import { cleanEnvironment, run, signal, type Owner } from '../servers/processes.js';
import { Reaper } from '../servers/reaper.js';
import { waitFor } from '../servers/wait.js';

/** The programs of a real Patroni. */
export interface PatroniPrograms {
  readonly patroni: string;
  readonly etcd: string;
  /** bin folder of a PostgreSQL with pg_basebackup, which the embedded one lacks. */
  readonly pgBin: string;
}

/** Looks for them on the PATH. @returns a sentence about what is missing where there are not all. */
export async function findPatroni(): Promise<PatroniPrograms | string> {
  const [patroni, etcd] = await Promise.all([onPath('patroni'), onPath('etcd')]);
  if (patroni === undefined) return 'patroni is not installed';
  if (etcd === undefined) return 'etcd is not installed';
  const configured = process.env['MPP_PG_BIN'];
  const pgBin = configured || (await run('pg_config', ['--bindir']).catch(() => '')).trim();
  const complete = pgBin !== '' && (await exists(join(pgBin, 'pg_basebackup')));
  return complete ? { patroni, etcd, pgBin } : 'no PostgreSQL with pg_basebackup is installed';
}

async function onPath(program: string): Promise<string | undefined> {
  for (const folder of (process.env['PATH'] ?? '').split(delimiter)) {
    if (await exists(join(folder, program))) return join(folder, program);
  }
  return undefined;
}

/** One Patroni with its PostgreSQL. */
export interface PatroniNode {
  readonly name: string;
  readonly host: string;
  readonly port: number;
  /** Of its REST API. */
  readonly url: string;
}

export interface PatroniOptions {
  /** More of the section `postgresql` of each node, such as its hooks. */
  readonly postgresql?: (node: PatroniNode) => Readonly<Record<string, unknown>>;
  /** Variables of every Patroni, and so of its hooks. */
  readonly env?: Readonly<Record<string, string>>;
}

/** A group as it is run in production: etcd, and several Patronis that keep a PostgreSQL each. */
export class PatroniCluster {
  readonly #programs: PatroniPrograms;
  readonly #owner: Owner;
  readonly #folder: string;
  readonly #ports = new PortAllocator();
  readonly #reaper = new Reaper();
  readonly #children = new Map<string, ChildProcess>();
  readonly #nodes: PatroniNode[] = [];
  readonly #options: PatroniOptions;
  #etcdPort = 0;

  private constructor(
    programs: PatroniPrograms,
    owner: Owner,
    folder: string,
    options: PatroniOptions,
  ) {
    this.#programs = programs;
    this.#options = options;
    this.#owner = owner;
    this.#folder = folder;
  }

  /** @param members tags of each, by name. */
  static async start(
    programs: PatroniPrograms,
    members: Readonly<Record<string, Readonly<Record<string, boolean>>>>,
    options: PatroniOptions = {},
  ): Promise<PatroniCluster> {
    const owner = await resolveOwner();
    const folder = await createDataFolder(owner);
    const cluster = new PatroniCluster(programs, owner, folder, options);
    cluster.#reaper.start();
    cluster.#reaper.watchFolder(cluster.#folder);
    try {
      await cluster.#startEtcd();
      for (const [name, tags] of Object.entries(members)) {
        await cluster.#startNode(name, tags);
        // The first becomes the leader, so that a test knows who it is.
        await cluster.waitForLeader();
      }
      return cluster;
    } catch (error) {
      await cluster.stop();
      throw error;
    }
  }

  get nodes(): readonly PatroniNode[] {
    return this.#nodes;
  }

  /** What `GET /cluster` of the first that runs says. */
  async answer(): Promise<{ members: { name: string; role: string; state: string }[] }> {
    const running = this.#nodes.filter(({ name }) => this.#children.has(name));
    const response = await fetch(`${running[0]?.url ?? ''}/cluster`);
    return (await response.json()) as Awaited<ReturnType<PatroniCluster['answer']>>;
  }

  /** The node that has the leader key and runs. */
  async waitForLeader(other?: PatroniNode): Promise<PatroniNode> {
    return waitFor(
      'Patroni to have a leader',
      async () => {
        const { members } = await this.answer();
        const leader = members.find(({ role, state }) => role === 'leader' && state === 'running');
        if (leader === undefined || leader.name === other?.name) return undefined;
        const node = this.#nodes.find(({ name }) => name === leader.name);
        // The key is there before the promotion is over.
        const response = await fetch(`${node?.url ?? ''}/primary`);
        return response.status === 200 ? node : undefined;
      },
      { timeoutMs: 60_000, intervalMs: 100 },
    );
  }

  /** Asks Patroni for something, as patronictl does: `switchover` or `restart`. */
  async request(
    { url }: PatroniNode,
    what: 'switchover' | 'restart',
    body: Readonly<Record<string, string>>,
  ): Promise<void> {
    const response = await fetch(`${url}/${what}`, { method: 'POST', body: JSON.stringify(body) });
    if (!response.ok) throw new Error(`${what}: ${response.status} ${await response.text()}`);
  }

  /** The host of a node vanishes: Patroni and its PostgreSQL get SIGKILL at once. */
  async kill({ name }: PatroniNode): Promise<void> {
    const file = await readFile(join(this.#folder, name, 'data', 'postmaster.pid'), 'utf8');
    const [postmaster = ''] = file.split('\n');
    const ended = this.#end(name, 'SIGKILL');
    signal(Number(postmaster), 'SIGKILL');
    await ended;
  }

  /** Ends a Patroni and its PostgreSQL cleanly, as a stop of the service does. */
  async end({ name }: PatroniNode): Promise<void> {
    await this.#end(name, 'SIGTERM');
  }

  /** Idempotent. */
  async stop(): Promise<void> {
    await Promise.all(this.#nodes.map(({ name }) => this.#end(name, 'SIGTERM')));
    await this.#end('etcd', 'SIGKILL');
    await removeFolder(this.#folder);
    await this.#reaper.stop();
    await this.#ports.releaseAll();
  }

  async #startEtcd(): Promise<void> {
    const [client, peer] = [await this.#ports.allocate(), await this.#ports.allocate()];
    this.#etcdPort = client;
    const clientUrl = `http://${LOOPBACK}:${client}`;
    const peerUrl = `http://${LOOPBACK}:${peer}`;
    await this.#spawn('etcd', this.#programs.etcd, [
      ...['--name', 'etcd', '--data-dir', join(this.#folder, 'etcd'), '--unsafe-no-fsync'],
      ...['--listen-client-urls', clientUrl, '--advertise-client-urls', clientUrl],
      ...['--listen-peer-urls', peerUrl, '--initial-advertise-peer-urls', peerUrl],
      ...['--initial-cluster', `etcd=${peerUrl}`],
    ]);
    await waitFor('etcd to answer', async () => (await fetch(`${clientUrl}/health`)).ok, {
      timeoutMs: 30_000,
    });
  }

  async #startNode(name: string, tags: Readonly<Record<string, boolean>>): Promise<void> {
    const [port, rest] = [await this.#ports.allocate(), await this.#ports.allocate()];
    const folder = join(this.#folder, name);
    await mkdir(folder);
    await give(folder, this.#owner);
    const address = `${LOOPBACK}:${port}`;
    const login = { username: 'postgres', password: 'unused' };
    const node = { name, host: LOOPBACK, port, url: `http://${LOOPBACK}:${rest}` };
    const configuration = {
      scope: 'group',
      name,
      restapi: { listen: `${LOOPBACK}:${rest}`, connect_address: `${LOOPBACK}:${rest}` },
      etcd3: { host: `${LOOPBACK}:${this.#etcdPort}` },
      bootstrap: {
        dcs: { ttl: 20, loop_wait: 1, retry_timeout: 3, postgresql: { use_pg_rewind: false } },
        initdb: [{ auth: 'trust' }, { encoding: 'UTF8' }, { locale: 'C' }, 'no-sync'],
      },
      postgresql: {
        listen: address,
        connect_address: address,
        bin_dir: this.#programs.pgBin,
        data_dir: join(folder, 'data'),
        pgpass: join(folder, 'pgpass'),
        authentication: { superuser: login, replication: login },
        pg_hba: ['host all all 127.0.0.1/32 trust', 'host replication all 127.0.0.1/32 trust'],
        parameters: { fsync: 'off', unix_socket_directories: '', max_prepared_transactions: 10 },
        ...this.#options.postgresql?.(node),
      },
      tags,
    };
    const file = join(folder, 'patroni.yml');
    // Every JSON document is one of YAML.
    await writeFile(file, JSON.stringify(configuration));
    await give(file, this.#owner);
    this.#nodes.push(node);
    await this.#spawn(name, this.#programs.patroni, [file]);
  }

  async #spawn(name: string, file: string, args: readonly string[]): Promise<void> {
    const log = await open(join(this.#folder, `${name}.log`), 'a');
    const child = spawn(file, args, {
      ...this.#owner,
      cwd: '/',
      env: {
        ...cleanEnvironment(this.#owner),
        ETCD_UNSUPPORTED_ARCH: process.arch,
        ...this.#options.env,
      },
      stdio: ['ignore', log.fd, log.fd],
      detached: true,
    });
    await log.close();
    const { pid } = child;
    if (pid !== undefined) this.#reaper.watchProcess(pid);
    this.#children.set(name, child);
    child.once('exit', () => {
      this.#children.delete(name);
      if (pid !== undefined) this.#reaper.forgetProcess(pid);
    });
    child.once('error', () => this.#children.delete(name));
  }

  async #end(name: string, how: NodeJS.Signals): Promise<void> {
    const pid = this.#children.get(name)?.pid;
    if (pid === undefined) return;
    signal(pid, how);
    await waitFor(`${name} to end`, () => Promise.resolve(!this.#children.has(name)), {
      timeoutMs: 60_000,
    });
  }

  /** The end of a process's log, for the message of a test that fails. */
  async logTail(name: string): Promise<string> {
    const text = await readFile(join(this.#folder, `${name}.log`), 'utf8').catch(() => '');
    return text.split('\n').slice(-20).join('\n');
  }
}
