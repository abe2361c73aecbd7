import { copyFile, mkdtemp, readFile, rm } from 'node:fs/promises';
import { chmod } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { packageRoot } from '../../../src/package-root.js';
import { waitFor, type Server } from '../servers/index.js';

const FILES = [
  'root.crt',
  'other-root.crt',
  'empty.crl',
  'revoked.crl',
  'client.crt',
  'client.key',
  'client-encrypted.key',
] as const;

export type TlsFile = (typeof FILES)[number];

/** A folder with what a client needs, with the rights that PostgreSQL's clients demand of keys. */
export class ClientFiles {
  readonly folder: string;

  private constructor(folder: string) {
    this.folder = folder;
  }

  static async make(): Promise<ClientFiles> {
    const files = new ClientFiles(await mkdtemp(join(tmpdir(), 'mpp-tls-')));
    for (const name of FILES) {
      await copyFile(sourceOf(name), files.path(name));
      await chmod(files.path(name), name.endsWith('.key') ? 0o600 : 0o644);
    }
    return files;
  }

  path(name: TlsFile): string {
    return join(this.folder, name);
  }

  async remove(): Promise<void> {
    await rm(this.folder, { recursive: true });
  }
}

/** Turns TLS on in a running server; its certificate is for `db.example` and 127.0.0.1. */
export async function turnTlsOn(server: Server): Promise<void> {
  for (const name of ['server.crt', 'server.key', 'root.crt']) {
    await server.writeData(name, await readFile(sourceOf(name), 'utf8'));
  }
  await server.withSession(async (session) => {
    await session.query("ALTER SYSTEM SET ssl_ca_file = 'root.crt'");
    // Debian's file is a snake oil that the server may not read.
    await session.query("ALTER SYSTEM SET ssl_cert_file = 'server.crt'");
    await session.query("ALTER SYSTEM SET ssl_key_file = 'server.key'");
    await session.query('ALTER SYSTEM SET ssl = on');
  });
  await reload(server);
  await waitFor('TLS to be on', () =>
    server.withSession(async (session) => {
      const { rows } = await session.query<{ ssl: string }>('SHOW ssl');
      return rows[0]?.ssl === 'on';
    }),
  );
}

/** Replaces pg_hba.conf; the first lines are for the superuser `postgres` of the tests. */
export async function setHba(server: Server, lines: readonly string[]): Promise<void> {
  const all = ['host all postgres 127.0.0.1/32 trust', ...lines];
  await server.writeData('pg_hba.conf', `${all.join('\n')}\n`);
  await reload(server);
  await waitFor('pg_hba.conf to be read', () =>
    server.withSession(async (session) => {
      const { rows } = await session.query<{ same: boolean }>(IS_LOADED);
      return rows[0]?.same;
    }),
  );
}

async function reload(server: Server): Promise<void> {
  await server.withSession((session) => session.query('SELECT pg_reload_conf()'));
}

function sourceOf(name: string): string {
  return join(packageRoot(), 'test', 'kit', 'tls', 'files', name);
}

/** Read after the file was written. */
const IS_LOADED = `
  SELECT pg_conf_load_time() >= (pg_stat_file('pg_hba.conf')).modification AS same`;
