import pg from 'pg';
import type { Observed } from './observed.js';

/** The worst last. */
export const LEVELS = ['ok', 'note', 'warning', 'error'] as const;
export type Level = (typeof LEVELS)[number];

/** What one check says. */
export interface Finding {
  /** Of the check, as docs/doctor.md lists it. */
  readonly id: string;
  readonly level: Level;
  readonly sentence: string;
  readonly expected: string;
  readonly actual: string;
  /** Lines to paste: SQL below a comment that names the server, or commands of a shell. */
  readonly fix: readonly string[];
  /** `host:port` of the server that it is about; null where it is about none of them. */
  readonly node: string | null;
}

/** What a check has found wrong. */
export interface Problem extends Omit<Finding, 'id' | 'level' | 'node'> {
  readonly level: Exclude<Level, 'ok'>;
  readonly node?: string | null;
}

/** One thing that is looked at. */
export interface Check {
  readonly id: string;
  /** What is said when nothing is wrong. */
  readonly ok: string;
  /** Pure. @returns null where what it needs could not be read. */
  readonly problems: (observed: Observed) => readonly Problem[] | null;
}

/** All findings of these checks, the worst first. Pure. */
export function findingsOf(checks: readonly Check[], observed: Observed): Finding[] {
  const found = checks.flatMap(({ id, ok, problems }): Finding[] => {
    const wrong = problems(observed);
    if (wrong === null) return [];
    if (wrong.length > 0) return wrong.map((problem) => ({ node: null, ...problem, id }));
    return [{ id, level: 'ok', sentence: ok, expected: '', actual: '', fix: [], node: null }];
  });
  return found.sort((one, other) => LEVELS.indexOf(other.level) - LEVELS.indexOf(one.level));
}

/** The worst level of them; `ok` where there are none. */
export function worstOf(findings: readonly Finding[]): Level {
  const most = Math.max(0, ...findings.map(({ level }) => LEVELS.indexOf(level)));
  return LEVELS[most] ?? 'ok';
}

/** SQL to paste, below the place where it is to be run. */
export function onServer(node: string, ...statements: readonly string[]): string[] {
  return [`-- on ${node}`, ...statements.map((statement) => `${statement};`)];
}

/** The lines that set a parameter of a server for good. */
export function setParameter(
  node: string,
  name: string,
  values: readonly string[],
  needsRestart: boolean,
): string[] {
  const value = values.map((one) => pg.escapeLiteral(one)).join(', ');
  const lines = onServer(node, `ALTER SYSTEM SET ${name} = ${value}`);
  return needsRestart
    ? [...lines, `-- then restart PostgreSQL on ${node}`]
    : [...lines, 'SELECT pg_reload_conf();'];
}
