import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { delimiter, join } from 'node:path';
import { packageRoot } from '../../src/package-root.js';
import { runCli, type CommandResult, type Program } from './cli.js';
import { exists } from './servers/folder.js';

export type Manager = 'patroni' | 'repmgr';

/** Where a hook connects, and as whom. */
export interface HookTarget {
  readonly host: string;
  readonly port: number;
  readonly user: string;
}

/** One way to run a hook: the command, or the script that does without Node.js. */
export interface HookKind {
  readonly name: string;
  /** A sentence about what is missing on this machine. */
  readonly missing: string | undefined;
  readonly run: (
    manager: Manager,
    args: readonly string[],
    target: HookTarget,
  ) => Promise<CommandResult>;
}

/** Both, so that one test can hold for each. */
export async function hookKinds(): Promise<HookKind[]> {
  const found = await Promise.all(['psql', 'pg_isready', 'timeout'].map(onPath));
  return [
    {
      name: 'the command hook',
      missing: undefined,
      run: (manager, args, { host, port, user }) =>
        runCli(['hook', manager, ...args], {
          DATABASE_URL: `postgresql://${user}@${host}:${port}/postgres`,
        }),
    },
    {
      name: 'the script of hooks/',
      missing: found.every(Boolean) ? undefined : 'psql, pg_isready or timeout is not installed',
      run: runScript,
    },
  ];
}

export function hookScript(manager: Manager): Program {
  return ['/bin/sh', join(packageRoot(), 'hooks', `${manager}.sh`)];
}

/** What a service file of libpq says of the coordinator, for the scripts. */
export function serviceText({ host, port, user }: HookTarget): string {
  return `[mpp]\nhost=${host}\nport=${port}\nuser=${user}\ndbname=postgres\n`;
}

async function runScript(
  manager: Manager,
  args: readonly string[],
  target: HookTarget,
): Promise<CommandResult> {
  const folder = await mkdtemp(join(tmpdir(), 'mpp-hook-'));
  try {
    const file = join(folder, 'pg_service.conf');
    await writeFile(file, serviceText(target));
    return await runCli(args, { PGSERVICEFILE: file }, hookScript(manager));
  } finally {
    await rm(folder, { recursive: true });
  }
}

async function onPath(program: string): Promise<boolean> {
  const folders = (process.env['PATH'] ?? '').split(delimiter);
  const found = await Promise.all(folders.map((folder) => exists(join(folder, program))));
  return found.includes(true);
}
