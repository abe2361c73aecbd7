import { join } from 'node:path';
import type { Connection } from '../../../src/postgres/session.js';
import type { Binaries } from './binaries.js';
import { run } from './processes.js';
import type { Server } from './server.js';

/**
 * A stopped data folder that servers are copied from, ten times cheaper than initdb. Plain data, so
 * that one process can make it and others use it.
 */
export interface Template {
  readonly data: string;
  readonly binaries: Binaries;
}

/** Prepares the database that all servers will have, in a session of a running server. */
export type Prepare = (connection: Connection, binaries: Binaries) => Promise<void>;

const INITDB_OPTIONS = [
  '--username=postgres',
  '--auth=trust',
  '--encoding=UTF8',
  '--locale=C',
  '--no-sync',
  '--no-instructions',
  // Small WAL files: with those of 16 MB every copy is half as large again.
  '--wal-segsize=1',
];

/** Makes the data folder of `server`, which is given up to be the template. */
export async function buildTemplate(server: Server, prepare?: Prepare): Promise<Template> {
  const { binaries, data } = server;
  await run(join(binaries.bin, 'initdb'), [...INITDB_OPTIONS, '--pgdata', data], binaries);
  // It must have run once with our settings: a standby refuses the WAL that initdb itself wrote.
  await server.start();
  if (binaries.hasCitus) {
    await server.withSession((session) => session.query('CREATE EXTENSION citus'));
  }
  if (prepare !== undefined) await prepare(server.connection, binaries);
  await server.stop();
  return { data, binaries };
}
