import type pg from 'pg';
import { DatabaseStateError } from '../errors.js';
import { bookkeepingSchema } from './schema-name.js';

/**
 * Refuses a schema in which another role has objects that a migration could take for PostgreSQL's own or for
 * this project's: a function or operator named like one of pg_catalog, or anything named mpp_. The migrating
 * role would run them with its rights. Trusted are superusers, this role, and the owners of the database,
 * of the schema and of the table in which the applied migrations are written down.
 *
 * @throws DatabaseStateError `SCHEMA_FOREIGN`
 */
export async function refuseForeignObjects(client: pg.ClientBase, schema: string): Promise<void> {
  const { rows } = await client.query<{ object: string; owner: string }>(FOREIGN, [
    schema,
    bookkeepingSchema(schema),
  ]);
  const [first] = rows;
  if (first === undefined) return;
  const more = rows.length > 1 ? ` and ${rows.length - 1} more` : '';
  throw new DatabaseStateError(
    'SCHEMA_FOREIGN',
    `role ${first.owner} has made ${first.object}${more} in schema ${schema}, and a migration would run it with ` +
      'the rights of this role; drop it, or set MPP_SCHEMA to a schema in which no other role may create objects',
  );
}

const FOREIGN = `
  WITH trusted AS MATERIALIZED (
    SELECT r.oid FROM pg_catalog.pg_roles AS r WHERE r.rolsuper OR r.rolname = current_user
    UNION ALL
    SELECT d.datdba FROM pg_catalog.pg_database AS d WHERE d.datname = pg_catalog.current_database()
    UNION ALL
    SELECT n.nspowner FROM pg_catalog.pg_namespace AS n WHERE n.nspname = $1
    UNION ALL
    SELECT c.relowner
    FROM pg_catalog.pg_class AS c
    JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname = $2 AND c.relname = 'migrations'
  ), found AS (
    SELECT 'the function ' || p.oid::pg_catalog.regprocedure::text AS object, p.proowner AS owner
    FROM pg_catalog.pg_proc AS p
    JOIN pg_catalog.pg_namespace AS n ON n.oid = p.pronamespace
    WHERE n.nspname = $1
      AND (p.proname ~ '^mpp_' OR EXISTS (
        SELECT
        FROM pg_catalog.pg_proc AS b
        WHERE b.proname = p.proname AND b.pronamespace = 'pg_catalog'::pg_catalog.regnamespace))
    UNION ALL
    SELECT 'the operator ' || o.oid::pg_catalog.regoperator::text, o.oprowner
    FROM pg_catalog.pg_operator AS o
    JOIN pg_catalog.pg_namespace AS n ON n.oid = o.oprnamespace
    WHERE n.nspname = $1
      AND EXISTS (
        SELECT
        FROM pg_catalog.pg_operator AS b
        WHERE b.oprname = o.oprname AND b.oprnamespace = 'pg_catalog'::pg_catalog.regnamespace)
    UNION ALL
    SELECT 'the relation ' || c.relname, c.relowner
    FROM pg_catalog.pg_class AS c
    JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname = $1 AND c.relname ~ '^mpp_' AND c.relkind IN ('r', 'v', 'm', 'f', 'p', 'S')
  )
  SELECT f.object, r.rolname AS owner
  FROM found AS f
  JOIN pg_catalog.pg_roles AS r ON r.oid = f.owner
  WHERE f.owner NOT IN (SELECT t.oid FROM trusted AS t)
  ORDER BY f.object`;

/**
 * Refuses to call what another role may have made where mpp-controller's objects ought to be.
 *
 * @throws DatabaseStateError `SCHEMA_MISSING` where no migration was applied, or by another role than the
 *   owner of the control table.
 */
export async function requireContract(client: pg.ClientBase, schema: string): Promise<void> {
  const { rows } = await client.query<{ owned: boolean }>(OWNED, [
    schema,
    bookkeepingSchema(schema),
  ]);
  if (rows[0]?.owned === true) return;
  throw new DatabaseStateError(
    'SCHEMA_MISSING',
    `schema ${schema} of this database has no control table of mpp-controller: is MPP_SCHEMA right, and has ` +
      'mpp-controller migrate been run in this database?',
  );
}

const OWNED = `
  SELECT EXISTS (
    SELECT
    FROM pg_catalog.pg_class AS tasks
    JOIN pg_catalog.pg_namespace AS s ON s.oid = tasks.relnamespace AND s.nspname = $1
    JOIN pg_catalog.pg_namespace AS b ON b.nspname = $2
    JOIN pg_catalog.pg_class AS applied ON applied.relnamespace = b.oid AND applied.relname = 'migrations'
    JOIN pg_catalog.pg_roles AS r ON r.oid = tasks.relowner
    WHERE tasks.relname = 'mpp_tasks' AND tasks.relkind = 'r'
      AND (tasks.relowner = applied.relowner OR r.rolsuper)) AS owned`;
