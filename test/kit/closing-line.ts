import type { SerializedError } from 'vitest';
import type { Reporter, TestModule, TestSpecification, Vitest } from 'vitest/node';

/** The part of vitest's TestModule that is counted. */
export interface CountedModule extends CountedSuite {
  readonly children: {
    allTests(): Iterable<{ result(): { readonly state: string } }>;
    allSuites(): Iterable<CountedSuite>;
  };
}

interface CountedSuite {
  errors(): readonly unknown[];
}

/** How many tests ended how. */
export interface Counts {
  readonly passed: number;
  readonly failed: number;
  readonly skipped: number;
}

/** What holds until the run has ended. */
const NEVER_ENDED: Counts = { passed: 0, failed: 1, skipped: 0 };

/** Ends the output of a test run with one line, such as `12 passed, 0 failed, 1 skipped`. */
export default class ClosingLine implements Reporter {
  #counts = NEVER_ENDED;
  #hasFiles = false;

  onInit(vitest: Vitest): void {
    if (vitest.config.watch) return;
    // Later than any reporter, teardown or warning of vitest's own.
    process.once('exit', (code) => this.#print(code));
  }

  onTestRunStart(specifications: readonly TestSpecification[]): void {
    this.#hasFiles = specifications.length > 0;
  }

  onTestRunEnd(modules: readonly TestModule[], unhandled: readonly SerializedError[]): void {
    this.#counts = countTests(modules, unhandled.length);
  }

  #print(exitCode: number): void {
    const { failed } = this.#counts;
    // Vitest reports no error when a global setup throws; such a run must not look clean.
    const unseen = failed === 0 && exitCode !== 0 && this.#hasFiles ? 1 : 0;
    process.stdout.write(`${closingLine({ ...this.#counts, failed: failed + unseen })}\n`);
  }
}

/**
 * Counts tests, not files. What fails a run without being a test counts as one failed each: a file
 * that does not load, a failed hook, an error that nobody caught.
 */
export function countTests(modules: readonly CountedModule[], unhandled: number): Counts {
  const tests = modules.flatMap((module) => [...module.children.allTests()]);
  const suites = modules.flatMap((module) => [module, ...module.children.allSuites()]);
  const passed = tests.filter((test) => test.result().state === 'passed').length;
  const failedTests = tests.filter((test) => test.result().state === 'failed').length;
  const failedSuites = suites.filter((suite) => suite.errors().length > 0).length;
  return {
    passed,
    failed: failedTests + failedSuites + unhandled,
    skipped: tests.length - passed - failedTests,
  };
}

/** The line itself; skipped tests are told only when there are any. */
export function closingLine({ passed, failed, skipped }: Counts): string {
  const line = `${passed} passed, ${failed} failed`;
  return skipped === 0 ? line : `${line}, ${skipped} skipped`;
}
