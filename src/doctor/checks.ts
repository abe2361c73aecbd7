import { SCHEMA_CHECKS } from './checks/schema.js';
import { SERVER_CHECKS } from './checks/server.js';
import { type Check, type Finding, findingsOf } from './finding.js';
import type { Observed } from './observed.js';

/** Every check, in the order of docs/doctor.md. */
export const CHECKS: readonly Check[] = [...SERVER_CHECKS, ...SCHEMA_CHECKS];

/** What is right and what is not, the worst first. Pure. */
export function findings(observed: Observed): Finding[] {
  return findingsOf(CHECKS, observed);
}
