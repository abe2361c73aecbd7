import pg from 'pg';
import { onServer, type Check, type Problem } from '../finding.js';
import type { Observed, WorkSeen } from '../observed.js';
import { ofSchema, onCoordinator } from './places.js';

/** How late a hold may be ended: the controller looks when the deadline passes. */
const LATE_MS = 5_000;

export const WORK_CHECKS: readonly Check[] = [
  forWork('controller-none', 'A controller is active.', ({ controllers }) =>
    controllers.some(({ state }) => state === 'active')
      ? []
      : [
          {
            level: 'error',
            sentence: 'No controller is active: reports wait until one runs.',
            expected: 'one active controller',
            actual: 'none',
            fix: ['mpp-controller run'],
          },
        ],
  ),
  forWork('controller-standby-none', 'A controller stands by.', ({ controllers }) =>
    controllers.some(({ state }) => state === 'active') &&
    !controllers.some(({ state }) => state === 'standby')
      ? [
          {
            level: 'note',
            sentence: 'No controller stands by: none takes over when the active one goes.',
            expected: 'a second controller, on another host',
            actual: 'none',
            fix: ['mpp-controller run'],
          },
        ]
      : [],
  ),
  forWork('controller-versions', 'All controllers are of one version.', ({ controllers }) => {
    const alive = controllers.filter(({ state }) => state === 'active' || state === 'standby');
    const versions = [...new Set(alive.map(({ version }) => version))];
    if (versions.length < 2) return [];
    return [
      {
        level: 'warning',
        sentence: 'Controllers of several versions run.',
        expected: 'one version',
        actual: alive.map(({ host, version }) => `${version} on ${host}`).join(', '),
        fix: ['# install one version on all hosts, then restart each controller'],
      },
    ];
  }),
  forWork('leadership-blocked', 'No session blocks the leadership.', ({ blockers }, observed) =>
    blockers.map(({ pid, role, application, holds, kind }) => ({
      level: 'warning',
      sentence: 'A session keeps a controller from becoming active.',
      expected: 'no such session',
      actual: `pid ${pid}, role ${role ?? 'unknown'}, application ${application}, has ${holds}`,
      fix:
        kind === 'row'
          ? onCoordinator(observed, `SELECT pg_terminate_backend(${pid})`)
          : [`# stop the controller whose control session has pid ${pid}`],
    })),
  ),
  forWork('task-pending', 'No task has been pending for long.', ({ pending }) =>
    pending.map(({ id, groupid, event, ageMs, why }) => ({
      level: 'warning',
      sentence: `Task ${id}, ${event} of group ${groupid}, has been pending for long.`,
      expected: 'a task that is done soon',
      actual: `pending for ${Math.round(ageMs / 1_000)} s: ${why}`,
      fix: [
        `mpp-controller explain ${id}`,
        `mpp-controller cancel ${id}   # if it is not wanted any more`,
      ],
    })),
  ),
  forWork('hold-late', 'No hold is past its deadline.', ({ holds }, observed) =>
    holds
      .filter(({ remainingMs }) => remainingMs < -LATE_MS)
      .map(({ groupid, remainingMs }) => ({
        level: 'error',
        sentence: `The hold of group ${groupid} is past its deadline.`,
        expected: 'a hold that ends at its deadline',
        actual: `${Math.round(-remainingMs / 1_000)} s past it`,
        fix: onCoordinator(observed, `SELECT ${ofSchema(observed, 'mpp_release')}(${groupid})`),
      })),
  ),
  forWork('hold-lost', 'Every hold has its session.', ({ holds }, observed) =>
    holds
      .filter(({ pid, remainingMs }) => pid === null && remainingMs >= -LATE_MS)
      .map(({ groupid }) => ({
        level: 'warning',
        sentence: `The hold of group ${groupid} has lost its session: its traffic does not wait.`,
        expected: 'a session that holds the group',
        actual: 'none',
        fix: onCoordinator(observed, `SELECT ${ofSchema(observed, 'mpp_release')}(${groupid})`),
      })),
  ),
];

function forWork(
  id: string,
  ok: string,
  find: (work: WorkSeen, observed: Observed) => readonly Problem[],
): Check {
  return {
    id,
    ok,
    problems: (observed) => (observed.work === null ? null : find(observed.work, observed)),
  };
}

export const PATRONI_CHECKS: readonly Check[] = [
  {
    id: 'patroni-unreachable',
    ok: "Every group's Patroni answers.",
    problems: ({ patroni }) =>
      patroni?.flatMap(({ groupid, url, silence }) =>
        silence === null
          ? []
          : [
              {
                level: 'warning',
                sentence: `The Patroni of group ${groupid} does not answer.`,
                expected: 'an answer to GET /config',
                actual: silence,
                fix: url.split(',').map((one) => `curl -s ${one}/config`),
              },
            ],
      ) ?? null,
  },
  {
    id: 'patroni-citus',
    ok: 'No Patroni has a section citus of its own.',
    problems: ({ patroni }) =>
      patroni?.flatMap(({ groupid, url, hasCitusSection }) =>
        hasCitusSection
          ? [
              {
                level: 'error',
                sentence: `The Patroni of group ${groupid} has a section citus: it changes pg_dist_node as well.`,
                expected: 'no section citus',
                actual: 'a section citus',
                fix: [
                  `curl -s -X PATCH -d '{"citus": null}' ${url}/config`,
                  '# and take it out of patroni.yml on every member',
                ],
              },
            ]
          : [],
      ) ?? null,
  },
  {
    id: 'unreadable',
    ok: 'All that is checked could be read.',
    problems: ({ failures, target }) =>
      failures?.map(({ part, node, reason, role }) => ({
        level: 'warning',
        sentence: `The checks of ${part} on ${node} were not made.`,
        expected: 'a role that may read it',
        actual: reason,
        fix:
          role === null
            ? ['mpp-controller doctor']
            : onServer(node, `GRANT ${role} TO ${pg.escapeIdentifier(target.user)}`),
        node,
      })) ?? null,
  },
];
