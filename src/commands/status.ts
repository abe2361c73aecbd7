import { Command } from 'commander';
import { addSettings, readSettings, type Io } from './settings.js';
import { readStatus } from './status-read.js';
import { statusText } from './status-text.js';
import { withSession } from './with-session.js';

const USES = ['schema'] as const;

export function statusCommand(io: Io): Command {
  const command = new Command('status')
    .description('show who is active, what is held, what waits, and the nodes')
    .option('--json', 'for machines: one JSON object, durations in seconds');
  return addSettings(command, USES).action(async () => {
    const settings = readSettings(io, command, USES);
    const status = await withSession(settings, 'status', readStatus);
    const { json } = command.opts<{ json?: boolean }>();
    io.print(json === true ? JSON.stringify(status, null, 2) : statusText(status));
  });
}
