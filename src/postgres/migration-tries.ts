import { setTimeout as delay } from 'node:timers/promises';
import type pg from 'pg';
import { DatabaseStateError } from '../errors.js';
import { errorText } from './session.js';
import { sqlState } from './sqlstate.js';

/** How long one statement of a migration may wait for a lock; reports wait behind it for as long. */
const TRY_MS = 200;
/** How long reports can go on before the next try: more each time. */
const FIRST_PAUSE_MS = 200;
const LONGEST_PAUSE_MS = 2_000;

interface TriesOptions {
  readonly schema: string;
  /** The schemas whose tables a migration changes. */
  readonly schemas: readonly string[];
  readonly timeoutMs: number;
  /** Called when a try has waited for a session that none before it has waited for. */
  readonly onBlocked?: ((text: string) => void) | undefined;
}

/** Runs statements and remembers why the first one failed: postgres-migrations keeps the message only. */
export class WatchedClient {
  readonly #client: pg.ClientBase;
  #state: string | undefined;

  constructor(client: pg.ClientBase) {
    this.#client = client;
  }

  /** The SQLSTATE of the first statement that failed. */
  get state(): string | undefined {
    return this.#state;
  }

  readonly query = async (...args: unknown[]): Promise<unknown> => {
    const query = this.#client.query.bind(this.#client) as (...all: unknown[]) => Promise<unknown>;
    try {
      return await query(...args);
    } catch (error) {
      this.#state ??= sqlState(error);
      throw error;
    }
  };
}

/**
 * Runs work that takes strong locks, such as ALTER TABLE, beside sessions that use the tables. While such
 * a statement waits, all others queue behind it. So it waits for a short time only, is rolled back, and
 * is tried again after a pause, until `timeoutMs` have passed.
 *
 * @param work leaves no transaction open when it fails, and goes on from where it was when it is run again.
 * @throws DatabaseStateError `MIGRATION_BLOCKED`, which names the sessions that have the locks; what
 *   `work` throws for another reason.
 */
export async function inShortTries<T>(
  client: pg.ClientBase,
  { schema, schemas, timeoutMs, onBlocked }: TriesOptions,
  work: (watched: WatchedClient) => Promise<T>,
): Promise<T> {
  const until = performance.now() + timeoutMs;
  const announced = new Set<string>();
  for (let pauseMs = FIRST_PAUSE_MS; ; pauseMs = Math.min(pauseMs * 2, LONGEST_PAUSE_MS)) {
    const tryMs = Math.ceil(Math.max(1, Math.min(TRY_MS, until - performance.now())));
    const began = await client.query<{ at: number }>(BEGIN_TRY, [`${tryMs}ms`]);
    const watched = new WatchedClient(client);
    try {
      return await work(watched);
    } catch (error) {
      if (!GIVES_WAY.has(sqlState(error) ?? watched.state ?? '')) throw error;
      const blockers = await blockersSince(client, schemas, began.rows[0]?.at ?? 0);
      const leftMs = until - performance.now();
      if (leftMs <= 0) throw blocked(schema, timeoutMs, blockers, error);
      const names = blockers.map(({ pid, gid }) => String(pid ?? gid));
      if (names.some((name) => !announced.has(name))) onBlocked?.(waitingText(blockers, leftMs));
      for (const name of names) announced.add(name);
      await delay(Math.min(pauseMs, leftMs));
    }
  }
}

const BEGIN_TRY = `
  SELECT set_config('lock_timeout', $1, false), extract(epoch FROM clock_timestamp())::float8 AS at`;

/** lock_not_available, and deadlock_detected. */
const GIVES_WAY = new Set(['55P03', '40P01']);

function waitingText(blockers: readonly Blocker[], leftMs: number): string {
  return `waiting for ${blockersText(blockers)}; trying again for ${Math.ceil(leftMs / 1000)} s`;
}

function blocked(
  schema: string,
  timeoutMs: number,
  blockers: readonly Blocker[],
  error: unknown,
): DatabaseStateError {
  const who = blockersText(blockers) || 'sessions that have no lock on its tables now';
  return new DatabaseStateError(
    'MIGRATION_BLOCKED',
    `the migration of schema ${schema} could not lock what it changes within ${timeoutMs} ms, ` +
      `because of ${who}; have their transactions ended (SELECT pg_terminate_backend(pid), ` +
      'ROLLBACK PREPARED), or raise MPP_MIGRATE_TIMEOUT, and run migrate again, ' +
      `it goes on from there: ${errorText(error)}`,
    { retryable: true },
  );
}

/** Blocking sessions that a message names. */
const MOST_NAMED = 5;

interface Blocker {
  /** Null for a prepared transaction. */
  readonly pid: number | null;
  readonly gid: string | null;
  readonly role: string | null;
  readonly program: string | null;
  readonly state: string | null;
  readonly since: string | null;
  readonly relations: string;
}

/** The transactions that have locks on its tables, and began before a try did. */
async function blockersSince(
  client: pg.ClientBase,
  schemas: readonly string[],
  tryBegan: number,
): Promise<Blocker[]> {
  return (await client.query<Blocker>(BLOCKERS, [schemas, tryBegan])).rows;
}

function blockersText(blockers: readonly Blocker[]): string {
  const named = blockers.slice(0, MOST_NAMED).map(blockerText);
  const rest = blockers.length - named.length;
  return [...named, ...(rest > 0 ? [`${rest} more`] : [])].join(', ');
}

function blockerText({ pid, gid, role, program, state, since, relations }: Blocker): string {
  if (pid === null)
    return `prepared transaction ${gid ?? ''} (since ${since ?? '?'}, ${relations})`;
  const what = [role, program, state, since === null ? null : `since ${since}`, `on ${relations}`];
  return `pid ${pid} (${what.filter(Boolean).join(', ')})`;
}

/**
 * Another role's transaction has no start for a role without pg_read_all_stats: then it may be the one.
 * A prepared transaction has no pid; the lock on its own number names it.
 */
const BLOCKERS = `
  SELECT l.pid, p.gid, coalesce(a.usename, p.owner) AS role,
         nullif(a.application_name, '') AS program, a.state,
         to_char(coalesce(a.xact_start, p.prepared), 'YYYY-MM-DD HH24:MI:SS') AS since,
         string_agg(DISTINCT c.relname, ', ') AS relations
  FROM pg_locks AS l
  JOIN pg_class AS c ON c.oid = l.relation
  JOIN pg_namespace AS n ON n.oid = c.relnamespace
  LEFT JOIN pg_stat_activity AS a ON a.pid = l.pid
  LEFT JOIN pg_locks AS x
    ON l.pid IS NULL AND x.pid IS NULL AND x.locktype = 'transactionid'
   AND x.virtualtransaction = l.virtualtransaction
  LEFT JOIN pg_prepared_xacts AS p ON p.transaction = x.transactionid
  WHERE l.locktype = 'relation' AND l.granted
    AND l.database = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
    AND l.pid IS DISTINCT FROM pg_backend_pid()
    AND n.nspname = ANY ($1::text[]) AND c.relkind IN ('r', 'v')
    AND (c.relname ~ '^mpp_' OR n.nspname ~ '^mpp_migrations_')
    AND (a.xact_start IS NULL OR a.xact_start <= to_timestamp($2::float8))
  GROUP BY l.pid, p.gid, p.owner, p.prepared, a.usename, a.application_name, a.state, a.xact_start
  ORDER BY coalesce(a.xact_start, p.prepared)`;
