import type { Writable } from 'node:stream';
import { EXIT } from './exit.js';

/** One of the two standard streams of a command. */
interface Output {
  /** Writes one line, or several. Never throws. */
  readonly write: (text: string) => void;
  /**
   * Waits until all is written.
   *
   * @returns the exit code of the command: 1 instead of 0 when the output could not be written.
   */
  readonly finish: (exitCode: number, complain: (text: string) => void) => Promise<number>;
}

/**
 * Writes to a stream that its reader may close at any time, as `head` does. What comes after that is
 * dropped, and the command goes on to its end: a migration is not stopped because of its output.
 */
export function outputTo(stream: Writable): Output {
  let failure: NodeJS.ErrnoException | undefined;
  const fail = (error: NodeJS.ErrnoException): void => {
    failure ??= error;
  };
  stream.on('error', fail);
  return {
    write(text) {
      if (failure !== undefined) return;
      try {
        stream.write(`${text}\n`);
      } catch (error) {
        fail(error as NodeJS.ErrnoException);
      }
    },
    async finish(exitCode, complain) {
      await new Promise<void>((resolve) => {
        if (failure !== undefined || stream.writableLength === 0) setImmediate(resolve);
        else stream.once('drain', resolve).once('error', () => resolve());
      });
      if (failure === undefined || isClosed(failure) || exitCode !== EXIT.ok) return exitCode;
      complain(`mpp-controller: the output cannot be written: ${failure.message}`);
      return EXIT.failure;
    },
  };
}

/** The reader has gone, which is its right. */
export function isClosed(error: NodeJS.ErrnoException): boolean {
  return error.code === 'EPIPE' || error.code === 'ECONNRESET' || error.code === 'EBADF';
}

/**
 * Lines up rows under their titles, two blanks between the columns.
 *
 * @param rows cells of one row each; null shows as `-`
 */
export function formatTable(
  titles: readonly string[],
  rows: readonly (readonly (string | number | null)[])[],
  indent = '  ',
): string {
  const cells = rows.map((row) => row.map((cell) => (cell === null ? '-' : String(cell))));
  const all = [[...titles], ...cells];
  const widths = titles.map((_, column) => Math.max(...all.map((row) => row[column]?.length ?? 0)));
  return all
    .map((row) => {
      const padded = row.map((cell, column) => cell.padEnd(widths[column] ?? 0));
      return `${indent}${padded.join('  ')}`.trimEnd();
    })
    .join('\n');
}
