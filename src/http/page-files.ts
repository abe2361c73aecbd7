/** Colours have a contrast of 4.5 to 1 or more, light and dark; none of them says anything alone. */
export const PAGE_CSS = `
:root {
  color-scheme: light dark;
  --text: #1b1f24; --muted: #57606a; --back: #ffffff; --line: #d0d7de; --code: #f0f3f6;
  --ok: #116329; --ok-back: #dafbe1; --warning: #7d4e00; --warning-back: #fff8c5;
  --critical: #a40e26; --critical-back: #ffebe9; --bar: #8c959f; --held: #0969da; --commit: #8250df;
}
@media (prefers-color-scheme: dark) {
  :root {
    --text: #e6edf3; --muted: #9ea7b3; --back: #0d1117; --line: #30363d; --code: #161b22;
    --ok: #7ee787; --ok-back: #0f2a17; --warning: #f2cc60; --warning-back: #2d2305;
    --critical: #ffa198; --critical-back: #3a1214; --bar: #6e7681; --held: #58a6ff; --commit: #bc8cff;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--text); font: 15px/1.45 system-ui, sans-serif; }
main { max-width: 100rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.1rem; margin: 0 0 .75rem; color: var(--muted); font-weight: 600; }
h2 { font-size: 1.05rem; margin: 1.5rem 0 .4rem; }
h2.database { border-top: 2px solid var(--line); padding-top: 1rem; }
.verdict { border: 1px solid currentColor; border-left-width: .5rem; border-radius: .4rem; padding: .6rem 1rem; }
.verdict p { margin: 0; font-size: 1.15rem; }
.verdict ul { margin: .4rem 0 0; padding-left: 1.4rem; }
.verdict.ok { color: var(--ok); background: var(--ok-back); }
.verdict.warning, .verdict.unknown { color: var(--warning); background: var(--warning-back); }
.verdict.critical { color: var(--critical); background: var(--critical-back); }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line); overflow-wrap: anywhere; }
th { color: var(--muted); font-weight: 600; }
td { font-variant-numeric: tabular-nums; }
code { background: var(--code); padding: .1rem .3rem; border-radius: .25rem; user-select: all; }
.none, .fresh { color: var(--muted); margin: .2rem 0; }
.differs { color: var(--warning); }
.opening { fill: var(--bar); } .held { fill: var(--held); } .committing { fill: var(--commit); }
body.lost main > :not(.fresh) { opacity: .55; }
#lost { color: var(--critical); font-weight: 600; }
@media (max-width: 48rem) {
  thead, td:empty { display: none; }
  tr { display: block; border-bottom: 2px solid var(--line); padding: .4rem 0; }
  td { display: grid; grid-template-columns: 9rem 1fr; gap: .5rem; border: 0; padding: .1rem 0; }
  td::before { content: attr(data-title); color: var(--muted); }
  svg { max-width: 100%; }
}
`;

/** Renews the page without moving it; dims it once nothing new comes. A selection is left alone, to be copied. */
export const PAGE_JS = `
'use strict';
const EVERY_MS = 2000;
async function renew() {
  const selection = document.getSelection();
  if (selection !== null && !selection.isCollapsed) return;
  const response = await fetch('/', { cache: 'no-store', signal: AbortSignal.timeout(5000) });
  if (!response.ok) throw new Error(String(response.status));
  const fresh = new DOMParser().parseFromString(await response.text(), 'text/html');
  document.getElementById('page').replaceWith(fresh.getElementById('page'));
  document.title = fresh.title;
  document.body.classList.remove('lost');
}
function run() {
  renew()
    .catch(() => {
      document.body.classList.add('lost');
      document.title = 'no answer - mpp-controller';
      document.getElementById('lost').textContent = 'The controller does not answer: this is what it said last.';
    })
    .finally(() => setTimeout(run, EVERY_MS));
}
setTimeout(run, EVERY_MS);
`;
