import { Command } from 'commander';
import { eachDatabase } from '../databases.js';
import { createMPP } from '../mpp/index.js';
import { addSettings, readSettings, type Io } from './settings.js';
import { readStatus, type Status } from './status-read.js';
import { statusText } from './status-text.js';
import { withSession } from './with-session.js';

const USES = ['schema', 'databases'] as const;

export function statusCommand(io: Io): Command {
  const command = new Command('status')
    .description('show who is active, what is held, what waits, and the nodes')
    .option(
      '--json',
      'for machines: one JSON object (with several databases one of each by its name), durations in seconds',
    );
  return addSettings(command, USES).action(async () => {
    const settings = readSettings(io, command, USES);
    const { json } = command.opts<{ json?: boolean }>();
    const mpp = createMPP(settings);
    const all: [string, Status][] = [];
    for (const one of eachDatabase(settings)) {
      const status = await withSession(one, 'status', async (client) => {
        await mpp.refuseWorker(client);
        return readStatus(client);
      });
      all.push([one.connection.database ?? '', status]);
    }
    const several = settings.databases !== undefined;
    if (json === true) {
      const shown = several ? Object.fromEntries(all) : all[0]?.[1];
      io.print(JSON.stringify(shown, null, 2));
      return;
    }
    const text = all.map(([database, status]) =>
      several ? `DATABASE ${database}\n\n${statusText(status)}` : statusText(status),
    );
    io.print(text.join('\n\n'));
  });
}
