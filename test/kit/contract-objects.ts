import type { Client } from 'pg';

/** Everything that a migration makes in some schemas, in words that two databases can be compared by. */
export async function contractObjects(db: Client, schemas: readonly string[]): Promise<string[]> {
  const { rows } = await db.query<{ line: string }>(OBJECTS, [schemas]);
  return rows.map(({ line }) => line);
}

/**
 * Our own objects alone: an application may have some in the same schema. A shell table or trigger that
 * Citus adds shows as well.
 */
const OBJECTS = `
  WITH ours AS (
    SELECT n.nspname || '.' || c.relname AS name, c.*
    FROM pg_class AS c
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname = ANY ($1::text[]) AND (c.relname ~ '^mpp_' OR n.nspname ~ '^mpp_migrations_')
  )
  SELECT format('schema %s, owner %s, %s', n.nspname, n.nspowner::regrole, n.nspacl) AS line
  FROM pg_namespace AS n WHERE n.nspname = ANY ($1::text[]) AND n.nspname <> 'public'
  UNION ALL
  SELECT format('%s %s of %s, %s, tablespace %s, %s, %s, %s, %s', o.relkind, o.name, o.relowner::regrole,
                (SELECT a.amname FROM pg_am AS a WHERE a.oid = o.relam), o.reltablespace, o.relpersistence,
                o.reloptions, o.relacl, obj_description(o.oid, 'pg_class'))
  FROM ours AS o
  UNION ALL
  SELECT format('column %s.%s %s, %s, %s, %s, %s, %s', o.name, a.attname, format_type(a.atttypid, a.atttypmod),
                a.attnotnull, a.attidentity, a.attacl, pg_get_expr(d.adbin, d.adrelid),
                col_description(o.oid, a.attnum))
  FROM ours AS o
  JOIN pg_attribute AS a ON a.attrelid = o.oid AND a.attnum > 0
  LEFT JOIN pg_attrdef AS d ON d.adrelid = o.oid AND d.adnum = a.attnum
  WHERE o.relkind IN ('r', 'v')
  UNION ALL
  SELECT format('view %s: %s', o.name, pg_get_viewdef(o.oid)) FROM ours AS o WHERE o.relkind = 'v'
  UNION ALL
  SELECT format('index %s: %s', o.name, pg_get_indexdef(o.oid)) FROM ours AS o WHERE o.relkind = 'i'
  UNION ALL
  SELECT format('constraint %s of %s: %s', c.conname, o.name, pg_get_constraintdef(c.oid))
  FROM ours AS o JOIN pg_constraint AS c ON c.conrelid = o.oid
  UNION ALL
  SELECT format('trigger %s: %s, %s', o.name, pg_get_triggerdef(t.oid), t.tgenabled)
  FROM ours AS o JOIN pg_trigger AS t ON t.tgrelid = o.oid
  WHERE NOT t.tgisinternal
  UNION ALL
  SELECT format('function %s of %s, %s: %s', p.oid::regprocedure, p.proowner::regrole, p.proacl, pg_get_functiondef(p.oid))
  FROM pg_proc AS p
  WHERE p.pronamespace = ANY (SELECT n.oid FROM pg_namespace AS n WHERE n.nspname = ANY ($1::text[]))
    AND p.proname ~ '^mpp_'
  UNION ALL
  SELECT format('member %s of %s', m.member::regrole, m.roleid::regrole)
  FROM pg_auth_members AS m
  WHERE m.roleid::regrole::text ~ '^mpp_'
  ORDER BY line`;
