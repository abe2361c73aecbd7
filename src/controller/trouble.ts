import type pg from 'pg';
import { formatDuration } from '../config/formats.js';
import { nodeDifference, nodeName, type Status } from './status.js';

/** How a monitoring system counts it; the exit code of `status --check` is the index of the word. */
export const LEVELS = ['OK', 'WARNING', 'CRITICAL', 'UNKNOWN'] as const;
export type Level = (typeof LEVELS)[number];

/** What is tolerated, in milliseconds. */
export interface CheckLimits {
  /** A task that waits for longer is critical, for half as long a warning. */
  readonly pendingMs: number;
  /** A task that failed within this time is a warning. */
  readonly failedMs: number;
}

/** Those of `status --check` by default. */
export const DEFAULT_LIMITS: CheckLimits = { pendingMs: 60_000, failedMs: 3_600_000 };

/** Tasks that failed, and the groups of which nothing has succeeded since. */
export interface Failures {
  readonly task: number;
  readonly groupid: number;
}

export interface Finding {
  readonly level: Level;
  readonly text: string;
}

/** How late a hold may be ended: the controller looks when the deadline passes. */
const LATE_S = 5;

/** What is wrong, the worst first; empty when all is well. Pure. */
export function findTrouble(
  status: Status,
  failures: readonly Failures[],
  limits: CheckLimits,
): Finding[] {
  const findings: Finding[] = [];
  const add = (level: Level, text: string): void => void findings.push({ level, text });
  if (!status.controllers.some(({ state }) => state === 'active')) {
    add('CRITICAL', 'no controller is active: run mpp-controller run');
  }
  for (const { groupid, remaining, pid } of status.holds) {
    if (remaining < -LATE_S) {
      add('CRITICAL', `the hold of group ${groupid} is ${seconds(-remaining)} past its deadline`);
    } else if (pid === null) add('WARNING', `the hold of group ${groupid} has lost its session`);
  }
  const oldest = (status.oldestPending ?? 0) * 1_000;
  if (oldest > limits.pendingMs / 2) {
    const limit = formatDuration(limits.pendingMs);
    add(
      oldest > limits.pendingMs ? 'CRITICAL' : 'WARNING',
      `a task has been pending for ${seconds(oldest / 1_000)} (limit ${limit})`,
    );
  }
  for (const node of status.nodes ?? []) {
    const difference = nodeDifference(node);
    if (difference?.isOfPrimary !== true) continue;
    add('WARNING', `group ${node.groupid}: ${nodeName(node)} ${difference.text}`);
  }
  for (const { task, groupid } of failures) {
    add('WARNING', `task ${task} of group ${groupid} failed, and none has succeeded since`);
  }
  return findings.sort((a, b) => LEVELS.indexOf(b.level) - LEVELS.indexOf(a.level));
}

/** One line, as monitoring systems want it. */
export function checkLine(findings: readonly Finding[], status: Status): string {
  const [worst] = findings;
  if (worst !== undefined) {
    return `MPP ${worst.level} - ${findings.map(({ text }) => text).join('; ')}`;
  }
  const active = status.controllers.find(({ state }) => state === 'active');
  const held = status.holds.length;
  const counts = `${status.backlog} pending, ${held} held${maintenanceNote(status)}`;
  return `MPP OK - active on ${active?.host ?? 'unknown'}, ${counts}`;
}

function maintenanceNote({ maintenance }: Status): string {
  if (maintenance.length === 0) return '';
  const groups = maintenance.map(({ groupid }) => (groupid === null ? 'all groups' : groupid));
  return `, in maintenance: ${groups.join(', ')}`;
}

/** @param db a session that names the schema as `@mpp.` */
export async function readFailures(
  db: pg.ClientBase,
  withinMs: number,
): Promise<readonly Failures[]> {
  const { rows } = await db.query<Failures>(FAILURES, [withinMs]);
  return rows;
}

/** One a group: the newest. Reads what has ended within that time, by the index on finished_at. */
const FAILURES = `
  SELECT DISTINCT ON (t.groupid) t.id::float8 AS task, t.groupid
  FROM @mpp.mpp_tasks AS t
  WHERE t.finished_at > statement_timestamp() - $1::float8 * interval '1 ms'
    AND t.status = 'failed'
    AND NOT EXISTS (
      SELECT
      FROM @mpp.mpp_tasks AS d
      WHERE d.finished_at > statement_timestamp() - $1::float8 * interval '1 ms'
        AND d.groupid = t.groupid AND d.status = 'done' AND d.id > t.id)
  ORDER BY t.groupid, t.id DESC`;

function seconds(value: number): string {
  return `${Math.round(value)} s`;
}
