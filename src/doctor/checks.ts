import { CATALOG_CHECKS, NODE_CHECKS } from './checks/nodes.js';
import { PARAMETER_CHECKS } from './checks/parameters.js';
import { ROLE_CHECKS } from './checks/rights.js';
import { SCHEMA_CHECKS } from './checks/schema.js';
import { SERVER_CHECKS } from './checks/server.js';
import { SESSION_CHECKS } from './checks/sessions.js';
import { PATRONI_CHECKS, WORK_CHECKS } from './checks/work.js';
import { type Check, type Finding, findingsOf } from './finding.js';
import type { Observed } from './observed.js';

/** Every check, in the order of docs/doctor.md. */
export const CHECKS: readonly Check[] = [
  ...SERVER_CHECKS,
  ...SCHEMA_CHECKS,
  ...ROLE_CHECKS,
  ...PARAMETER_CHECKS,
  ...CATALOG_CHECKS,
  ...NODE_CHECKS,
  ...SESSION_CHECKS,
  ...WORK_CHECKS,
  ...PATRONI_CHECKS,
];

/** What is right and what is not, the worst first. Pure. */
export function findings(observed: Observed): Finding[] {
  return findingsOf(CHECKS, observed);
}
