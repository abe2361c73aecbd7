import { Command } from 'commander';
import { eachDatabase, type Settings } from '../config/settings.js';
import type { AbstractMPP } from '../mpp/abstract.js';
import { DatabaseStateError } from '../errors.js';
import { createMPP } from '../mpp/index.js';
import { closeSession, openSession } from '../postgres/session.js';
import { applyMigrations } from '../postgres/migrate.js';
import { addSettings, readSettings, type Io } from './flags.js';

const USES = ['schema', 'databases', 'migrateTimeoutMs'] as const;

export function migrateCommand(io: Io): Command {
  const command = new Command('migrate').description(
    'make the control table and its functions, or bring them up to this version',
  );
  return addSettings(command, USES).action(async () => {
    const settings = readSettings(io, command, USES);
    // Refuses settings that do not fit the MPP database, before anything is made.
    const mpp = createMPP(settings);
    const all = eachDatabase(settings);
    // Before anything is made in any of them.
    for (const one of all) await check(one, mpp);
    for (const one of all) await migrate(one, io);
  });
}

/** @throws DatabaseStateError in a database without the catalog, and on a worker. */
async function check(settings: Settings, mpp: AbstractMPP): Promise<void> {
  const client = await openSession(settings.connection, 'migrate');
  try {
    await mpp.requireCatalog(client);
    await mpp.refuseWorker(client);
  } catch (error) {
    if (!(error instanceof DatabaseStateError) || settings.databases === undefined) throw error;
    const { code, message } = error;
    const database = settings.connection.database ?? '';
    throw new DatabaseStateError(code, `database ${database} of MPP_DATABASES: ${message}`);
  } finally {
    await client.end().catch(() => undefined);
  }
}

async function migrate(settings: Settings, io: Io): Promise<void> {
  const { connection, databases, schema, migrateTimeoutMs } = settings;
  const client = await openSession(connection, 'migrate');
  try {
    const names = await applyMigrations(client, {
      schema,
      lockTimeoutMs: migrateTimeoutMs,
      notice: (line) => io.print(line),
    });
    const where = databases === undefined ? '' : ` of database ${connection.database ?? ''}`;
    for (const name of names) io.print(`applied ${name}`);
    const rest = names.length === 0 ? ': nothing to do' : '';
    io.print(`schema ${schema}${where} is up to date${rest}`);
  } finally {
    await closeSession(client);
  }
}
