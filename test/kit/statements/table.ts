import type { Answer } from './client.js';
import type { Fate, Outcome } from './measure.js';
import type { UnderWayOutcome } from './measure-under-way.js';
import { ENTRIES, PAUSES, type Entry, type Pause } from './stage.js';

/** A row of a table, as it is on the page: a cell for each pause and entry node. */
export interface Row {
  readonly name: string;
  readonly cells: readonly string[];
}

/** The columns after the first, in their order. */
export const COLUMNS: readonly { readonly pause: Pause; readonly entry: Entry }[] = PAUSES.flatMap(
  (pause) => ENTRIES.map((entry) => ({ pause, entry })),
);

const BEGIN = '<!-- statements:begin -->';
const END = '<!-- statements:end -->';

const [SENT, UNDER_WAY] = ['sent while the group is held', 'under way before'];
const HEADS = new Set([SENT, UNDER_WAY]);

const REFUSED = 'operation is not allowed on this node';

/** How a shard move says that it cannot connect. */
const UNREACHABLE = /^Could not fetch disk stats for node/;

/** What the errors of the tables mean; there are no others. */
const ERRORS = new Map([
  [
    '08006',
    'the connection to the old primary was refused, or lost when it stopped (then it may be `57P01`)',
  ],
  [
    '55000',
    '"… is a metadata node, but is out of sync": Citus refuses it until all nodes have the new row',
  ],
  [
    '22000',
    '"could not find placement": it goes on with the old primary\'s address, which it read before it waited',
  ],
  ['0A000', '"Moving shards to a non-existing node", for the same reason'],
  ['57014', 'the statement was cancelled, because the hold waited for it'],
  [
    '57P01',
    'the session was terminated, because the hold waited for it until the cooldown was over',
  ],
  ['refused', `"${REFUSED}": Citus takes it on the coordinator alone, with or without a hold`],
]);

/** What is otherwise where the nodes' hosts and ports sort otherwise. */
const ORDER = [
  'Citus locks the nodes in the order of host and port for `TRUNCATE` and `LOCK TABLE`, by a list from before it waits.',
  'Here the group sorts last. Where it sorts first, a `LOCK TABLE` that waits goes through.',
];

const UNSYNCED = '55000';

/**
 * The cell for a statement that is sent while the group is held.
 *
 * @param isRace whether it may end well or for want of sync
 */
export function cellOf({ held, stopped, end }: Outcome, isRace = false): string {
  if (held === 'waits' && isRace && (!end?.failed || errorOf(end) === UNSYNCED))
    return `waits, then goes on or fails (${UNSYNCED})`;
  if (held === 'waits') return waitingCell(end);
  if (held.failed) return failedCell(held);
  if (stopped === 'waits') return `passes; once the primary is stopped, ${waitingCell(end)}`;
  if (stopped?.failed) return `passes; ${failedCell(stopped)} once the primary is stopped`;
  return 'passes';
}

function waitingCell(end: Answer | undefined): string {
  return end?.failed ? `waits, then ${failedCell(end)}` : 'waits';
}

/** The cell for what was under way before. */
export function underWayCellOf({ ended, whole, held, end }: UnderWayOutcome): string {
  const hold = whole ? '' : '; the hold is `writes`';
  return `${underWayText(ended, held, end)}${hold}`;
}

function underWayText(ended: Answer | undefined, held?: Fate, end?: Answer): string {
  if (ended?.failed) {
    const error = errorOf(ended);
    if (error === '57014') return `is cancelled (${error})`;
    return error === '57P01' ? `is terminated (${error})` : failedCell(ended);
  }
  if (held === 'waits') return waitingCell(end);
  return end?.failed ? failedCell(end) : 'goes on';
}

function failedCell(answer: Failure): string {
  const error = errorOf(answer);
  if (error === 'refused') return 'is refused';
  // Which of the two it is depends on what Citus was doing when the server stopped.
  return `fails (${error === '57P01' ? '08006' : error})`;
}

/** @throws Error with the message when it is none of those that the page explains. */
function errorOf({ code, message }: Failure): string {
  const error = message === REFUSED ? 'refused' : UNREACHABLE.test(message) ? '08006' : code;
  if (ERRORS.has(error)) return error;
  throw new Error(`a statement fails with what the page does not explain: ${code} ${message}`);
}

type Failure = Answer & { readonly failed: true };

/** What stands between the markers: the tables, then their errors. */
export function renderTables(statements: readonly Row[], underWay: readonly Row[]): string {
  const cells = [...statements, ...underWay].flatMap((row) => row.cells);
  const errors = [...ERRORS]
    .filter(([error]) => cells.some((cell) => cell.includes(error)))
    .map(([error, meaning]) => `- ${error === 'refused' ? error : `\`${error}\``}: ${meaning}.`);
  return [
    ...table(SENT, statements),
    '',
    ...table(UNDER_WAY, underWay),
    '',
    ...errors,
    '',
    ...ORDER,
  ].join('\n');
}

function table(first: string, rows: readonly Row[]): string[] {
  const heads = COLUMNS.map(({ pause, entry }) => `\`${pause}\`, ${entry}`);
  const lines = [[first, ...heads], [first, ...heads].map(() => '---')];
  return [...lines, ...rows.map(({ name, cells }) => [name, ...cells])].map(
    (cells) => `| ${cells.join(' | ')} |`,
  );
}

/** The page with the tables between its markers. @throws Error when it has no markers */
export function replaceTables(page: string, tables: string): string {
  const { before, after } = split(page);
  return `${before}${BEGIN}\n\n${tables}\n\n${END}${after}`;
}

/** The rows of the tables on the page, by their names. */
export function rowsOf(page: string): Map<string, readonly string[]> {
  const lines = split(page).between.split('\n');
  const rows = lines
    .filter((line) => line.startsWith('|'))
    .map((line) =>
      line
        .split('|')
        .slice(1, -1)
        .map((cell) => cell.trim()),
    )
    .filter(([name = '']) => !HEADS.has(name) && !/^-+$/.test(name));
  return new Map(rows.map(([name = '', ...cells]) => [name, cells]));
}

function split(page: string): { before: string; between: string; after: string } {
  const [begin, end] = [page.indexOf(BEGIN), page.indexOf(END)];
  if (begin < 0 || end < begin) throw new Error(`the page has no ${BEGIN} … ${END}`);
  return {
    before: page.slice(0, begin),
    between: page.slice(begin + BEGIN.length, end),
    after: page.slice(end + END.length),
  };
}
