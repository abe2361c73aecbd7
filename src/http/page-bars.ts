import type { PastSwitchover } from '../controller/past-switchovers.js';
import { type Html, html } from './html.js';

const WIDTH = 240;
const HEIGHT = 14;

/** A bar for each switchover, all on one scale: until the traffic waited, while it did, and of that the commit. */
export function barsOf(rows: readonly PastSwitchover[]): Html[] {
  const longest = Math.max(1, ...rows.map((row) => total(row)));
  return rows.map((row) => barOf(row, WIDTH / longest));
}

function total({ openingMs, heldMs, committingMs }: PastSwitchover): number {
  return (openingMs ?? 0) + (heldMs ?? committingMs ?? 0);
}

function barOf(row: PastSwitchover, scale: number): Html {
  const opening = row.openingMs ?? 0;
  const held = row.heldMs ?? row.committingMs ?? 0;
  const committing = Math.min(row.committingMs ?? 0, held);
  const steps = [
    { name: 'opening', from: 0, ms: opening },
    { name: 'held', from: opening, ms: held - committing },
    { name: 'committing', from: opening + held - committing, ms: committing },
  ];
  const label = steps.map(({ name, ms }) => `${name} ${Math.round(ms)} ms`).join(', ');
  const parts = steps.map(
    ({ name, from, ms }) =>
      html`<rect
        class="${name}"
        x="${(from * scale).toFixed(1)}"
        y="0"
        width="${(ms * scale).toFixed(1)}"
        height="${HEIGHT}"
      />`,
  );
  return html`<svg
    role="img"
    aria-label="${label}"
    width="${WIDTH}"
    height="${HEIGHT}"
    viewBox="0 0 ${WIDTH} ${HEIGHT}"
  >
    <title>${label}</title>
    ${parts}
  </svg>`;
}
