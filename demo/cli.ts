import { parseArgs } from 'node:util';
import { errorText } from '../src/postgres/session.js';
import { runDemo } from './main.js';

/** `npm run demo`; with `-- --keep` it stays until Ctrl-C. */
try {
  const { values } = parseArgs({ options: { keep: { type: 'boolean', default: false } } });
  const exitCode = await runDemo({ keep: values.keep, env: process.env });
  if (exitCode !== 0) process.stderr.write('demo: it did not end well; see above\n');
  process.exitCode = exitCode;
} catch (error) {
  process.stderr.write(`demo: ${errorText(error)}\n`);
  process.exitCode = 1;
}
