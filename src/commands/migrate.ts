import { Command } from 'commander';
import { createMPP } from '../mpp/index.js';
import { applyMigrations } from '../postgres/migrate.js';
import { openSession } from '../postgres/session.js';
import { addSettings, readSettings, type Io } from './settings.js';

const USES = ['schema', 'migrateTimeoutMs'] as const;

export function migrateCommand(io: Io): Command {
  const command = new Command('migrate').description(
    'make the control table and its functions, or bring them up to this version',
  );
  return addSettings(command, USES).action(async () => {
    const settings = readSettings(io, command, USES);
    // Refuses settings that do not fit the MPP database, before anything is made.
    createMPP(settings);
    const client = await openSession(settings.connection, 'migrate');
    try {
      const names = await applyMigrations(client, {
        schema: settings.schema,
        lockTimeoutMs: settings.migrateTimeoutMs,
      });
      for (const name of names) io.print(`applied ${name}`);
      io.print(
        names.length === 0
          ? `schema ${settings.schema} is up to date: nothing to do`
          : `schema ${settings.schema} is up to date`,
      );
    } finally {
      await client.end().catch(() => undefined);
    }
  });
}
