import type pg from 'pg';
import { DatabaseStateError } from '../errors.js';

/**
 * Refuses schemas, and our tables, that Citus manages: a table in Citus's metadata has other triggers
 * and other locks than the one that our migrations made, and Citus refuses most of what they change.
 *
 * @throws DatabaseStateError `SCHEMA_DISTRIBUTED`, with the statement that takes them out of Citus.
 */
export async function refuseDistributed(
  client: pg.ClientBase,
  schemas: readonly string[],
): Promise<void> {
  const { rows: catalogs } = await client.query<{ tables: boolean; schemas: boolean }>(CATALOGS);
  if (catalogs[0]?.schemas === true) {
    const { rows } = await client.query<{ schema: string; call: string }>(TENANTS, [schemas]);
    for (const { schema, call } of rows) {
      throw new DatabaseStateError(
        'SCHEMA_DISTRIBUTED',
        `schema ${schema} is a distributed schema of Citus, and the control table has to be on the ` +
          `coordinator alone: set MPP_SCHEMA to another schema, or run ${call}`,
      );
    }
  }
  if (catalogs[0]?.tables !== true) return;
  const { rows } = await client.query<{ name: string; call: string }>(MANAGED, [schemas]);
  if (rows.length === 0) return;
  throw new DatabaseStateError(
    'SCHEMA_DISTRIBUTED',
    `Citus has ${rows.map(({ name }) => name).join(', ')} in its metadata, and the tables of mpp-controller ` +
      `have to be plain ones: run ${rows.map(({ call }) => call).join('; ')}; then migrate again. ` +
      'Where Citus refuses that because of an identity column, remove all objects and migrate again ' +
      '(see docs/uninstall.md)',
  );
}

/** By schema, because a table of another one may have the name. pg_dist_schema is there from Citus 12 on. */
const CATALOGS = `
  SELECT to_regclass('pg_catalog.pg_dist_partition') IS NOT NULL AS tables,
         to_regclass('pg_catalog.pg_dist_schema') IS NOT NULL AS schemas`;

const TENANTS = `
  SELECT n.nspname AS schema,
         format('SELECT citus_schema_undistribute(%L)', format('%I', n.nspname)) AS call
  FROM pg_catalog.pg_dist_schema AS s
  JOIN pg_namespace AS n ON n.oid = s.schemaid
  WHERE n.nspname = ANY ($1::text[])`;

const MANAGED = `
  SELECT format('%I.%I', n.nspname, c.relname) AS name,
         format('SELECT undistribute_table(%L)', format('%I.%I', n.nspname, c.relname)) AS call
  FROM pg_catalog.pg_dist_partition AS p
  JOIN pg_class AS c ON c.oid = p.logicalrelid
  JOIN pg_namespace AS n ON n.oid = c.relnamespace
  WHERE n.nspname = ANY ($1::text[])
    AND (c.relname ~ '^mpp_' OR n.nspname ~ '^mpp_migrations_')
  ORDER BY name`;
