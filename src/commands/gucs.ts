import { Command } from 'commander';
import type pg from 'pg';
import { SETTINGS } from '../config/settings.js';
import type { AbstractMPP, GucChange, GucStates, WantedByName } from '../mpp/abstract.js';
import { createMPP } from '../mpp/index.js';
import {
  closeSession,
  openSession,
  type Connection,
  isMissingDatabase,
} from '../postgres/session.js';
import { addSettings, readSettings, type Io } from './flags.js';
import { formatTable } from './output.js';

const USES = ['localHostname', 'databases'] as const;

export function gucsCommand(io: Io): Command {
  const command = new Command('gucs')
    .description('show which parameters of PostgreSQL Citus needs otherwise, and set them')
    .option('--apply', 'set them with ALTER SYSTEM; needs a superuser');
  return addSettings(command, USES).action(async () => {
    const settings = readSettings(io, command, USES);
    const mpp = createMPP(settings);
    const client = await openServer(settings.connection);
    try {
      const apply = command.opts<{ apply?: boolean }>().apply === true;
      const { localHostname, databases = [] } = settings;
      const flag = command.opts<{ localHostname?: string }>().localHostname;
      const isHostnameNamed = Boolean(flag ?? io.env[SETTINGS.localHostname.env]);
      await showAndApply(io, mpp, client, { localHostname, isHostnameNamed, databases }, apply);
    } finally {
      await closeSession(client);
    }
  });
}

/** Parameters are the server's: before `bootstrap` has made the database, another one does as well. */
async function openServer(connection: Connection): Promise<pg.Client> {
  return openSession(connection, 'gucs').catch((error: unknown) => {
    if (!isMissingDatabase(error)) throw error;
    return openSession({ ...connection, database: 'postgres' }, 'gucs');
  });
}

async function showAndApply(
  io: Io,
  mpp: AbstractMPP,
  client: pg.Client,
  wanted: WantedByName,
  apply: boolean,
): Promise<void> {
  const { states, changes } = await mpp.planGucs(client, wanted);
  const possible = changes.filter(({ name }) => states.get(name)?.onCommandLine !== true);
  const fixed = changes.filter((change) => !possible.includes(change));
  if (changes.length === 0) io.print('Nothing to do: every parameter is as Citus needs it.');
  else io.print(gucTable(changes, states));
  if (fixed.length > 0) {
    io.print(
      `\nSet on the command line of the server (-c, or the service that starts it), which ALTER SYSTEM does not ` +
        `change: ${names(fixed)}. Change it there.`,
    );
  }
  if (apply && possible.length > 0) {
    await mpp.applyGucs(client, possible);
    io.print(`\nSet with ALTER SYSTEM, and configuration reloaded: ${names(possible)}.`);
  } else if (possible.length > 0) {
    io.print('\nNothing was changed; --apply sets them with ALTER SYSTEM.');
  }
  if (possible.some(({ name }) => name === 'max_worker_processes')) {
    io.print(
      'max_worker_processes: a standby must have as many as its primary; change the standbys first.',
    );
  }
  const changed = new Set<string>(apply ? possible.map(({ name }) => name) : []);
  const all = [...states.values()];
  const before = all.filter(({ name, pendingRestart }) => pendingRestart && !changed.has(name));
  const now = all.filter(({ name, needsRestart }) => needsRestart && changed.has(name));
  if (before.length > 0) io.print(`Changed earlier, waiting for a restart: ${names(before)}.`);
  if (now.length > 0) io.print(`Restart PostgreSQL for: ${names(now)}.`);
}

function gucTable(changes: readonly GucChange[], states: GucStates): string {
  return formatTable(
    ['PARAMETER', 'NOW', 'NEEDED', 'TAKES EFFECT'],
    changes.map(({ name, current, wanted }) => [
      name,
      current === null ? '(not set)' : current === '' ? "''" : current,
      wanted.join(', '),
      states.get(name)?.needsRestart === false ? 'at once' : 'after a restart',
    ]),
    '',
  );
}

function names(list: readonly { name: string }[]): string {
  return list.map(({ name }) => name).join(', ');
}
