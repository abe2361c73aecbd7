import { join } from 'node:path';
import { packageRoot } from '../../../src/package-root.js';
import {
  FIRST_INSERTED,
  INSERTED_OF_SESSION,
  ITEMS_OF_SESSION,
  MAX_THINK_MS,
  NOTES_OF_PROGRAM,
  SESSIONS,
  type ClientReport,
  type IdRange,
  type RunningClient,
} from './client.js';
import { ClientProcess } from './process.js';

/** The path of a program in test/clients/programs. */
export function programFile(name: string): string {
  return join(packageRoot(), 'test', 'clients', 'programs', name);
}

/** Starts a program of test/clients/programs; see there what it is told and what it prints. */
export async function startWorkerProgram(
  command: readonly [file: string, ...args: string[]],
  env: Readonly<Record<string, string>>,
  { base }: IdRange,
): Promise<RunningClient> {
  const [file, ...args] = command;
  const child = await ClientProcess.start(file, {
    args,
    env: {
      CLIENT_BASE: String(base),
      CLIENT_SESSIONS: String(SESSIONS),
      CLIENT_ITEMS_OF_SESSION: String(ITEMS_OF_SESSION),
      CLIENT_NOTES_OF_PROGRAM: String(NOTES_OF_PROGRAM),
      CLIENT_FIRST_INSERTED: String(FIRST_INSERTED),
      CLIENT_INSERTED_OF_SESSION: String(INSERTED_OF_SESSION),
      CLIENT_MAX_THINK_MS: String(MAX_THINK_MS),
      ...env,
    },
  });
  return {
    stop: async () => {
      child.closeInput();
      await child.ended();
      return reportOf(child);
    },
  };
}

function reportOf({ stdout, stderr, exitCode }: ClientProcess): ClientReport {
  const lines = stdout.split('\n');
  const failures = lines
    .filter((line) => line.startsWith('failed '))
    .map((line) => line.slice('failed '.length));
  const counts = lines
    .filter((line) => line.startsWith('acknowledged '))
    .map((line) => line.split(' ').slice(1).map(Number));
  if (exitCode !== 0 || counts.length !== SESSIONS) {
    failures.push(`the program ended with exit code ${exitCode ?? 'none'}: ${stderr}`);
  }
  const sum = (column: number): number =>
    counts.reduce((total, row) => total + (row[column] ?? 0), 0);
  return { inserted: sum(0), items: sum(1), notes: sum(2), failures };
}
