import pg from 'pg';
import { onServer, setParameter, type Check, type Problem } from '../finding.js';
import type { Observed, ServerSeen, Target } from '../observed.js';

const OLDEST = 150_000;
const NEWEST = 180_000;

export const SERVER_CHECKS: readonly Check[] = [
  {
    id: 'settings-unknown',
    ok: 'Every MPP_ variable is a setting.',
    problems: ({ unknownVariables }) =>
      unknownVariables.map((name) => ({
        level: 'warning',
        sentence: `The variable ${name} is no setting: its name may be misspelt.`,
        expected: 'a variable that mpp-controller --help lists',
        actual: name,
        fix: [`unset ${name}`],
      })),
  },
  {
    id: 'server-unreachable',
    ok: 'The server answers and takes the login.',
    problems: ({ target, unreachable }) => {
      if (unreachable === null) return [];
      const { reason, remedy, isMissingDatabase } = unreachable;
      const command = `psql -h ${hostOf(target)} -p ${portOf(target)} -U ${target.user} ${target.database}`;
      return [
        {
          level: 'error',
          sentence: `There is no session with ${target.node}${remedy === null ? '' : `: ${remedy}`}.`,
          expected: 'a session',
          actual: reason,
          fix: [isMissingDatabase ? 'mpp-controller bootstrap' : command],
          node: target.node,
        },
      ];
    },
  },
  forServer('server-standby', 'The server is no standby.', (server, { target }) =>
    server.inRecovery
      ? {
          level: 'error',
          sentence: `${target.node} is a standby: nothing else can be checked here.`,
          expected: 'the primary of group 0',
          actual: 'a server in recovery',
          fix: elsewhere(target, server.follows),
        }
      : null,
  ),
  forServer('server-worker', 'The server is a coordinator.', (server, { target }) =>
    (server.localGroup ?? 0) !== 0 && !server.inRecovery
      ? {
          level: 'error',
          sentence: `${target.node} is a worker: a controller works on the coordinator.`,
          expected: 'a server of group 0',
          actual: `a server of group ${server.localGroup ?? ''}`,
          fix: elsewhere(target, server.coordinator),
        }
      : null,
  ),
  forServer('server-version', 'The version of PostgreSQL is a supported one.', ({ version }) =>
    version >= OLDEST && version < NEWEST + 10_000
      ? null
      : {
          level: version < OLDEST ? 'error' : 'note',
          sentence: 'The version of PostgreSQL is none that this version was run with.',
          expected: `PostgreSQL ${OLDEST / 10_000} to ${NEWEST / 10_000}`,
          actual: `PostgreSQL ${Math.floor(version / 10_000)}`,
          fix: ['# see docs/install.md for the versions that were run'],
        },
  ),
  forServer('server-read-only', 'Sessions of this role may write.', (server, { target }) =>
    server.isReadOnly && !server.inRecovery
      ? {
          level: 'error',
          sentence: 'Sessions of this role take no writes: a controller cannot act.',
          expected: 'default_transaction_read_only = off',
          actual: `on, set by: ${server.readOnlySource ?? 'unknown'}`,
          fix: makeWritable(target, server.readOnlySource),
        }
      : null,
  ),
  forServer('citus-missing', 'Citus is installed in this database.', (server, { target }) =>
    server.citus === null && !server.inRecovery
      ? {
          level: 'error',
          sentence: `Database ${target.database} on ${target.node} has no Citus.`,
          expected: 'the extension citus',
          actual: 'no such extension',
          fix: ['mpp-controller gucs --apply', 'mpp-controller bootstrap'],
        }
      : null,
  ),
  forServer('citus-version', 'The extension is as new as its library.', (server, { target }) =>
    server.citus !== null &&
    server.citusAvailable !== null &&
    server.citus !== server.citusAvailable &&
    !server.inRecovery
      ? {
          level: 'warning',
          sentence: 'The extension citus is not of the version that is installed.',
          expected: server.citusAvailable,
          actual: server.citus,
          fix: onServer(target.node, 'ALTER EXTENSION citus UPDATE'),
        }
      : null,
  ),
];

/** A check of the server alone, with one problem at most. */
function forServer(
  id: string,
  ok: string,
  find: (server: ServerSeen, observed: Observed) => Omit<Problem, 'node'> | null,
): Check {
  return {
    id,
    ok,
    problems: (observed) => {
      if (observed.server === null) return null;
      const problem = find(observed.server, observed);
      return problem === null ? [] : [{ ...problem, node: observed.target.node }];
    },
  };
}

function makeWritable({ node, user, database }: Target, source: string | null): string[] {
  const [role, name] = [pg.escapeIdentifier(user), pg.escapeIdentifier(database)];
  const reset = 'RESET default_transaction_read_only';
  switch (source) {
    case 'database':
      return onServer(node, WRITE, `ALTER DATABASE ${name} ${reset}`);
    case 'user':
      return onServer(node, WRITE, `ALTER ROLE ${role} ${reset}`);
    case 'database user':
      return onServer(node, WRITE, `ALTER ROLE ${role} IN DATABASE ${name} ${reset}`);
    default:
      return setParameter(node, 'default_transaction_read_only', ['off'], false);
  }
}

/** The session that repairs it is read-only, too. */
const WRITE = 'SET default_transaction_read_only = off';

/** A password in the URL would be shown; it is given by PGPASSWORD or a file. */
function elsewhere({ user, database }: Target, node: string | null): string[] {
  return [`export DATABASE_URL=postgresql://${user}@${node ?? 'HOST:PORT'}/${database}`];
}

function hostOf({ node }: Target): string {
  return node.slice(0, node.lastIndexOf(':')).replace(/^\[(.*)\]$/, '$1');
}

function portOf({ node }: Target): string {
  return node.slice(node.lastIndexOf(':') + 1);
}
