import pg from 'pg';
import { Command } from 'commander';
import { eachDatabase } from '../config/settings.js';
import { createMPP } from '../mpp/index.js';
import { addSettings, readSettings, type Io, withSession } from './flags.js';

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

/**
 * The SQL that drops all of mpp-controller in one schema of one database, in a transaction of its own.
 * docs/uninstall.md has the same.
 *
 * Locks: ACCESS EXCLUSIVE on its tables, for as long as the drop takes; it waits for 2 s at most.
 */
// eslint-disable-next-line max-lines-per-function -- one block of SQL
export function uninstallObjects(schema: string): string {
  return `BEGIN;
SET LOCAL mpp.schema = ${pg.escapeLiteral(schema)};
SET LOCAL citus.enable_ddl_propagation = off;
SET LOCAL lock_timeout = '2s';
SET LOCAL search_path = pg_catalog;

DO $uninstall$
DECLARE
    installed constant oid := (SELECT oid FROM pg_namespace WHERE nspname = current_setting('mpp.schema'));
    statement text;
BEGIN
    IF EXISTS (
        SELECT FROM pg_stat_activity
        WHERE datname = current_database() AND application_name = 'mpp-controller control'
    ) THEN
        RAISE EXCEPTION 'a controller is connected to this database: stop it first';
    END IF;

    -- All of a kind in one statement, because they use one another.
    FOR statement IN
        SELECT format('DROP VIEW %s', string_agg(oid::regclass::text, ', '))
        FROM pg_class WHERE relnamespace = installed AND relkind = 'v' AND relname ~ '^mpp_'
        HAVING count(*) > 0
        UNION ALL
        SELECT format('DROP TRIGGER %I ON %s', tgname, tgrelid::regclass)
        FROM pg_trigger JOIN pg_class AS c ON c.oid = tgrelid
        WHERE c.relnamespace = installed AND c.relname ~ '^mpp_' AND NOT tgisinternal
    LOOP
        EXECUTE statement;
    END LOOP;
    FOR statement IN
        SELECT format('DROP ROUTINE %s', string_agg(oid::regprocedure::text, ', '))
        FROM pg_proc WHERE pronamespace = installed AND proname ~ '^mpp_'
        HAVING count(*) > 0
    LOOP
        EXECUTE statement;
    END LOOP;
    FOR statement IN
        SELECT format('DROP TABLE %s', string_agg(oid::regclass::text, ', '))
        FROM pg_class WHERE relnamespace = installed AND relkind = 'r' AND relname ~ '^mpp_'
        HAVING count(*) > 0
        UNION ALL
        -- The schema in which migrate keeps its own table.
        SELECT format('DROP SCHEMA %I CASCADE', nspname)
        FROM pg_namespace
        WHERE nspname IN (
            'mpp_migrations_' || current_setting('mpp.schema'),
            'mpp_migrations_' || left(encode(sha256(convert_to(current_setting('mpp.schema'), 'UTF8')), 'hex'), 32))
    LOOP
        EXECUTE statement;
    END LOOP;
END
$uninstall$;
COMMIT;`;
}

/** The SQL that takes the rights of the roles in one database away, on objects of others as well. */
export const UNINSTALL_RIGHTS = `BEGIN;
SET LOCAL citus.enable_ddl_propagation = off;
-- The rights that the roles were given in this database, on functions of Citus as well.
DROP OWNED BY mpp_client, mpp_operator, mpp_controller;
COMMIT;`;

/** The SQL that drops the roles, once no database of the server has rights of theirs. */
export const UNINSTALL_ROLES = `BEGIN;
SET LOCAL citus.enable_ddl_propagation = off;
DROP ROLE mpp_client, mpp_operator, mpp_controller;
COMMIT;`;
