import { readFile, writeFile } from 'node:fs/promises';
import { resolve } from 'node:path';
import { format, resolveConfig } from 'prettier';
import { errorText } from '../../../src/postgres/session.js';
import { Harness } from '../harness.js';
import { statementRows, underWayRows } from './run.js';
import { Stage } from './stage.js';
import { renderTables, replaceTables } from './table.js';

/**
 * `npm run table:statements`: measures what waits, what passes and what fails beside a hold, and prints the
 * tables; with `--write FILE` they go between the markers of that page.
 */
async function main(args: readonly string[]): Promise<void> {
  const page = pageOf(args);
  const h = await Harness.start({ groups: 2 });
  try {
    const standin = !h.cluster.hasCitus;
    if (standin && page !== undefined) {
      throw new Error(
        'the page has rows that the stand-in for Citus does not know; set MPP_PG_BIN',
      );
    }
    const progress = (text: string): void => void process.stderr.write(`  ${text}\n`);
    const stage = await Stage.prepare(h);
    const statements = await statementRows(stage, { standin, progress });
    const tables = renderTables(statements, await underWayRows(stage, { standin, progress }));
    if (page === undefined) process.stdout.write(`${tables}\n`);
    else await writePage(page, tables);
  } finally {
    await h.stop();
  }
}

function pageOf([option, page, ...rest]: readonly string[]): string | undefined {
  if (option === undefined) return undefined;
  if (option === '--write' && page !== undefined && rest.length === 0) return resolve(page);
  throw new Error('usage: npm run table:statements -- [--write FILE]');
}

async function writePage(page: string, tables: string): Promise<void> {
  const text = replaceTables(await readFile(page, 'utf8'), tables);
  await writeFile(page, await format(text, { ...(await resolveConfig(page)), filepath: page }));
}

try {
  await main(process.argv.slice(2));
} catch (error) {
  process.stderr.write(`table:statements: ${errorText(error)}\n`);
  process.exitCode = 1;
}
