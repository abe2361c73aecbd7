import { formatTable } from '../../../src/commands/table.js';
import type { Binaries } from '../servers/index.js';
import type { Act, GroupTraffic } from './acts.js';
import type { NodeRow, ReportedTask } from './reports.js';

/** What the demo runs on, and what of it is real. */
export function serversText(binaries: Binaries, citusVersion: string | null): string {
  const source = binaries.source === 'embedded' ? 'embedded' : 'of MPP_PG_BIN';
  const postgres = `PostgreSQL ${binaries.version} (${source})`;
  if (citusVersion !== null) return `${postgres} with Citus ${citusVersion}.`;
  return [
    `${postgres} with a STAND-IN FOR CITUS:`,
    'Citus is in no registry, so SQL of the test suite plays pg_dist_node, its',
    'functions and its locks. The servers, their replication, the stops and the',
    'promotions are real. To see it with the real Citus:',
    '  MPP_PG_BIN=<bin folder of a PostgreSQL that has it> npm run demo',
  ].join('\n');
}

/** One act: when what happened, and what the clients saw. */
export function actText(act: Act): string {
  return [timelineText(act), trafficText(act), ...explanation(act)].join('\n');
}

function timelineText({ kind, groupid, from, to, moments }: Act): string {
  const title = kind === 'switchover' ? 'PLANNED SWITCHOVER' : 'CRASH';
  const start = moments[0]?.at ?? 0;
  const lines = moments.map(({ at, what, text }) => {
    return `${milliseconds(at - start).padStart(10)}  ${what.padEnd(9)}  ${text}`;
  });
  return [`${title} of group ${groupid}: ${from} -> ${to}`, ...lines, ''].join('\n');
}

function trafficText({ traffic, groupid }: Act): string {
  return formatTable(
    ['CLIENTS OF', 'WRITES', 'FAILED', 'READS', 'FAILED', 'LONGEST WAIT'],
    traffic.map((of) => [
      `group ${of.groupid}${of.groupid === groupid ? '' : ' (untouched)'}`,
      of.report.sent.write,
      of.report.failed.write,
      of.report.sent.read,
      of.report.failed.read,
      milliseconds(of.report.longestWaitMs),
    ]),
  );
}

/** What the counts mean, taken from the counts. */
function explanation(act: Act): string[] {
  const reads = total(act.traffic, 'read');
  const writes = total(act.traffic, 'write');
  const { acknowledged, perhaps, found } = act.rows;
  const lines = [
    writes === 0
      ? 'No write failed: they waited for the new primary.'
      : act.kind === 'crash'
        ? `${statements(writes, 'write')} failed between the crash and the hold; after that they waited.`
        : `${statements(writes, 'write')} FAILED; a planned switchover should fail none.`,
  ];
  if (reads > 0) {
    lines.push(
      `${statements(reads, 'read')} failed while no server of the group was there to answer: the pause`,
      'stops writes only (pause = writes, which is what Citus offers).',
    );
  }
  lines.push(
    `Rows acknowledged ${acknowledged}, found ${found}${
      perhaps > 0 ? ` (${statements(perhaps, 'INSERT')} lost the answer)` : ''
    }.`,
  );
  if (found < acknowledged) lines.push('Replication is asynchronous: a crash loses its tail.');
  return ['', ...lines.map((line) => `  ${line}`)];
}

/** The rows of the control table, as they ended. */
export function tasksText(tasks: readonly ReportedTask[]): string {
  const table = formatTable(
    ['id', 'event', 'groupid', 'node', 'status', 'nodeid', 'attempt', 'took'],
    tasks.map((task) => [
      task.id,
      task.event,
      task.groupid,
      task.node,
      task.status,
      task.nodeid,
      task.attempt,
      task.finishedAt === null ? null : milliseconds(task.finishedAt - task.createdAt),
    ]),
  );
  return `MPP_TASKS, every row\n${table}`;
}

/** The rows of `pg_dist_node`, before and after. */
export function nodesText(before: readonly NodeRow[], after: readonly NodeRow[]): string {
  const table = formatTable(
    ['nodeid', 'groupid', 'noderole', 'before', 'after'],
    after.map((row) => {
      const was = before.find(({ nodeid }) => nodeid === row.nodeid);
      return [
        row.nodeid,
        row.groupid,
        row.role,
        was?.node ?? null,
        row.node === was?.node ? 'the same' : row.node,
      ];
    }),
  );
  return `PG_DIST_NODE: each primary keeps its nodeid\n${table}`;
}

function total(traffic: readonly GroupTraffic[], kind: 'read' | 'write'): number {
  return traffic.reduce((count, { report }) => count + report.failed[kind], 0);
}

function statements(count: number, what: string): string {
  return `${count} ${what}${count === 1 ? '' : 's'}`;
}

function milliseconds(ms: number): string {
  return `${Math.round(ms)} ms`;
}
