import type { KnownNode, MemberReport } from '../members.js';
import type { Observation } from './node-probe.js';

/**
 * What an observation of a node means; pure.
 *
 * @param identifier system identifier of the node's group, undefined while that is not known.
 * @param alias `host:port` of the node that is the same server and whose name counts, if there is one.
 * @returns undefined for a node that is there but does not let us in: nothing is known of it, so its
 *   last report grows stale.
 */
export function judge(
  { groupid, address, registered }: KnownNode,
  { seenAt, answer, failure }: Observation,
  identifier: string | undefined,
  alias?: string,
): MemberReport | undefined {
  const about = { groupid, address, seenAt };
  if (answer === undefined) {
    if (failure === undefined || failure.kind === 'closed') return undefined;
    // The role of a node that is down is not known; what the catalog has will do, as it claims nothing.
    return { ...about, role: registered ?? 'secondary', state: 'unreachable' };
  }
  const seen = {
    ...about,
    role: answer.standby ? 'secondary' : 'primary',
    timeline: answer.timeline,
    systemIdentifier: answer.systemIdentifier,
  } as const;
  const mine = answer.systemIdentifier;
  if (mine !== null && identifier !== undefined && mine !== identifier) {
    return {
      ...seen,
      state: 'foreign',
      reason:
        `another cluster answers at this address: its system identifier is ${mine}, ` +
        `that of group ${groupid} is ${identifier}`,
    };
  }
  if (alias !== undefined) {
    return {
      ...seen,
      state: 'alias',
      reason: `the same server answers as ${alias}; that name counts`,
    };
  }
  return { ...seen, state: answer.streaming ? 'streaming' : 'running' };
}
