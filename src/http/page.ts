import type { Overview } from '../controller/overview.js';
import { elapsed, type PastSwitchover } from '../controller/past-switchovers.js';
import {
  nodeDifference,
  nodeName,
  type NodeStatus,
  type SeenAs,
  type Status,
} from '../controller/status.js';
import { DEFAULT_LIMITS, type Finding, findTrouble } from '../controller/trouble.js';
import type { Html } from './html.js';
import { html } from './html.js';
import { barsOf } from './page-bars.js';

/** One database as the page shows it. */
export interface Shown {
  /** Its name where there are several. */
  readonly database: string | undefined;
  /** What was read, or why nothing was. */
  readonly overview: Overview | Error;
}

/** The page: what is wrong first, then what is held, then all else. Pure. */
export function pageOf(databases: readonly Shown[], readAt: Date): string {
  const parts = databases.map((shown) => partOf(shown));
  const worst = parts.find(({ level }) => level === 'CRITICAL') ?? parts[0];
  const time = readAt.toISOString();
  return html`<!doctype html>
    <html lang="en">
      <head>
        <meta charset="utf-8" />
        <meta name="viewport" content="width=device-width, initial-scale=1" />
        <title>${worst?.level ?? 'OK'} - mpp-controller</title>
        <link rel="stylesheet" href="/page.css" />
        <noscript><meta http-equiv="refresh" content="5" /></noscript>
        <script src="/page.js" defer></script>
      </head>
      <body>
        <main id="page">
          <h1>mpp-controller</h1>
          ${parts.map(({ body }) => body)}
          <p class="fresh">
            As of <time datetime="${time}">${time.slice(0, 19).replace('T', ' ')} UTC</time>.
            <span id="lost" role="status"></span>
          </p>
        </main>
      </body>
    </html> `.text;
}

interface Part {
  readonly level: Finding['level'];
  readonly body: Html;
}

function partOf({ database, overview }: Shown): Part {
  const title =
    database === undefined ? null : html`<h2 class="database">Database ${database}</h2>`;
  if (overview instanceof Error) {
    const finding: Finding = {
      level: 'CRITICAL',
      text: `the database cannot be asked: ${overview.message}; see the log of this controller`,
    };
    return { level: 'CRITICAL', body: html`${title}${verdict([finding])}` };
  }
  const { status, failures } = overview;
  const findings = findTrouble(status, failures, DEFAULT_LIMITS);
  const body = html`${title}${verdict(findings, wellText(status))} ${maintenance(status)}
  ${holds(overview)} ${groups(status)} ${queue(status)} ${controllers(status)}
  ${past(overview.switchovers)} ${sources(status)}`;
  return { level: findings[0]?.level ?? 'OK', body };
}

function wellText({ holds: { length } }: Status): string {
  if (length === 0) return 'All is well';
  return `All is well; ${length === 1 ? '1 group is' : `${length} groups are`} held`;
}

const SIGNS = { OK: '✔', WARNING: '▲', CRITICAL: '✖', UNKNOWN: '?' } as const;

function verdict(findings: readonly Finding[], well = ''): Html {
  const [worst, ...others] = findings;
  const level = worst?.level ?? 'OK';
  const sentence = worst?.text ?? well;
  const rest = others.map(({ level: its, text }) => html`<li>${its}: ${text}</li>`);
  return html`<section class="verdict ${level.toLowerCase()}" aria-label="Verdict">
    <p>
      <span class="sign" aria-hidden="true">${SIGNS[level]}</span>
      <strong>${level}</strong> ${sentence}
    </p>
    ${
      rest.length === 0
        ? null
        : html`<ul>
            ${rest}
          </ul>`
    }
  </section>`;
}

function maintenance({ maintenance: rows }: Status): Html {
  if (rows.length === 0) return html``;
  const cells = rows.map((row) => [row.groupid ?? 'all', row.until, row.startedBy, row.reason]);
  const note = 'The comparison and the probe make no tasks.';
  return section('Maintenance', ['Group', 'Until', 'Started by', 'Reason'], cells, note);
}

function holds({ status, blockers }: Overview): Html {
  const held = status.holds.map((row) => [
    row.groupid,
    row.remaining > 0 ? `${Math.ceil(row.remaining)} s` : 'over',
    row.sessionsWaiting,
    `${row.age.toFixed(1)} s`,
    row.tasks.join(', '),
    row.reason,
    html`<code>SELECT mpp_release(${row.groupid})</code>`,
  ]);
  const titles = ['Group', 'Ends in', 'Sessions wait', 'Held for', 'Tasks', 'Note', 'To end it'];
  const blocking = blockers.map((row) => [
    ...[row.groupid, row.blocks, row.described, row.endsAt ?? 'waited for'],
  ]);
  return html`${section('Groups held', titles, held)}
  ${
    blocking.length === 0
      ? null
      : section('Blocking sessions', ['Group', 'Blocks', 'Session', 'Ended at (UTC)'], blocking)
  }`;
}

/** Those that differ come first. */
function groups({ nodes }: Status): Html {
  const rows = (nodes ?? []).map((node) => ({ node, difference: nodeDifference(node) }));
  const rank = ({ difference }: (typeof rows)[number]): number =>
    difference === undefined ? 2 : difference.isOfPrimary ? 0 : 1;
  const sorted = [...rows].sort((a, b) => rank(a) - rank(b) || a.node.groupid - b.node.groupid);
  const cells = sorted.map(({ node, difference }) => [
    ...[node.groupid, node.role ?? 'not registered', nodeName(node)],
    node.seen.map(seenAs).join('; ') || '-',
    difference === undefined ? '' : html`<strong class="differs">▲ ${difference.text}</strong>`,
    metadataOf(node),
  ]);
  const titles = ['Group', 'Registered as', 'Node', 'Seen as', 'Difference', 'Metadata'];
  return section('Groups', titles, cells);
}

function metadataOf({ nodeid, metadataSynced }: NodeStatus): string {
  if (nodeid === null) return '';
  return metadataSynced === true ? 'in sync' : 'not in sync';
}

function seenAs({ role, state, source, isStale, age }: SeenAs): string {
  return `${role} ${state} (${source}${isStale ? `, ${Math.round(age)} s ago` : ''})`;
}

function queue({ queue: rows, backlog }: Status): Html {
  const cells = rows.map((row) => [
    ...[row.id, row.groupid, row.event, nodeName(row), row.status, `${Math.round(row.age)} s`],
    row.why,
  ]);
  const titles = ['Task', 'Group', 'Event', 'Node', 'Status', 'Age', 'Why it stands there'];
  return section(`Tasks, ${backlog} pending`, titles, cells);
}

function controllers({ controllers: rows }: Status): Html {
  const cells = rows.map((row) => [
    ...[row.state, row.host, row.pid, row.version, row.strategy ?? '-'],
    `${row.heartbeatAge.toFixed(1)} s ago`,
  ]);
  const titles = ['State', 'Host', 'PID', 'Version', 'Strategy', 'Last seen'];
  return section('Controllers', titles, cells);
}

function past(rows: readonly PastSwitchover[]): Html {
  const bars = barsOf(rows);
  const cells = rows.map((row, index) => [
    ...[row.ended, row.groupid, row.kind, row.from ?? '-', row.to ?? '-'],
    bars[index] ?? null,
    ...[elapsed(row.heldMs) ?? '-', elapsed(row.longestWaitMs) ?? '-'],
    ...[row.sessionsWaiting ?? '-', row.sessionsTerminated ?? '-', row.reason],
  ]);
  const titles = [
    ...['Ended (UTC)', 'Group', 'Kind', 'From', 'To', 'Opening, held, committing'],
    ...['Held', 'Longest wait', 'Waited', 'Ended sessions', 'Reason'],
  ];
  return section('The last switchovers', titles, cells);
}

/** The freshest report of each. */
function sources({ nodes }: Status): Html {
  const ages = new Map<string, number>();
  for (const { source, age } of (nodes ?? []).flatMap(({ seen }) => seen)) {
    ages.set(source, Math.min(age, ages.get(source) ?? Infinity));
  }
  const cells = [...ages].map(([source, age]) => [source, `${age.toFixed(1)} s ago`]);
  return section('Sources', ['Source', 'Last report'], cells);
}

type Cell = Html | string | number | null;

function section(
  title: string,
  titles: readonly string[],
  rows: readonly (readonly Cell[])[],
  note: string | null = null,
): Html {
  const head = titles.map((one) => html`<th scope="col">${one}</th>`);
  const lines = rows.map((cells) => {
    const columns = cells.map(
      (cell, index) => html`<td data-title="${titles[index] ?? ''}">${cell}</td>`,
    );
    return html`<tr>
      ${columns}
    </tr>`;
  });
  const table = html`<table>
    <thead>
      <tr>
        ${head}
      </tr>
    </thead>
    <tbody>
      ${lines}
    </tbody>
  </table>`;
  return html`<section>
    <h2>${title}</h2>
    ${note === null ? null : html`<p>${note}</p>`}
    ${rows.length === 0 ? html`<p class="none">none</p>` : table}
  </section>`;
}
