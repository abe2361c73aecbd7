import pg from 'pg';
import { onServer } from '../finding.js';
import type { HostSeen, Observed } from '../observed.js';

/** What is to be run on the coordinator. */
export function onCoordinator(
  { hosts, target }: Observed,
  ...statements: readonly string[]
): string[] {
  return onServer(coordinatorOf(hosts)?.node ?? target.node, ...statements);
}

function coordinatorOf(hosts: readonly HostSeen[]): HostSeen | undefined {
  return hosts.find(({ isCoordinator }) => isCoordinator);
}

/** A function or table of the schema, qualified. */
export function ofSchema({ target }: Observed, name: string): string {
  return `${pg.escapeIdentifier(target.schema)}.${name}`;
}
