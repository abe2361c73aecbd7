import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { packageRoot } from '../../src/package-root.js';

/** What a command left behind. */
export interface CommandResult {
  readonly exitCode: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** The variables of a command: none of our own or PostgreSQL's from outside, then those given. */
export function cliEnvironment(env: NodeJS.ProcessEnv): NodeJS.ProcessEnv {
  const outside = Object.entries(process.env).filter(
    ([name]) => !/^(MPP_|PG|DATABASE_URL$)/.test(name),
  );
  return { ...Object.fromEntries(outside), ...env };
}

/** A program and its first arguments. */
export type Program = readonly [file: string, ...args: string[]];

/** `mpp-controller` of this checkout, as it was built. */
export function builtCli(): Program {
  return [process.execPath, join(packageRoot(), 'dist', 'cli.js')];
}

/**
 * Runs a command of `mpp-controller` to its end.
 *
 * @param program another installation than this checkout
 */
export async function runCli(
  args: readonly string[],
  env: NodeJS.ProcessEnv = {},
  program: Program = builtCli(),
): Promise<CommandResult> {
  const [file, ...first] = program;
  const child = spawn(file, [...first, ...args], {
    env: cliEnvironment(env),
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  const [stdout, stderr] = await Promise.all([
    text(child.stdout),
    text(child.stderr),
    once(child, 'close'),
  ]);
  return { exitCode: child.exitCode, stdout, stderr };
}
