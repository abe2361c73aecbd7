import { constants } from 'node:os';
import { Command } from 'commander';
import { unknownVariables } from '../config.js';
import { createController } from '../controller/controller.js';
import { createLogger } from '../observe/logger.js';
import { CommandError, EXIT } from './exit.js';
import { logOutput } from './log-output.js';
import { addSettings, readSettings, type Io } from './settings.js';

const USES = [
  'schema',
  'databases',
  'pause',
  'strategy',
  'maxHolds',
  'maxSessions',
  'heartbeatMs',
  'pollMs',
  'retentionMs',
  'maxTimeoutMs',
  'minCooldownMs',
  'topology',
  'memberTtlMs',
  'probeIntervalMs',
  'probeTimeoutMs',
  'probeSuspect',
  'patroni',
  'patroniIntervalMs',
  'patroniCa',
  'coordinatorHost',
  'coordinatorPort',
  'logLevel',
] as const;

/** How long a stop may take, in milliseconds: a server that swallows everything would hold it up. */
const STOP_MS = 15_000;

export function runCommand(io: Io): Command {
  const command = new Command('run')
    .description('run the controller until SIGTERM or SIGINT')
    .addHelpText(
      'after',
      '\nA second signal ends it at once; PostgreSQL then rolls its holds back.',
    );
  return addSettings(command, USES).action(async () => {
    const settings = readSettings(io, command, USES);
    const closed = new AbortController();
    const onClosed = (): void => closed.abort();
    const onLost = (error: Error): void => {
      io.complain(`mpp-controller: lines of the log are lost: ${error.message}`);
    };
    const logger = createLogger(settings.logLevel, logOutput(1, { onClosed, onLost }));
    for (const name of unknownVariables(io.env)) {
      logger.warn({ variable: name }, 'unknown setting: is its name misspelt? see --help');
    }
    const controller = createController({ settings, logger });
    // What goes wrong in it rejects `finished`.
    const stop = (): void => void controller.stop().catch(() => undefined);
    if (closed.signal.aborted) stop();
    else closed.signal.addEventListener('abort', stop);
    let asked = false;
    const onSignal = (signal: NodeJS.Signals): void => {
      if (asked) process.exit(128 + constants.signals[signal]);
      asked = true;
      logger.info({ signal }, 'stopping; a second signal ends at once');
      stop();
      setTimeout(() => {
        logger.error('PostgreSQL does not answer; ended without writing down what was rolled back');
        process.exit(EXIT.failure);
      }, STOP_MS).unref();
    };
    process.on('SIGTERM', onSignal).on('SIGINT', onSignal);
    try {
      await controller.start();
      await controller.finished;
    } finally {
      await controller.stop();
      process.off('SIGTERM', onSignal).off('SIGINT', onSignal);
    }
    if (closed.signal.aborted) {
      throw new CommandError(EXIT.failure, 'stopped: the reader of the log has gone');
    }
  });
}
