import { divideSessions, LEAST_SESSIONS, type ServerConnections } from '../../postgres/pool.js';
import { setParameter, type Check, type Problem } from '../finding.js';
import type { HostSeen, Target } from '../observed.js';

const GUCS = [
  ['shared_preload_libraries', 'error', 'Citus must be loaded first when the server starts'],
  ['max_prepared_transactions', 'error', 'Citus prepares the transactions of several nodes'],
  ['max_worker_processes', 'warning', "without room, the maintenance daemon of Citus can't start"],
  ['wal_level', 'warning', 'Citus moves shards by logical replication'],
  ['citus.local_hostname', 'warning', 'a node reaches itself by this name'],
  [
    'citus.metadata_sync_retry_interval',
    'warning',
    'clients of other nodes wait so long for the new row after a switchover',
  ],
] as const;

const GUC_CHECKS = GUCS.map(([name, level, why]): Check => ({
  id: `guc-${name.replaceAll(/[._]/g, '-')}`,
  ok: `${name} is as Citus needs it.`,
  problems: ({ hosts }) => {
    const read = hosts.filter(({ gucs, role }) => gucs !== null && role === 'primary');
    if (read.length === 0) return null;
    return read.flatMap(({ node, gucs }) =>
      (gucs ?? [])
        .filter((guc) => guc.name === name)
        .map(({ current, wanted, needsRestart }) => ({
          level,
          sentence: `${name} of ${node} is not as Citus needs it: ${why}.`,
          expected: wanted.join(', '),
          actual: current === null || current === '' ? 'not set' : current,
          fix: setParameter(node, name, wanted, needsRestart),
          node,
        })),
    );
  },
}));

export const PARAMETER_CHECKS: readonly Check[] = [
  ...GUC_CHECKS,
  {
    id: 'restart-pending',
    ok: 'No changed parameter waits for a restart.',
    problems: ({ hosts }) => (hosts.length === 0 ? null : hosts.flatMap(pendingRestart)),
  },
  {
    id: 'max-connections',
    ok: 'A controller may open as many sessions as MPP_MAX_SESSIONS allows.',
    problems: ({ connections, target }) =>
      connections === null ? null : tooFewConnections(connections, target),
  },
  {
    id: 'max-locks',
    ok: 'Each node has room for the locks of a hold.',
    problems: ({ hosts }) => (hosts.length === 0 ? null : hosts.flatMap(tooFewLocks)),
  },
];

function pendingRestart({ node, local }: HostSeen): Problem[] {
  if (local === null || local.pendingRestart.length === 0) return [];
  return [
    {
      level: 'note',
      sentence: `Parameters of ${node} were changed and wait for a restart.`,
      expected: 'no such parameter',
      actual: local.pendingRestart.join(', '),
      fix: [`-- restart PostgreSQL on ${node}`],
      node,
    },
  ];
}

/** Half of the sessions is for the clients; a controller that takes more has a warning of its own. */
function tooFewConnections(connections: ServerConnections, target: Target): Problem[] {
  const { max, reserved } = connections;
  const { node, maxSessions } = target;
  const { total } = divideSessions(maxSessions, connections);
  const isWithinHalf = 2 * total <= max - reserved;
  if (total >= maxSessions && isWithinHalf) return [];
  const wanted = 2 * Math.max(maxSessions, LEAST_SESSIONS) + reserved;
  return [
    {
      level: isWithinHalf ? 'note' : 'warning',
      sentence: `A controller gets ${total} sessions with ${node}, at most half of what the server has.`,
      expected: `max_connections of ${wanted}, for MPP_MAX_SESSIONS = ${maxSessions}`,
      actual: `max_connections of ${max}, ${reserved} of them reserved`,
      fix: setParameter(node, 'max_connections', [String(wanted)], true),
      node,
    },
  ];
}

function tooFewLocks({ node, locks }: HostSeen): Problem[] {
  const [most] = [...(locks ?? [])].sort((a, b) => (b.setting ?? 0) - (a.setting ?? 0));
  if (most === undefined || most.setting === null) return [];
  return [
    {
      level: 'error',
      sentence: `A hold of group ${most.groupid} takes more locks than ${node} has room for.`,
      expected: `room for ${most.needed} locks`,
      actual: `room for ${most.room}`,
      fix: setParameter(node, 'max_locks_per_transaction', [String(most.setting)], true),
      node,
    },
  ];
}
