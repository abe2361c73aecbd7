import { parseArgs } from 'node:util';
import { errorText } from '../../src/postgres/session.js';
import { Memory } from './memory.js';
import { runSchedule, type Outcome } from './run-schedule.js';
import { schedule } from './schedule.js';
import { Stage } from './stage.js';

const GROUPS = 4;
const FAULTS = 13;
/** How many rows at once a schedule may insert, and one in a hundred. */
const [ROWS, MANY_ROWS] = [300, 100_000];
/** The schedules of the short form, as far as its time goes; one with a new seed follows. */
const FIXED = [1, 2, 3, 4, 5, 6, 7, 8];
const SHORT_MS = 40_000;
/** In each fourth block of so many seeds no controller is killed, so that one gets old. */
const BLOCK = 100;

interface Options {
  readonly seeds: Generator<number>;
  readonly stages: number;
  readonly verbose: boolean;
  /** No schedule begins after this moment, by performance.now(). */
  until: number;
}

interface Totals {
  /** By performance.now(). */
  readonly began: number;
  schedules: number;
  looks: number;
  lagMs: number;
  violations: number;
  readonly memory: Memory;
  readonly struck: Map<string, number>;
}

/** `npm run test:faults`: schedules of reports and faults, each from its seed. See README.md. */
async function main(): Promise<number> {
  const options = optionsOf(process.argv.slice(2));
  const totals: Totals = {
    ...{ began: performance.now(), schedules: 0, looks: 0, lagMs: 0, violations: 0 },
    memory: new Memory(),
    struck: new Map(),
  };
  // The schedules that run are finished, and counted.
  process.once('SIGINT', () => (options.until = 0));
  await Promise.all(Array.from({ length: options.stages }, () => runStage(options, totals)));
  summarize(totals);
  return totals.violations === 0 ? 0 : 1;
}

function optionsOf(args: readonly string[]): Options {
  const { values } = parseArgs({
    args: [...args],
    options: {
      schedules: { type: 'string' },
      hours: { type: 'string' },
      seed: { type: 'string' },
      stages: { type: 'string', default: '1' },
      verbose: { type: 'boolean', default: false },
    },
  });
  const { schedules, hours, seed } = values;
  const first = Number(seed ?? Math.floor(Math.random() * 1e9));
  const isShort = schedules === undefined && hours === undefined && seed === undefined;
  const count = Number(schedules ?? (hours === undefined ? 1 : Infinity));
  const lastsMs = hours === undefined ? Infinity : Number(hours) * 3_600_000;
  if (![first, count, lastsMs, Number(values.stages)].every((number) => number > 0)) {
    throw new Error(
      'usage: npm run test:faults -- [--seed N] [--schedules N] [--hours N] [--stages N] [--verbose]',
    );
  }
  return {
    seeds: isShort ? shortSeeds(first) : consecutive(first, count),
    stages: Number(values.stages),
    verbose: values.verbose,
    until: performance.now() + lastsMs,
  };
}

/** The fixed ones until their time is over, at least one; then the new one. */
function* shortSeeds(first: number): Generator<number> {
  const until = performance.now() + SHORT_MS;
  for (const [index, seed] of FIXED.entries()) {
    if (index > 0 && performance.now() > until) break;
    yield seed;
  }
  yield first;
}

function* consecutive(first: number, count: number): Generator<number> {
  for (let index = 0; index < count; index += 1) yield first + index;
}

/** Runs schedules one after the other on servers of its own, until there are no more or one is violated. */
async function runStage(options: Options, totals: Totals): Promise<void> {
  const stage = await Stage.start(GROUPS);
  try {
    for (const seed of options.seeds) {
      if (performance.now() > options.until || totals.violations > 0) break;
      const rows = seed % 100 === 0 ? MANY_ROWS : ROWS;
      const outcome = await runSchedule(
        stage,
        schedule(seed, {
          groups: GROUPS,
          faults: FAULTS,
          rows,
          kills: Math.floor(seed / BLOCK) % 4 !== 3,
        }),
      );
      const violations = [...outcome.violations, ...(await judgeMemory(stage, totals.memory))];
      add(totals, outcome, violations.length);
      if (options.verbose || violations.length > 0) tell(seed, outcome, violations);
      if (violations.length > 0) tellControllers(stage);
      if (totals.schedules % 50 === 0) summarize(totals);
    }
  } finally {
    await stage.stop();
  }
}

async function judgeMemory(stage: Stage, memory: Memory): Promise<string[]> {
  const found: string[] = [];
  for (const { role, controller } of stage.slots) {
    if (controller !== undefined) found.push(...(await memory.judge(role, controller.pid)));
  }
  return found;
}

function add(totals: Totals, { struck, looks, lagMs }: Outcome, violations: number): void {
  totals.schedules += 1;
  totals.looks += looks;
  totals.lagMs = Math.max(totals.lagMs, lagMs);
  totals.violations += violations;
  for (const [kind, count] of struck)
    totals.struck.set(kind, (totals.struck.get(kind) ?? 0) + count);
}

function tell(seed: number, { trace, ms }: Outcome, violations: readonly string[]): void {
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

function summarize({ began, schedules, looks, lagMs, violations, memory, struck }: Totals): void {
  const faults = [...struck.values()].reduce((sum, count) => sum + count, 0);
  const kinds = [...struck].sort(([a], [b]) => a.localeCompare(b));
  const seconds = Math.round((performance.now() - began) / 1_000);
  print(
    `${schedules} schedules, ${faults} faults, ${violations} violations, ${seconds} s, ` +
      `${looks} looks, answers ${Math.round(lagMs)} ms late by the machine at most, ${memory.toString()}`,
  );
  print(`  ${kinds.map(([kind, count]) => `${kind} ${count}`).join(', ')}`);
}

function print(line: string): void {
  process.stdout.write(`${line}\n`);
}

try {
  process.exitCode = await main();
} catch (error) {
  process.stderr.write(`test:faults: ${errorText(error)}\n`);
  process.exitCode = 1;
}
