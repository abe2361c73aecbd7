import pg from 'pg';
import { isOfOtherGroup, type NodeAnswer } from '../../mpp/node-answer.js';
import { formatAddress, parseAddress } from '../../address.js';
import { onServer, type Check, type Problem } from '../finding.js';
import type { CatalogSeen, HostSeen, NodeSeen, Observed, Silence } from '../observed.js';
import { ofSchema, onCoordinator } from './places.js';

export const CATALOG_CHECKS: readonly Check[] = [
  forCatalog('coordinator-unregistered', 'Group 0 has its row.', ({ nodes }, observed) =>
    nodes.some(({ groupid, role }) => groupid === 0 && role === 'primary')
      ? []
      : [
          {
            level: 'error',
            sentence: 'pg_dist_node has no row for the coordinator.',
            expected: 'a primary of group 0',
            actual: 'none',
            fix: onCoordinator(
              observed,
              `SELECT citus_set_coordinator_host(${placeOf(observed.target.node)})`,
            ),
          },
        ],
  ),
  forCatalog('group-without-primary', 'Every group has a primary.', (catalog, observed) =>
    groupsWithoutPrimary(catalog).map((groupid) => ({
      level: 'error',
      sentence: `Group ${groupid} has no primary in pg_dist_node: nothing reaches its shards.`,
      expected: 'one primary',
      actual: 'none',
      fix: report(observed, groupid, writersOf(observed, groupid)),
    })),
  ),
  forCatalog('node-inactive', 'Every node is active.', ({ nodes }, observed) =>
    nodes.filter(isInOwnCluster).flatMap(({ isActive, role, address }) =>
      isActive || role !== 'primary'
        ? []
        : [
            {
              level: 'warning',
              sentence: `${formatAddress(address)} is not active in pg_dist_node: queries pass it over.`,
              expected: 'isactive',
              actual: 'not active',
              fix: onCoordinator(
                observed,
                `SELECT citus_activate_node(${placeOf(formatAddress(address))})`,
              ),
              node: formatAddress(address),
            },
          ],
    ),
  ),
  forCatalog('node-unsynced', 'Every node has the metadata.', ({ nodes }, observed) =>
    nodes.filter(isInOwnCluster).flatMap(({ hasMetadata, isSynced, role, groupid, address }) =>
      !hasMetadata || isSynced || role !== 'primary' || groupid === 0
        ? []
        : [
            {
              level: 'warning',
              sentence: `${formatAddress(address)} has yet to get the metadata: no node can be added or removed.`,
              expected: 'metadatasynced',
              actual: 'out of sync',
              fix: onCoordinator(
                observed,
                `SELECT start_metadata_sync_to_node(${placeOf(formatAddress(address))})`,
              ),
              node: formatAddress(address),
            },
          ],
    ),
  ),
];

function groupsWithoutPrimary({ nodes, groupsWithShards }: CatalogSeen): number[] {
  const rows = nodes.filter(isInOwnCluster);
  const groups = new Set([...groupsWithShards, ...rows.map(({ groupid }) => groupid)]);
  const led = new Set(rows.filter(({ role }) => role === 'primary').map(({ groupid }) => groupid));
  // That of group 0 has a check of its own.
  return [...groups].filter((groupid) => groupid !== 0 && !led.has(groupid));
}

/** Rows of other node clusters are never touched. */
function isInOwnCluster({ isInCluster }: NodeSeen): boolean {
  return isInCluster;
}

type Answered = HostSeen & { readonly answer: NodeAnswer };
type Silent = HostSeen & { readonly answer: Silence };

export const NODE_CHECKS: readonly Check[] = [
  forHosts('node-silent', 'Every node answers.', (host) => {
    if (!isSilent(host) || host.answer.isRefused) return [];
    const { host: name, port } = parseAddress(host.node);
    return [
      {
        level: host.role === 'primary' ? 'error' : 'warning',
        sentence: `${host.node} of group ${host.groupid} does not answer.`,
        expected: 'an answer within 2 s',
        actual: host.answer.silence,
        fix: [`pg_isready -h ${name} -p ${port}`],
      },
    ];
  }),
  forHosts('node-login', 'Every node takes the login.', (host, { target }) =>
    isSilent(host) && host.answer.isRefused
      ? [
          {
            level: 'error',
            sentence: `${host.node} of group ${host.groupid} refuses the login.`,
            expected: `role ${target.nodeUser} may log in to database ${target.database}`,
            actual: host.answer.silence,
            fix: loginFix(host, target.nodeUser, target.database),
          },
        ]
      : [],
  ),
  forHosts('node-recovery', 'Every node is what its role says.', (host, observed) =>
    isAnswered(host) ? recovery(host, observed) : [],
  ),
  forHosts('node-other-group', 'Every node is of its group.', (host, observed) =>
    isAnswered(host) && isOfOtherGroup(host.answer.localGroup, host.groupid)
      ? [
          {
            level: 'error',
            sentence: `${host.node} stands for group ${host.groupid} and is a node of group ${host.answer.localGroup ?? ''}.`,
            expected: `group ${host.groupid} in its pg_dist_local_group`,
            actual: `group ${host.answer.localGroup ?? ''}`,
            fix: onCoordinator(
              observed,
              `SELECT citus_update_node(${host.nodeid ?? 'NODEID'}, 'HOST', PORT)`,
            ),
          },
        ]
      : [],
  ),
  forHosts('node-other-system', 'Every node is of its system.', (host, observed) => {
    const known = observed.groups?.systems.find(({ groupid }) => groupid === host.groupid);
    const wanted = known?.systemIdentifier ?? null;
    if (!isAnswered(host) || wanted === null || known?.isAccepted === true) return [];
    const { systemIdentifier } = host.answer;
    if (systemIdentifier === null || systemIdentifier === wanted) return [];
    return [
      {
        level: 'error',
        sentence: `${host.node} is another PostgreSQL cluster than group ${host.groupid} is known to be: its next failover is refused.`,
        expected: `system identifier ${wanted}, or after pg_upgrade or a restore the fix`,
        actual: systemIdentifier,
        fix: onCoordinator(
          observed,
          `SELECT ${ofSchema(observed, 'mpp_accept_system')}(${host.groupid})`,
        ),
      },
    ];
  }),
];

/** A primary of pg_dist_node in recovery, or a secondary that is none. */
function recovery(host: Answered, observed: Observed): Omit<Problem, 'node'>[] {
  const { groupid, role, node, answer } = host;
  if (groupid === 0 || answer.inRecovery === (role === 'secondary')) return [];
  if (role === 'primary') {
    return [
      {
        level: 'error',
        sentence: `${node} is the primary of group ${groupid} in pg_dist_node, and a standby.`,
        expected: 'a server that takes writes',
        actual: 'a server in recovery',
        fix: report(observed, groupid, writersOf(observed, groupid)),
      },
    ];
  }
  const primary = observed.hosts.find((one) => one.groupid === groupid && one.role === 'primary');
  // Then this one is what the fix of that finding names.
  if (primary !== undefined && isAnswered(primary) && primary.answer.inRecovery) return [];
  const isLed = primary !== undefined && isAnswered(primary);
  return [
    {
      level: 'error',
      sentence: `${node} is a secondary of group ${groupid} in pg_dist_node, and takes writes.`,
      expected: 'a standby',
      actual: isLed ? 'a second primary of the group' : 'a primary',
      fix: isLed
        ? onCoordinator(observed, `SELECT citus_remove_node(${placeOf(node)})`)
        : report(observed, groupid, [host]),
    },
  ];
}

/** The nodes of a group that are registered as secondaries and take writes. */
function writersOf({ hosts }: Observed, groupid: number): Answered[] {
  return hosts.filter(
    (host): host is Answered =>
      host.groupid === groupid &&
      host.role === 'secondary' &&
      isAnswered(host) &&
      !host.answer.inRecovery,
  );
}

/** The report that a hook would have made. */
function report(
  observed: Observed,
  groupid: number,
  writers: readonly { readonly node: string }[],
): string[] {
  const place = writers.length === 1 ? placeOf(writers[0]?.node ?? '') : "'HOST', PORT";
  return onCoordinator(
    observed,
    `INSERT INTO ${ofSchema(observed, 'mpp_tasks')} (event, groupid, nodename, nodeport) ` +
      `VALUES ('after_promote', ${groupid}, ${place})`,
  );
}

function loginFix({ node, answer }: Silent, user: string, database: string): string[] {
  if (answer.isMissingDatabase) {
    return [
      `DATABASE_URL=postgresql://${user}@${node}/${database} mpp-controller bootstrap --worker`,
    ];
  }
  const role = pg.escapeIdentifier(user);
  return [
    ...onServer(node, `ALTER ROLE ${role} LOGIN`),
    `-- in its pg_hba.conf: host ${pg.escapeIdentifier(database)} ${role} CONTROLLER/32 scram-sha-256`,
    'SELECT pg_reload_conf();',
  ];
}

/** `'host', port`, for a call. */
function placeOf(node: string): string {
  const { host, port } = parseAddress(node);
  return `${pg.escapeLiteral(host)}, ${port}`;
}

function isAnswered(host: HostSeen): host is Answered {
  return !('silence' in host.answer);
}

function isSilent(host: HostSeen): host is Silent {
  return 'silence' in host.answer;
}

function forCatalog(
  id: string,
  ok: string,
  find: (catalog: CatalogSeen, observed: Observed) => readonly Problem[],
): Check {
  return {
    id,
    ok,
    problems: (observed) => (observed.catalog === null ? null : find(observed.catalog, observed)),
  };
}

/** A check of each row of pg_dist_node that was asked. */
function forHosts(
  id: string,
  ok: string,
  find: (host: HostSeen, observed: Observed) => readonly Omit<Problem, 'node'>[],
): Check {
  return {
    id,
    ok,
    problems: (observed) => {
      const rows = observed.hosts.filter(({ isCoordinator }) => !isCoordinator);
      if (rows.length === 0) return null;
      return rows.flatMap((host) =>
        find(host, observed).map((problem) => ({ ...problem, node: host.node })),
      );
    },
  };
}
