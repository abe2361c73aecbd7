import { Command } from 'commander';
import type { Settings } from '../config.js';
import { eachDatabase } from '../databases.js';
import { createMPP } from '../mpp/index.js';
import { closeSession } from '../postgres/close.js';
import { applyMigrations } from '../postgres/migrate.js';
import { openSession } from '../postgres/session.js';
import { addSettings, readSettings, type Io } from './settings.js';

const USES = ['schema', 'databases', 'migrateTimeoutMs'] as const;

export function migrateCommand(io: Io): Command {
  const command = new Command('migrate').description(
    'make the control table and its functions, or bring them up to this version',
  );
  return addSettings(command, USES).action(async () => {
    const settings = readSettings(io, command, USES);
    // Refuses settings that do not fit the MPP database, before anything is made.
    createMPP(settings);
    for (const one of eachDatabase(settings)) await migrate(one, io);
  });
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
