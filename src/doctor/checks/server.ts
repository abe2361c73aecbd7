import type { Check, Problem } from '../finding.js';
import type { Observed, ServerSeen, Target } from '../observed.js';

export const SERVER_CHECKS: readonly Check[] = [
  {
    id: 'server-unreachable',
    ok: 'The server answers and takes the login.',
    problems: ({ target, unreachable }) =>
      unreachable === null
        ? []
        : [
            {
              level: 'error',
              sentence: `There is no session with ${target.node}${hint(unreachable.remedy)}.`,
              expected: 'a session',
              actual: unreachable.reason,
              fix: unreachable.isMissingDatabase
                ? ['mpp-controller bootstrap']
                : [
                    `psql -h ${hostOf(target)} -p ${portOf(target)} -U ${target.user} ${target.database}`,
                  ],
              node: target.node,
            },
          ],
  },
  {
    id: 'server-standby',
    ok: 'The server is no standby.',
    problems: onServerSeen((server, { target }) =>
      server.inRecovery
        ? [
            {
              level: 'error',
              sentence: `${target.node} is a standby: nothing else can be checked here.`,
              expected: 'the primary of group 0',
              actual: 'a server in recovery',
              fix: elsewhere(target, server.follows),
              node: target.node,
            },
          ]
        : [],
    ),
  },
  {
    id: 'server-worker',
    ok: 'The server is a coordinator.',
    problems: onServerSeen((server, { target }) =>
      (server.localGroup ?? 0) === 0
        ? []
        : [
            {
              level: 'error',
              sentence: `${target.node} is a worker: a controller works on the coordinator.`,
              expected: 'a server of group 0',
              actual: `a server of group ${server.localGroup ?? ''}`,
              fix: elsewhere(target, server.coordinator),
              node: target.node,
            },
          ],
    ),
  },
  {
    id: 'citus-missing',
    ok: 'Citus is installed in this database.',
    problems: onServerSeen((server, { target }) =>
      server.citus !== null
        ? []
        : [
            {
              level: 'error',
              sentence: `Database ${target.database} on ${target.node} has no Citus.`,
              expected: 'the extension citus',
              actual: 'no such extension',
              fix: ['mpp-controller gucs --apply', 'mpp-controller bootstrap'],
              node: target.node,
            },
          ],
    ),
  },
];

function onServerSeen(
  look: (server: ServerSeen, observed: Observed) => readonly Problem[],
): Check['problems'] {
  return (observed) => (observed.server === null ? null : look(observed.server, observed));
}

function hint(remedy: string | null): string {
  return remedy === null ? '' : `; ${remedy}`;
}

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
