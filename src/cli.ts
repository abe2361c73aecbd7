#!/usr/bin/env node
import { main } from './commands/program.js';

process.exitCode = await main(process.argv.slice(2), {
  env: process.env,
  print: (text) => process.stdout.write(`${text}\n`),
  complain: (text) => process.stderr.write(`${text}\n`),
});
