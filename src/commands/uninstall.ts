import { Command } from 'commander';
import { eachDatabase } from '../config/settings.js';
import { createMPP } from '../mpp/index.js';
import { uninstallObjects, UNINSTALL_RIGHTS, UNINSTALL_ROLES } from '../postgres/uninstall.js';
import { addSettings, readSettings, type Io } from './settings.js';
import { withSession } from './with-session.js';

const USES = ['schema', 'databases'] as const;

export function uninstallCommand(io: Io): Command {
  const command = new Command('uninstall')
    .description('show the SQL that drops all that migrate has made, and run it')
    .option('--apply', 'run it; the queue and its history are lost')
    .option('--roles', 'drop the roles mpp_client, mpp_operator and mpp_controller as well');
  return addSettings(command, USES).action(async () => {
    const settings = readSettings(io, command, USES);
    const { apply, roles } = command.opts<{ apply?: boolean; roles?: boolean }>();
    const { schema } = settings;
    const sql = [uninstallObjects(schema), ...(roles === true ? [UNINSTALL_RIGHTS] : [])];
    if (apply !== true) {
      for (const text of roles === true ? [...sql, UNINSTALL_ROLES] : sql) io.print(text);
      return;
    }
    const mpp = createMPP(settings);
    const all = eachDatabase(settings);
    for (const one of all) {
      await withSession(one, 'uninstall', async (client) => {
        await mpp.refuseWorker(client);
        const { rows } = await client.query<{ name: string; any: boolean }>(OBJECTS, [schema]);
        for (const text of sql) await client.query(text);
        const what = rows[0]?.any === true ? 'dropped all' : 'there was nothing';
        io.print(
          `${what} of mpp-controller in schema ${schema} of database ${rows[0]?.name ?? ''}`,
        );
      });
    }
    const [last] = all.slice(-1);
    if (roles !== true || last === undefined) return;
    await withSession(last, 'uninstall', (client) => client.query(UNINSTALL_ROLES));
    io.print('dropped the roles mpp_client, mpp_operator and mpp_controller');
  });
}

const OBJECTS = `
  SELECT current_database() AS name, EXISTS (
    SELECT
    FROM pg_class AS c
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname = $1 AND c.relname ~ '^mpp_') AS any`;
