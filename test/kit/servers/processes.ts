import { spawn } from 'node:child_process';
import { readdir, readFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';

/** The user a server runs as: `{}` is ourselves. PostgreSQL refuses to run as root. */
export interface Owner {
  readonly uid?: number;
  readonly gid?: number;
}

/** A program ended with another code than 0, or could not be started (`exitCode` null). */
export class CommandError extends Error {
  override readonly name = 'CommandError';
  readonly exitCode: number | null;
  constructor(command: string, exitCode: number | null, output: string, cause?: unknown) {
    super(`${command} failed (exit code ${exitCode ?? 'none'}): ${output.trim()}`, { cause });
    this.exitCode = exitCode;
  }
}

/**
 * Runs a program to its end as `owner` and returns what it printed on stdout.
 *
 * @throws CommandError with the end of what it printed.
 */
export async function run(
  file: string,
  args: readonly string[],
  owner: Owner = {},
): Promise<string> {
  const child = spawn(file, args, {
    ...owner,
    // The present folder may be one that `owner` cannot enter.
    cwd: '/',
    env: cleanEnvironment(owner),
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let stdout = '';
  let stderr = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => (stdout += text));
  child.stderr.setEncoding('utf8').on('data', (text: string) => (stderr += text));
  const command = [file, ...args].join(' ');
  return new Promise((resolve, reject) => {
    child.on('error', (error) => reject(new CommandError(command, null, error.message, error)));
    child.on('close', (code) => {
      if (code === 0) resolve(stdout);
      else reject(new CommandError(command, code, (stderr || stdout).slice(-2_000)));
    });
  });
}

/**
 * Our environment without PG* (a PGPASSWORD or PGOPTIONS of the user's would reach initdb and the
 * WAL receivers), with untranslated messages, and without our home when another user runs.
 */
export function cleanEnvironment(owner: Owner): NodeJS.ProcessEnv {
  const kept = Object.entries(process.env).filter(([name]) => !name.startsWith('PG'));
  const home = owner.uid === undefined ? {} : { HOME: tmpdir() };
  return { ...Object.fromEntries(kept), LC_ALL: 'C', TZ: 'UTC', ...home };
}

/** Sends a signal; false when there is no such process any more. */
export function signal(pid: number, name: NodeJS.Signals): boolean {
  try {
    return process.kill(pid, name);
  } catch (error) {
    if (isErrno(error, 'ESRCH')) return false;
    throw error;
  }
}

/** True while the process runs. One that has ended and was not yet collected (a zombie) does not. */
export async function isAlive(pid: number): Promise<boolean> {
  try {
    process.kill(pid, 0);
  } catch (error) {
    return !isErrno(error, 'ESRCH');
  }
  const stat = await readStat(pid);
  return stat === undefined || (stat.state !== 'Z' && stat.state !== 'X');
}

/** The processes whose parent is `pid`, from /proc or, where there is none, from ps. */
export async function childrenOf(pid: number): Promise<number[]> {
  if ((await readStat(process.pid)) === undefined) {
    const table = await run('ps', ['-A', '-o', 'pid=,ppid=']);
    const rows = table.split('\n').map((line) => line.trim().split(/\s+/).map(Number));
    return rows.flatMap(([child, parent]) =>
      parent === pid && child !== undefined ? [child] : [],
    );
  }
  const pids = (await readdir('/proc')).filter((name) => /^\d+$/.test(name)).map(Number);
  const stats = await Promise.all(pids.map(readStat));
  return pids.filter((_, index) => stats[index]?.parent === pid);
}

interface ProcessStat {
  state: string;
  parent: number;
}

/** Undefined when there is no such process, or no /proc. */
async function readStat(pid: number): Promise<ProcessStat | undefined> {
  try {
    const text = await readFile(`/proc/${pid}/stat`, 'utf8');
    // The second field is the program's name in parentheses, which may hold blanks itself.
    const [state = '', parent] = text.slice(text.lastIndexOf(')') + 2).split(' ');
    return { state, parent: Number(parent) };
  } catch {
    return undefined;
  }
}

/** True for an error of the operating system with this code, such as ENOENT. */
export function isErrno(error: unknown, code: string): boolean {
  return error instanceof Error && 'code' in error && error.code === code;
}
