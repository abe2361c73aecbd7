import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import pg from 'pg';
import type { Connection } from '../../../src/postgres/session.js';
import { give } from '../../kit/servers/folder.js';
import { LOOPBACK, PortAllocator } from '../../kit/servers/ports.js';
import type { Owner } from '../../kit/servers/processes.js';
import { waitFor, type Server } from '../../kit/servers/index.js';
import { ClientProcess, firstThatRuns } from './process.js';

export type PoolMode = 'session' | 'transaction';

/** Debian puts it where only root's PATH looks. */
export async function findPgbouncer(): Promise<string | undefined> {
  return firstThatRuns(['pgbouncer', '/usr/sbin/pgbouncer'], ['--version']);
}

/** A running PgBouncer in front of some servers, as the user that the servers run as. */
export class PgBouncer {
  readonly #child: ClientProcess;
  readonly #folder: string;
  readonly #ports: PortAllocator;
  readonly #port: number;

  private constructor(child: ClientProcess, folder: string, ports: PortAllocator, port: number) {
    this.#child = child;
    this.#folder = folder;
    this.#ports = ports;
    this.#port = port;
  }

  /** @param poolSize sessions with each server; clients beyond that wait for one. */
  static async start(
    file: string,
    servers: readonly Server[],
    { poolMode, poolSize }: { readonly poolMode: PoolMode; readonly poolSize: number },
  ): Promise<PgBouncer> {
    const owner = ownerOf(servers);
    const ports = new PortAllocator();
    const port = await ports.allocate();
    const folder = await mkdtemp(join(tmpdir(), 'mpp-pgbouncer-'));
    const configuration = join(folder, 'pgbouncer.ini');
    await writeFile(configuration, render(servers, port, poolMode, poolSize));
    for (const path of [folder, configuration]) await give(path, owner);
    const child = await ClientProcess.start(file, { args: [configuration], owner });
    const started = new PgBouncer(child, folder, ports, port);
    try {
      for (const server of servers) await started.#waitUntilReady(server);
    } catch (error) {
      await started.stop();
      throw new Error(`PgBouncer does not answer; it said: ${child.stderr}`, { cause: error });
    }
    return started;
  }

  /** The same server, through PgBouncer. */
  connectionTo({ port, user }: Connection): Connection {
    return { host: LOOPBACK, port: this.#port, user, database: databaseOf(port) };
  }

  async stop(): Promise<void> {
    // Without waiting for its clients.
    this.#child.signal('SIGTERM');
    await this.#child.ended();
    await rm(this.#folder, { recursive: true, force: true });
    await this.#ports.releaseAll();
  }

  async #waitUntilReady({ name, connection }: Server): Promise<void> {
    await waitFor(`PgBouncer to reach ${name}`, async () => {
      const client = new pg.Client(this.connectionTo(connection));
      client.on('error', () => undefined);
      try {
        await client.connect();
        return (await client.query('SELECT 1')).rowCount;
      } finally {
        await client.end();
      }
    });
  }
}

function databaseOf(port: Connection['port']): string {
  return `server_${String(port)}`;
}

function ownerOf(servers: readonly Server[]): Owner {
  const { uid, gid } = servers[0]?.binaries ?? {};
  return uid === undefined || gid === undefined ? {} : { uid, gid };
}

function render(
  servers: readonly Server[],
  port: number,
  poolMode: PoolMode,
  poolSize: number,
): string {
  const databases = servers.map(
    ({ connection: { host, port, user, database } }) =>
      `${databaseOf(port)} = host=${String(host)} port=${String(port)} user=${String(user)} dbname=${String(database)}`,
  );
  return `[databases]
${databases.join('\n')}

[pgbouncer]
listen_addr = ${LOOPBACK}
listen_port = ${port}
unix_socket_dir =
auth_type = any
pool_mode = ${poolMode}
default_pool_size = ${poolSize}
max_client_conn = 200
`;
}
