import { Command } from 'commander';
import { eachDatabase } from '../config/settings.js';
import { createMPP } from '../mpp/index.js';
import { chooseServer, type Connection } from '../postgres/session.js';
import { addSettings, readSettings, type Io } from './flags.js';

const USES = [
  'schema',
  'databases',
  'migrateTimeoutMs',
  'coordinatorHost',
  'coordinatorPort',
  'localHostname',
] as const;

export function bootstrapCommand(io: Io): Command {
  const command = new Command('bootstrap')
    .description('make a server ready: database, Citus, credentials, coordinator, control table')
    .option('--worker', 'this server is a worker: only database, Citus and credentials')
    .addHelpText(
      'after',
      '\nRun it as a superuser, as often as you like: what is there is left alone.' +
        '\nMPP_AUTHINFO (no flag) is what nodes authenticate with at each other, as pg_dist_authinfo takes it: password=...',
    );
  return addSettings(command, USES).action(async () => {
    const settings = readSettings(io, command, USES);
    const worker = command.opts<{ worker?: boolean }>().worker === true;
    const mpp = createMPP(settings);
    for (const one of eachDatabase(settings)) {
      const connection = await chooseServer(one.connection);
      const host = settings.coordinatorHost ?? connectionHost(connection, settings.localHostname);
      await mpp.bootstrap(
        {
          connection,
          schema: settings.schema,
          migrateTimeoutMs: settings.migrateTimeoutMs,
          authinfo: io.env['MPP_AUTHINFO'] === '' ? undefined : io.env['MPP_AUTHINFO'],
          coordinator: { host, port: settings.coordinatorPort },
          worker,
        },
        ({ step, outcome, detail }) => {
          io.print(`${step.padEnd(14)} ${outcome.padEnd(14)} ${detail}`);
          if (step === 'coordinator' && outcome === 'done' && isLoopback(host)) {
            io.complain(
              `${host} reaches the coordinator from this machine only; for workers elsewhere: ` +
                "SELECT citus_set_coordinator_host('host')",
            );
          }
        },
      );
    }
  });
}

/** The address that is connected to is one where others may connect too, unless it is a socket. */
function connectionHost({ host = 'localhost' }: Connection, localHostname: string): string {
  return host.startsWith('/') ? localHostname : host;
}

function isLoopback(host: string): boolean {
  return host === 'localhost' || host === '::1' || /^127\./.test(host);
}
