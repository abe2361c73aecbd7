import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { Command } from 'commander';
import { CommandError, EXIT } from './exit.js';
import type { Io } from './settings.js';

/** The demo brings servers and a stand-in for Citus along, which a database host has no use for. */
const DEMO = new URL('../../build/test/support/demo/main.js', import.meta.url);

interface DemoModule {
  /** @returns the exit code. */
  readonly runDemo: (options: { keep: boolean; env: NodeJS.ProcessEnv }) => Promise<number>;
}

export function demoCommand(io: Io): Command {
  return new Command('demo')
    .description(
      'switch a worker over and crash it under traffic, on servers of its own, and count what fails',
    )
    .option('--keep', 'leave it running at the end, and say how to connect')
    .action(async (options: { keep?: boolean }) => {
      if (!existsSync(fileURLToPath(DEMO))) {
        throw new CommandError(
          EXIT.usage,
          'the demo is not part of the installed package; in a checkout: npm ci && npm run demo',
        );
      }
      const { runDemo } = (await import(DEMO.href)) as DemoModule;
      const exitCode = await runDemo({ keep: options.keep ?? false, env: io.env });
      if (exitCode !== 0)
        throw new CommandError(EXIT.failure, 'the demo did not end well; see above');
    });
}
