import { z } from 'zod';
import { isHost, plainHost } from '../../host.js';
import type { MemberReport } from '../members.js';

/**
 * What `GET /cluster` says, in all of Patroni's versions; what is not read here may change. A tag is
 * anything that YAML can write.
 */
const CLUSTER = z.object({
  members: z.array(
    z.object({
      role: z.string(),
      state: z.string().optional(),
      host: z.string().optional(),
      port: z.number().optional(),
      timeline: z.number().optional(),
      tags: z.record(z.string(), z.unknown()).optional(),
    }),
  ),
});

/** What one answer says of a group. */
export interface PatroniCluster {
  readonly reports: readonly MemberReport[];
  /** False when a member has not published its address yet: who is not listed may be that one. */
  readonly complete: boolean;
}

/**
 * Reads an answer of Patroni; pure.
 *
 * - `leader` is the primary; a `standby_leader` takes no writes, so its group has none.
 * - `noloadbalance`: the node is to serve no reads, which is all that a secondary is for in
 *   pg_dist_node; Patroni registers no such node either.
 * - `nofailover` says nothing of reads. Such a node is a secondary like any other; whether it may be
 *   promoted is for Patroni to decide, and here only the member that has the leader key is the primary.
 *
 * @param seenAt when it was asked, as performance.now() has it.
 * @throws ZodError when it is no answer of Patroni.
 */
export function readAnswer(answer: unknown, groupid: number, seenAt: number): PatroniCluster {
  const { members } = CLUSTER.parse(answer);
  const reports = members.flatMap((member): MemberReport[] => {
    const { port = 5432 } = member;
    const host = plainHost(member.host ?? '');
    // The table refuses any other host, and with it all that is written in one statement.
    if (!isHost(host) || !isPort(port)) return [];
    const { timeline } = member;
    return [
      {
        groupid,
        address: { host, port },
        role: PRIMARY_ROLES.has(member.role) ? 'primary' : 'secondary',
        state: stateOf(member.state),
        timeline: timeline !== undefined && isTimeline(timeline) ? timeline : null,
        noloadbalance: isSet(member.tags?.['noloadbalance']),
        seenAt,
      },
    ];
  });
  return { reports, complete: members.length > 0 && reports.length === members.length };
}

/** `master` and `primary` in answers of versions before 2.0 and of forks. */
const PRIMARY_ROLES = new Set(['leader', 'master', 'primary']);

/** The word of Patroni, if the table takes it. */
function stateOf(state: string | undefined): string {
  const isWord = state !== undefined && /^[a-z][a-z ()_-]{0,62}$/i.test(state);
  // Only what this source has written: what Patroni still lists has not left.
  return isWord && state !== 'removed' ? state : 'unknown';
}

function isSet(tag: unknown): boolean {
  return tag === true || (typeof tag === 'string' && /^(true|yes|on|1)$/i.test(tag));
}

function isPort(port: number): boolean {
  return Number.isInteger(port) && port >= 1 && port <= 65_535;
}

function isTimeline(timeline: number): boolean {
  return Number.isInteger(timeline) && timeline >= 1 && timeline <= 2_147_483_647;
}
