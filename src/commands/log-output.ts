import { writeSync } from 'node:fs';
import type { DestinationStream } from 'pino';
import { isClosed } from './output.js';

export interface LogOutputOptions {
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
export function logOutput(fd: number, options: LogOutputOptions): DestinationStream {
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
