import { createHash } from 'node:crypto';
import pg from 'pg';

/** How the statements of this package name their schema. */
const PLACEHOLDER = '@mpp.';

/**
 * Has a session replace `@mpp.` in each statement by the schema that holds mpp-controller's objects.
 *
 * That schema is not on the search_path of the controller's sessions: a role that may create objects there could
 * make a function whose argument types fit a call better than those of PostgreSQL's own, and the
 * controller would run it with its rights.
 *
 * @returns the session itself
 */
export function nameSchema<T extends pg.ClientBase>(session: T, schema: string): T {
  const prefix = `${pg.escapeIdentifier(schema)}.`;
  const qualify = (text: string): string => text.replaceAll(PLACEHOLDER, prefix);
  const query = session.query.bind(session) as (...args: unknown[]) => unknown;
  const replacing = (first: unknown, ...rest: unknown[]): unknown => {
    if (typeof first === 'string') return query(qualify(first), ...rest);
    if (isStatement(first)) return query({ ...first, text: qualify(first.text) }, ...rest);
    return query(first, ...rest);
  };
  session.query = replacing as T['query'];
  return session;
}

/** A plain object with a text; not one of node-postgres's own query objects, which must stay as they are. */
function isStatement(value: unknown): value is { text: string } {
  return (
    typeof value === 'object' &&
    value !== null &&
    'text' in value &&
    typeof value.text === 'string' &&
    !('submit' in value)
  );
}

/**
 * Where postgres-migrations keeps its table `migrations`. Not in the schema of the objects: that may be
 * `public`, where an application that uses the same library has a table of that name.
 */
export function bookkeepingSchema(schema: string): string {
  const name = `mpp_migrations_${schema}`;
  if (Buffer.byteLength(name) <= MAX_NAME_BYTES) return name;
  // PostgreSQL would cut it, and two schemas could come to share one.
  return `mpp_migrations_${createHash('sha256').update(schema).digest('hex').slice(0, 32)}`;
}

/** NAMEDATALEN - 1. */
const MAX_NAME_BYTES = 63;
