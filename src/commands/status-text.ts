import {
  nodeDifference,
  nodeName,
  type NodeStatus,
  type SeenAs,
  type Status,
} from '../controller/status.js';
import { formatTable } from './output.js';

/** The status for people: one paragraph for each question, "none" where there is nothing to show. */
export function statusText(status: Status): string {
  const paragraphs = [controllers(status), holds(status), queue(status)];
  if (status.nodes !== null) paragraphs.push(nodes(status.nodes));
  if (status.maintenance.length > 0) paragraphs.push(maintenance(status.maintenance));
  return paragraphs.join('\n\n');
}

function controllers(status: Status): string {
  const active = status.controllers.some(({ state }) => state === 'active');
  const warning = active
    ? []
    : ['  None is active: reports wait until one runs (mpp-controller run).'];
  const table = section(
    'Controllers',
    ['STATE', 'HOST', 'PID', 'VERSION', 'STRATEGY', 'MAX HOLDS', 'LAST SEEN', 'ID'],
    status.controllers.map((row) => [
      row.state,
      row.host,
      row.pid,
      row.version,
      row.strategy,
      row.maxHolds ?? 'unlimited',
      `${age(row.heartbeatAge)} ago`,
      row.controller,
    ]),
  );
  return [table, ...warning].join('\n');
}

function holds(status: Status): string {
  return section(
    'Groups held',
    ['GROUP', 'SINCE', 'ENDS', 'WAITING', 'TASKS', 'PID', 'NOTE'],
    status.holds.map((row) => [
      row.groupid,
      `${age(row.age)} ago`,
      row.remaining > 0 ? `in ${age(row.remaining)}` : 'now',
      row.sessionsWaiting,
      row.tasks.join(', '),
      row.pid,
      row.reason ?? '',
    ]),
  );
}

function queue(status: Status): string {
  const oldest =
    status.oldestPending === null ? '' : `, the oldest for ${age(status.oldestPending)}`;
  return section(
    `Tasks (${status.backlog} pending${oldest})`,
    ['NEXT', 'TASK', 'GROUP', 'EVENT', 'NODE', 'STATUS', 'AGE', 'WHY'],
    status.queue.map((row) => [
      row.position,
      row.id,
      row.groupid,
      row.event,
      nodeName(row),
      row.status,
      age(row.age),
      row.why,
    ]),
  );
}

function nodes(rows: readonly NodeStatus[]): string {
  return section(
    'Nodes (pg_dist_node, and what they are seen to be)',
    ['GROUP', 'ROLE', 'NODE', 'NODEID', 'SEEN AS', 'DIFFERENCE', 'ACTIVE', 'METADATA', 'CLUSTER'],
    rows.map((row) => [
      ...[row.groupid, row.role ?? 'not registered', nodeName(row), row.nodeid],
      row.seen.map(seenAs).join('; ') || null,
      nodeDifference(row)?.text ?? '',
      ...(row.nodeid === null
        ? ['', '', '']
        : [row.active ? 'yes' : 'no', row.metadataSynced ? 'in sync' : 'not in sync', row.cluster]),
    ]),
  );
}

function seenAs({ role, state, source, age: seconds, isStale }: SeenAs): string {
  const when = isStale ? `, ${age(seconds)} ago` : '';
  return `${role} ${state} (${source}${when})`;
}

function maintenance(rows: Status['maintenance']): string {
  return section(
    'Maintenance: the comparison and the probe make no tasks',
    ['GROUP', 'UNTIL', 'STARTED BY', 'REASON'],
    rows.map((row) => [row.groupid ?? 'all', row.until, row.startedBy, row.reason ?? '']),
  );
}

function section(
  title: string,
  titles: readonly string[],
  rows: readonly (readonly (string | number | null)[])[],
): string {
  return `${title}\n${rows.length === 0 ? '  none' : formatTable(titles, rows)}`;
}

/** Seconds as a person reads them: tenths below ten, then the two largest units. */
function age(seconds: number): string {
  if (seconds < 10) return `${Math.max(0, seconds).toFixed(1)}s`;
  const whole = Math.floor(seconds);
  const parts: [number, string][] = [
    [Math.floor(whole / 86_400), 'd'],
    [Math.floor(whole / 3_600) % 24, 'h'],
    [Math.floor(whole / 60) % 60, 'min'],
    [whole % 60, 's'],
  ];
  const first = parts.findIndex(([count]) => count > 0);
  return parts
    .slice(first, first + 2)
    .filter(([count]) => count > 0)
    .map(([count, unit]) => `${count}${unit}`)
    .join(' ');
}
