import { writeSync } from 'node:fs';
import { constants } from 'node:os';
import { Command } from 'commander';
import type { DestinationStream } from 'pino';
import { type Settings, unknownVariables } from '../config/settings.js';
import { type Controller, createObservedController } from '../controller/controller.js';
import { HttpService } from '../http/service.js';
import { createLogger, type Logger } from '../logger.js';
import { joinObservers, type Observer } from '../tasks/observer.js';
import { CommandError, EXIT } from './exit.js';
import { isClosed } from './output.js';
import { addSettings, type Io, readSettings } from './flags.js';
import { ServiceManager } from './service-manager.js';

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
  'http',
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
    await serve(io, settings, logger, closed.signal);
    if (closed.signal.aborted) {
      throw new CommandError(EXIT.failure, 'stopped: the reader of the log has gone');
    }
  });
}

/** @param closed stops it, as a signal to the process does */
async function serve(
  io: Io,
  settings: Settings,
  logger: Logger,
  closed: AbortSignal,
): Promise<void> {
  const service = new ServiceManager({ env: io.env, logger, pollMs: settings.pollMs });
  const http = settings.http && new HttpService({ settings, address: settings.http, logger });
  const observe = (database: string | undefined): Observer =>
    joinObservers([service.observe(database), ...(http ? [http.observe(database)] : [])]);
  const controller = createObservedController({ settings, logger }, observe);
  // Before the controller: a port that is in use is said at the start, not while it leads.
  await http?.start();
  service.start();
  try {
    await runUntilSignal(controller, closed, logger, () => service.stopping());
  } finally {
    await Promise.all([http?.stop(), service.stop()]);
  }
}

/** @param onStop called when it begins to stop */
async function runUntilSignal(
  controller: Controller,
  closed: AbortSignal,
  logger: Logger,
  onStop: () => void,
): Promise<void> {
  const stop = (): void => {
    onStop();
    // What goes wrong in it rejects `finished`.
    controller.stop().catch(() => undefined);
  };
  if (closed.aborted) stop();
  else closed.addEventListener('abort', stop);
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
}

interface LogOutputOptions {
  /** Called once when the reader has gone: nothing that is logged from then on is read. */
  readonly onClosed: () => void;
  /** Called once when lines are lost for another reason, such as a full disk. */
  readonly onLost: (error: NodeJS.ErrnoException) => void;
}

/** How long a reader that does not read may hold up the controller, for each line. */
const FULL_MS = 500;
const FULL_STEP_MS = 5;

/**
 * Where the log goes. A line that cannot be written is dropped, and the next one is tried again; pino's
 * own destination would wait at the end of the process until a full disk has room.
 */
function logOutput(fd: number, options: LogOutputOptions): DestinationStream {
  let closed = false;
  let lost = false;
  return {
    write(line) {
      if (closed) return;
      try {
        writeAll(fd, Buffer.from(line));
      } catch (error) {
        if (isClosed(error as NodeJS.ErrnoException)) {
          closed = true;
          options.onClosed();
        } else if (!lost) {
          lost = true;
          options.onLost(error as NodeJS.ErrnoException);
        }
      }
    },
  };
}

function writeAll(fd: number, bytes: Buffer): void {
  const until = performance.now() + FULL_MS;
  let written = 0;
  while (written < bytes.length) {
    try {
      written += writeSync(fd, bytes, written);
    } catch (error) {
      const isFull = (error as NodeJS.ErrnoException).code === 'EAGAIN';
      if (!isFull || performance.now() >= until) throw error;
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, FULL_STEP_MS);
    }
  }
}
