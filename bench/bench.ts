import { errorText } from '../src/postgres/session.js';
import type { Cluster } from '../test/kit/servers/index.js';

/** What a controller has without any setting, but for the log, which says how a hold was made. */
export const CONTROLLER_SETTINGS = {
  MPP_POLL: '1s',
  MPP_HEARTBEAT: '10s',
  MPP_LOG_LEVEL: 'debug',
};

/** The default of the control table; the test support would take a shorter one. */
export const COOLDOWN = '10s';

/**
 * Runs a benchmark to its end. What goes wrong is one line on stderr and exit code 1.
 *
 * @param name the script, without its suffix
 */
export async function bench(name: string, main: () => Promise<void>): Promise<void> {
  try {
    await main();
  } catch (error) {
    process.stderr.write(`${name}: ${errorText(error)}\n`);
    process.exitCode = 1;
  }
}

export function say(text: string): void {
  process.stdout.write(`${text}\n`);
}

/** The last line of a benchmark: all figures, for programs. */
export function sayJson(name: string, result: object): void {
  say(JSON.stringify({ bench: name, ...result }));
}

/** Something to look at while a benchmark runs; not part of its result. */
export function progress(text: string): void {
  process.stderr.write(`  ${text}\n`);
}

/** What a cluster is made of, such as `PostgreSQL 17.10, the stand-in for Citus`. */
export async function serversText({ coordinator, testBed, hasCitus }: Cluster): Promise<string> {
  const version = await coordinator.withSession(async (session) => {
    const { rows } = await session.query<{ version: string }>('SELECT citus_version() AS version');
    return rows[0]?.version.split(' ').slice(0, 2).join(' ');
  });
  const citus = hasCitus ? (version ?? 'Citus') : 'the stand-in for Citus';
  return `PostgreSQL ${testBed.binaries.version}, ${citus}`;
}

/** A whole number of the environment. @throws Error when it is none */
export function countOf(variable: string, fallback: number): number {
  const text = process.env[variable];
  if (text === undefined || text === '') return fallback;
  if (/^\d{1,7}$/.test(text)) return Number(text);
  throw new Error(`${variable} is '${text}'; give a whole number`);
}

/** Some of `known`, as the environment names them with commas between; by default `fallback`. */
export function choicesOf<T extends string>(
  variable: string,
  known: readonly T[],
  fallback: readonly T[] = known,
): T[] {
  const text = process.env[variable];
  if (text === undefined || text === '') return [...fallback];
  return text.split(',').map((name) => {
    const choice = known.find((one) => one === name);
    if (choice !== undefined) return choice;
    throw new Error(`${variable} has '${name}'; this measures ${known.join(', ')}`);
  });
}
