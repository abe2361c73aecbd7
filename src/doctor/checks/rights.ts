import pg from 'pg';
import type { MissingRight } from '../../mpp/abstract.js';
import { onServer, type Check, type Problem } from '../finding.js';
import type { HostSeen, Observed, ServerSeen } from '../observed.js';

const KINDS = [
  ['tables', 'right-tables', 'The role may lock every distributed table.'],
  ['functions', 'right-functions', "The role may call Citus's functions."],
  ['signal', 'right-signal', 'The role may end sessions that block a hold.'],
  ['deadlock_timeout', 'right-deadlock-timeout', 'The role may set deadlock_timeout.'],
  ['wrappers', 'right-wrappers', 'The functions that bootstrap installs are there.'],
] as const satisfies readonly (readonly [MissingRight['kind'], string, string])[];

const RIGHT_CHECKS = KINDS.map(([kind, id, ok]): Check => ({
  id,
  ok,
  problems: (observed) => {
    const { rights, hosts, target } = observed;
    if (rights === null) return null;
    const node = hosts.find(({ isCoordinator }) => isCoordinator)?.node ?? target.node;
    const places = [
      { node, rights },
      ...hosts.map((host) => ({ ...host, rights: host.rights ?? [] })),
    ];
    return places.flatMap((place) =>
      place.rights
        .filter((right) => right.kind === kind)
        .map((right) => lacking(right, place.node)),
    );
  },
}));

function lacking({ sentence, grants }: MissingRight, node: string): Problem {
  const [what = sentence] = sentence.split(/: (?=run |with |give )/);
  const rest = sentence.slice(what.length + 2);
  return {
    level: 'warning',
    sentence: `${what.charAt(0).toUpperCase()}${what.slice(1)} on ${node}.`,
    expected: 'a role that has the right',
    actual: rest === '' ? what : rest,
    fix: grants.length > 0 ? onServer(node, ...grants) : fixOf(rest, node),
    node,
  };
}

function fixOf(remedy: string, node: string): string[] {
  if (remedy.includes('mpp-controller bootstrap')) return ['mpp-controller bootstrap'];
  return [`-- on ${node}: ${remedy}`];
}

/** Where there is no role mpp_controller, the schema is what is missing. */
function mayAct({ isSuperuser, isMember }: ServerSeen): boolean {
  return isSuperuser || isMember !== false;
}

export const ROLE_CHECKS: readonly Check[] = [
  {
    id: 'role-member',
    ok: 'The role is a superuser, or a member of mpp_controller.',
    problems: ({ server, schema, target }) => {
      if (server === null || schema === null) return null;
      if (mayAct(server)) return [];
      return [
        {
          level: 'error',
          sentence: `Role ${target.user} may not act as a controller.`,
          expected: 'a superuser, or a member of mpp_controller',
          actual: 'neither',
          fix: onServer(target.node, `GRANT mpp_controller TO ${pg.escapeIdentifier(target.user)}`),
          node: target.node,
        },
      ];
    },
  },
  {
    id: 'strategy',
    ok: 'A hold makes traffic wait by the best strategy, shard-locks.',
    problems: ({ server, strategy, target, rights }) => {
      // Of a role that is no controller's, the check above says all.
      if (strategy === null || server === null || !mayAct(server)) return null;
      const place = { node: target.node, expected: 'shard-locks' };
      if ('code' in strategy) {
        const fix = ['mpp-controller bootstrap'];
        const sentence = 'A controller cannot run here.';
        return [{ ...place, level: 'error', sentence, actual: strategy.reason, fix }];
      }
      if (strategy.name === 'shard-locks') return [];
      const grants =
        rights?.filter(({ kind }) => kind === 'tables').flatMap((one) => one.grants) ?? [];
      const isWanted = target.strategy === strategy.name;
      return [
        {
          ...place,
          level: isWanted ? 'note' : 'warning',
          sentence: `A hold makes traffic wait by ${strategy.name}: ${isWanted ? 'MPP_STRATEGY says so' : 'this role may not lock all distributed tables, or Citus has no lock_shard_metadata'}.`,
          actual: strategy.name,
          fix: isWanted
            ? ['unset MPP_STRATEGY']
            : grants.length > 0
              ? onServer(target.node, ...grants)
              : ['mpp-controller bootstrap'],
        },
      ];
    },
  },
  ...RIGHT_CHECKS,
  {
    id: 'right-verify',
    ok: 'Every node says which system and group it is of.',
    problems: (observed) =>
      observed.hosts.length === 0
        ? null
        : observed.hosts.flatMap((host) => unverifiable(host, observed)),
  },
];

/** A standby may have yet to replay its registration, so that its group says nothing. */
function unverifiable(host: HostSeen, { target }: Observed): Problem[] {
  const { answer, node } = host;
  if ('silence' in answer || answer.systemIdentifier !== null) return [];
  const role = pg.escapeIdentifier(target.nodeUser);
  return [
    {
      level: 'warning',
      sentence: `Role ${target.nodeUser} may not ask ${node} which system it is: a change to it may be refused.`,
      expected: 'the right to call pg_control_system()',
      actual: 'no such right',
      fix: onServer(node, `GRANT EXECUTE ON FUNCTION pg_catalog.pg_control_system() TO ${role}`),
      node,
    },
  ];
}
