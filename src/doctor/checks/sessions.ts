import pg from 'pg';
import { isIP } from 'node:net';
import { parseAddress } from '../../address.js';
import { onServer, type Check, type Problem } from '../finding.js';
import type { HostSeen, LocalSeen, Observed } from '../observed.js';
import { onCoordinator } from './places.js';

/** Clocks that differ by less are taken for equal. */
const SKEW_MS = 1_000;

export const SESSION_CHECKS: readonly Check[] = [
  forHosts('prepared-transaction', 'No prepared transaction is left over.', ({ local, node }) =>
    local.prepared.map(({ gid, ageMs }) => ({
      level: isOfOtherManager(gid) ? 'error' : 'warning',
      sentence: isOfOtherManager(gid)
        ? `pg_auto_failover has prepared a change of pg_dist_node on ${node} and not ended it: every change waits for it.`
        : `A prepared transaction on ${node} has not ended: a hold waits for what it has locked.`,
      expected: 'no prepared transaction that lasts',
      actual: `${gid}, for ${seconds(ageMs)}`,
      // Whether Citus's own is to be committed is in the table of the coordinator that began it.
      fix: gid.startsWith('citus_')
        ? onServer(node, 'SELECT recover_prepared_transactions()')
        : onServer(node, `ROLLBACK PREPARED ${pg.escapeLiteral(gid)}`),
    })),
  ),
  forHosts(
    'transaction-open',
    'No transaction has been open for long.',
    ({ local, node, role: part }) =>
      // A hold locks nothing on a standby.
      (part === 'primary' ? local.transactions : []).map(
        ({ pid, role, application, state, ageMs }) => ({
          level: 'warning',
          sentence: `A transaction on ${node} has been open for long: a hold waits for what it has locked.`,
          expected: 'transactions that end soon',
          actual: `pid ${pid}, role ${role ?? 'unknown'}, application ${application}, ${state} for ${seconds(ageMs)}`,
          fix: onServer(node, `SELECT pg_terminate_backend(${pid})`),
        }),
      ),
  ),
  forHosts('slot-inactive', 'Every replication slot is in use.', ({ local, node }) =>
    local.slots.map(({ name, isOfCitus }) => ({
      level: 'warning',
      sentence: `The replication slot ${name} on ${node} is not in use: the server keeps WAL for it.`,
      expected: 'a slot that is in use',
      actual: 'an inactive slot',
      fix: isOfCitus
        ? onServer(node, 'CALL citus_cleanup_orphaned_resources()')
        : onServer(node, `SELECT pg_drop_replication_slot(${pg.escapeLiteral(name)})`),
    })),
  ),
  forHosts('clock', 'The clocks of all servers agree.', ({ local, node }, { hosts }) => {
    const own = hosts.find(({ isCoordinator }) => isCoordinator)?.local ?? null;
    if (own === null) return [];
    const ahead = local.clockMs - own.clockMs;
    if (Math.abs(ahead) - local.clockErrorMs - own.clockErrorMs <= SKEW_MS) return [];
    return [
      {
        level: 'warning',
        sentence: `The clock of ${node} differs from that of the coordinator.`,
        expected: 'a difference of at most 1 s',
        actual: `${(Math.abs(ahead) / 1_000).toFixed(1)} s ${ahead > 0 ? 'ahead' : 'behind'}`,
        fix: [`# on ${node}`, 'sudo chronyc makestep'],
      },
    ];
  }),
  forHosts('tls-off', 'Sessions with remote nodes are encrypted.', ({ local, node }) =>
    local.isEncrypted || isLocal(parseAddress(node).host)
      ? []
      : [
          {
            level: 'note',
            sentence: `The session with ${node} is not encrypted.`,
            expected: 'TLS',
            actual: 'no TLS',
            fix: [
              '# see docs/connecting.md: add ?sslmode=verify-full to DATABASE_URL and MPP_NODE_URL',
            ],
          },
        ],
  ),
  forHosts('standby-unregistered', 'Every standby has its row.', standbysWithoutRow),
];

/** pg_auto_failover's own gid for a worker that it promotes. */
function isOfOtherManager(gid: string): boolean {
  return /^master_update_node \d+$/.test(gid);
}

/** A check of each server that has answered. */
function forHosts(
  id: string,
  ok: string,
  find: (
    host: HostSeen & { readonly local: LocalSeen },
    observed: Observed,
  ) => readonly Omit<Problem, 'node'>[],
): Check {
  return {
    id,
    ok,
    problems: (observed) => {
      const read = observed.hosts.flatMap((host) =>
        host.local === null ? [] : [{ ...host, local: host.local }],
      );
      if (read.length === 0) return null;
      return read.flatMap((host) =>
        find(host, observed).map((problem) => ({ ...problem, node: host.node })),
      );
    },
  };
}

/** By number: a server doesn't say on which port its standbys take connections. */
function standbysWithoutRow(
  { groupid, role, node, local }: HostSeen & { readonly local: LocalSeen },
  observed: Observed,
): Omit<Problem, 'node'>[] {
  const rows = observed.catalog?.nodes.filter(
    (row) => row.groupid === groupid && row.role !== 'primary',
  );
  // A secondary of group 0 is none that Citus has any use for.
  if (role !== 'primary' || groupid === 0 || rows === undefined) return [];
  const missing = local.standbys.length - rows.length;
  if (missing <= 0) return [];
  const primary = parseAddress(node);
  const known = observed.groups?.unregistered.filter((one) => one.groupid === groupid) ?? [];
  const { host, port } = known[0]?.address ?? {
    host: local.standbys[0]?.host ?? 'HOST',
    port: 'PORT',
  };
  const add = `SELECT citus_add_secondary_node(${pg.escapeLiteral(host)}, ${port}, ${pg.escapeLiteral(primary.host)}, ${primary.port})`;
  return [
    {
      level: 'note',
      sentence: `Standbys stream from ${node} that are no secondary in pg_dist_node.`,
      expected: `${rows.length} standbys, as pg_dist_node has secondaries of group ${groupid}`,
      actual: `${local.standbys.length}: ${local.standbys.map(({ application }) => application).join(', ')}`,
      fix: onCoordinator(observed, add),
    },
  ];
}

function isLocal(host: string): boolean {
  if (host.startsWith('/') || host === 'localhost' || host === '::1') return true;
  return isIP(host) === 4 && host.startsWith('127.');
}

function seconds(ms: number): string {
  return `${Math.round(ms / 1_000)} s`;
}
