import { parseArgs } from 'node:util';
import { errorText } from '../../src/postgres/session.js';
import { runSchedule, type Outcome } from './run-schedule.js';
import { schedule } from './schedule.js';
import { Stage } from './stage.js';

const GROUPS = 4;
const FAULTS = 10;
const ROWS = 300;
/** The schedules of the short form; one with a seed of its own follows. */
const FIXED = [1, 2, 3, 4, 5, 6, 7, 8];

interface Totals {
  schedules: number;
  ms: number;
  looks: number;
  violations: number;
  readonly struck: Map<string, number>;
}

/**
 * `npm run test:faults`: schedules of reports and faults, each from its seed. Without arguments the short
 * form: the fixed seeds, and one that is new each time.
 */
async function main(): Promise<number> {
  const { values } = parseArgs({
    options: {
      schedules: { type: 'string' },
      hours: { type: 'string' },
      seed: { type: 'string' },
      verbose: { type: 'boolean', default: false },
    },
  });
  const first = Number(values.seed ?? Math.floor(Math.random() * 1e9));
  const until = performance.now() + Number(values.hours ?? Infinity) * 3_600_000;
  const count = Number(values.schedules ?? (values.hours === undefined ? 1 : Infinity));
  const isShort =
    values.schedules === undefined && values.hours === undefined && values.seed === undefined;
  const totals: Totals = { schedules: 0, ms: 0, looks: 0, violations: 0, struck: new Map() };
  const stage = await Stage.start(GROUPS);
  try {
    for (const seed of seeds(isShort ? [...FIXED, first] : [], first, count)) {
      if (performance.now() > until) break;
      const outcome = await runSchedule(
        stage,
        schedule(seed, { groups: GROUPS, faults: FAULTS, rows: ROWS }),
      );
      add(totals, outcome);
      if (values.verbose || outcome.violations.length > 0) tell(seed, outcome);
      if (outcome.violations.length > 0) {
        tellControllers(stage);
        break;
      }
      if (totals.schedules % 50 === 0) summarize(totals);
    }
  } finally {
    await stage.stop();
  }
  summarize(totals);
  return totals.violations === 0 ? 0 : 1;
}

function* seeds(fixed: readonly number[], first: number, count: number): Generator<number> {
  if (fixed.length > 0) yield* fixed;
  else for (let index = 0; index < count; index += 1) yield first + index;
}

function add(totals: Totals, { struck, ms, looks, violations }: Outcome): void {
  totals.schedules += 1;
  totals.ms += ms;
  totals.looks += looks;
  totals.violations += violations.length;
  for (const [kind, count] of struck)
    totals.struck.set(kind, (totals.struck.get(kind) ?? 0) + count);
}

function tell(seed: number, { trace, violations, ms }: Outcome): void {
  print(`schedule of seed ${seed}, ${Math.round(ms)} ms:`);
  for (const line of trace) print(line);
  for (const violation of violations) print(`VIOLATION: ${violation}`);
  if (violations.length > 0) print(`seed ${seed}; again: npm run test:faults -- --seed ${seed}`);
}

function tellControllers(stage: Stage): void {
  for (const { role, controller } of stage.slots) {
    print(`the last lines of the controller of ${role}:`);
    for (const line of controller?.lines.slice(-25) ?? []) print(`  ${line}`);
  }
}

function summarize({ schedules, ms, looks, violations, struck }: Totals): void {
  const faults = [...struck.values()].reduce((sum, count) => sum + count, 0);
  const kinds = [...struck].sort(([a], [b]) => a.localeCompare(b));
  print(
    `${schedules} schedules, ${faults} faults, ${violations} violations, ${Math.round(ms / 1_000)} s, ` +
      `${(schedules / (ms / 60_000)).toFixed(1)} schedules a minute, ${looks} looks`,
  );
  print(`  ${kinds.map(([kind, count]) => `${kind} ${count}`).join(', ')}`);
}

function print(line: string): void {
  process.stdout.write(`${line}\n`);
}

try {
  process.exitCode = await main();
} catch (error) {
  process.stderr.write(`${errorText(error)}\n`);
  process.exitCode = 1;
}
