import { readFile, readdir } from 'node:fs/promises';
import { join } from 'node:path';
import type pg from 'pg';
import { packageRoot } from '../../../src/package-root.js';

/**
 * Makes a plain PostgreSQL 15 to 18 look like a node of Citus 13.2: `pg_dist_node` and the
 * placements, the node functions with Citus's locks and errors, and the router behind the tables of
 * schema.ts. Install it in every server of a cluster (or in the template they are copied from):
 * workers receive `pg_dist_node` as Citus's nodes with metadata do, and statements may enter there.
 *
 * Does nothing where it is installed already.
 *
 * @param client a superuser's session in the database that stands for Citus's; the server must have
 *   the extension dblink and trust its own connections over 127.0.0.1.
 */
export async function installStandin(client: pg.ClientBase): Promise<void> {
  const installed = await client.query("SELECT FROM pg_namespace WHERE nspname = 'standin'");
  if (installed.rowCount !== 0) return;
  const folder = join(packageRoot(), 'test', 'kit', 'standin', 'sql');
  const files = (await readdir(folder)).filter((name) => name.endsWith('.sql')).sort();
  await client.query('BEGIN');
  try {
    await client.query('SET LOCAL allow_system_table_mods = on');
    for (const file of files) await client.query(await readFile(join(folder, file), 'utf8'));
    await client.query('COMMIT');
  } catch (error) {
    await client.query('ROLLBACK');
    throw error;
  }
}
