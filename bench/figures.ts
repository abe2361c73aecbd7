/** The smallest sample that at least `percent` of 100 samples do not exceed; NaN without samples. */
export function percentile(samples: readonly number[], percent: number): number {
  const sorted = samples.toSorted((a, b) => a - b);
  return sorted[Math.max(1, Math.ceil((percent / 100) * sorted.length)) - 1] ?? Number.NaN;
}

/** Of some times in milliseconds, for programs. */
export interface Summary {
  readonly p50: number;
  readonly max: number;
}

export function summary(samples: readonly number[]): Summary {
  return { p50: hundredths(percentile(samples, 50)), max: hundredths(percentile(samples, 100)) };
}

/** The same for people: `12 / 34 ms`. */
export function summaryText(samples: readonly number[]): string {
  if (samples.length === 0) return '-';
  return `${shortMs(percentile(samples, 50))} / ${shortMs(percentile(samples, 100))} ms`;
}

export function ms(value: number): string {
  return Number.isFinite(value) ? `${shortMs(value)} ms` : '-';
}

function shortMs(value: number): string {
  return Math.abs(value) < 10 ? value.toFixed(1) : value.toFixed(0);
}

/** For JSON: to a hundredth, null when there is no figure. */
export function hundredths(value: number): number {
  return Math.round(value * 100) / 100;
}
