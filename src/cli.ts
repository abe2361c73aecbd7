#!/usr/bin/env node
import { createInterface } from 'node:readline/promises';
import { isHook } from './commands/exit.js';
import { outputTo } from './commands/output.js';
import { main } from './commands/program.js';

const stdout = outputTo(process.stdout);
const stderr = outputTo(process.stderr);

const args = process.argv.slice(2);
if (isHook(args)) {
  // Whatever goes wrong: the exit code of a hook can stop a promotion.
  process.on('uncaughtException', (error) => {
    stderr.write(`mpp-controller: ${error.message}`);
    process.exit(0);
  });
}
/** On standard error, because standard output may be read by a program. */
async function confirm(question: string): Promise<boolean> {
  const terminal = createInterface({ input: process.stdin, output: process.stderr });
  try {
    return /^y(es)?$/i.test((await terminal.question(`${question} [y/N] `)).trim());
  } finally {
    terminal.close();
  }
}

const exitCode = await main(args, {
  env: process.env,
  print: stdout.write,
  complain: stderr.write,
  isTerminal: process.stdout.isTTY,
  ...(process.stdin.isTTY && process.stderr.isTTY && { confirm }),
});
// A session that is still closing must not keep a hook waiting.
const ended = await stdout.finish(exitCode, stderr.write);
process.exit(isHook(args) ? 0 : ended);
