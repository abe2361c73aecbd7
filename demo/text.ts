import { formatTable } from '../src/commands/output.js';
import type { Binaries } from '../test/kit/servers/index.js';
import type { TrafficReport } from '../test/kit/traffic/traffic.js';
import type { Act } from './acts.js';
import type { NodeRow } from './reports.js';

const WIDTH = 78;
/** Failures of one act that are told in full, where none should be. */
const TOLD = 3;

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

/** Why a report did less than it was asked for. */
export function reasonText(reason: string): string {
  return indent(reason, 12);
}

/** Who the clients are. */
export function clientsText(clients: number): string {
  return indent(
    `${clients} clients read and write rows of group 1, singly and in transactions. Half of them enter ` +
      'through the coordinator, half through the worker of group 2.',
    0,
  );
}

/** The switchovers side by side. */
export function switchoversText(acts: readonly Act[]): string {
  const faults = acts.flatMap(faultsOf);
  const meaning =
    faults.length === 0
      ? PAUSES
      : indent(`THIS SHOULD NOT HAVE HAPPENED: ${faults.slice(0, TOLD).join('; ')}`, 2);
  return [
    'THE SAME PLANNED SWITCHOVER, THREE TIMES',
    table('PAUSE', acts),
    '',
    meaning,
    indent(changesText(acts), 2),
  ].join('\n');
}

const PAUSES = `\
  none    nobody waits: what is sent fails until the new primary is known
  writes  writes wait for the new primary; reads go on, and fail
  all     everybody waits, and nobody fails`;

/** The crashes side by side. */
export function crashesText(acts: readonly Act[], detectionMs: number): string {
  return [
    `THE SAME CRASH, TWICE: the HA manager notices it after ${detectionMs / 1_000} s`,
    table('SUSPECT', acts),
    '',
    indent(
      'Any client that gets no connection may send suspect. What was sent before fails, ' +
        'all else waits for the new primary.',
      2,
    ),
    indent(changesText(acts), 2),
  ].join('\n');
}

/** The rows of `pg_dist_node`, before and after. */
export function nodesText(before: readonly NodeRow[], after: readonly NodeRow[]): string {
  const rows = formatTable(
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
  return `PG_DIST_NODE: each primary keeps its nodeid\n${rows}`;
}

/** What a planned switchover did to its clients although its pause should have spared them. */
export function faultsOf({ name, traffic, changes }: Act): string[] {
  const { acknowledged, perhaps, found } = changes;
  const exact = found >= acknowledged && found <= acknowledged + perhaps;
  const waits = (kind: string) => name === 'all' || (name === 'writes' && kind !== 'read');
  return [
    ...(exact ? [] : [`${acknowledged} changes became ${found} with ${name}`]),
    ...traffic.failures
      .filter(({ kind }) => waits(kind))
      .map(({ kind, entry, message }) => `a ${kind} through ${entry} with ${name}: ${message}`),
  ];
}

function table(title: string, acts: readonly Act[]): string {
  return formatTable(
    [title, 'FAILED WRITES', 'FAILED READS', 'FAILED TRANSACTIONS', 'LONGEST WAIT'],
    acts.map(({ name, traffic }) => [name, ...cells(traffic)]),
  );
}

function cells({ failed, longestWaitMs }: TrafficReport): (string | number)[] {
  return [failed.write, failed.read, failed.transaction, `${Math.round(longestWaitMs)} ms`];
}

function changesText(acts: readonly Act[]): string {
  const total = (of: (act: Act) => number) => acts.reduce((sum, act) => sum + of(act), 0);
  const acknowledged = total(({ changes }) => changes.acknowledged);
  const found = total(({ changes }) => changes.found);
  const counts = `${acknowledged} changes were acknowledged, ${found} are there`;
  if (found > acknowledged) return `${counts}: of ${found - acknowledged} the answer was lost.`;
  return `${counts}.${found < acknowledged ? ' Replication is asynchronous: a crash loses its tail.' : ''}`;
}

/** Lines of at most 78 characters, indented. */
function indent(text: string, blanks: number): string {
  const lines: string[] = [];
  let line = '';
  for (const word of text.split(/\s+/)) {
    if (line !== '' && blanks + line.length + 1 + word.length > WIDTH) {
      lines.push(line);
      line = word;
    } else line = line === '' ? word : `${line} ${word}`;
  }
  return [...lines, line].map((each) => `${' '.repeat(blanks)}${each}`).join('\n');
}
