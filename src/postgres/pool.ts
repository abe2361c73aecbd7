import pg from 'pg';
import { DatabaseStateError } from '../errors.js';
import { checkIdentity, type ServerIdentity } from './identity.js';
import { sessionConfig, setUp, type Connection } from './session.js';

export interface PoolOptions {
  /** Of our objects; see SetUp. */
  readonly schema: string;
  /** What the sessions are for, in application_name. */
  readonly purpose: string;
  readonly max: number;
  /** So many are not closed when nobody has used them for a minute; none by default. */
  readonly min?: number;
  /** Ends a statement that takes longer, in milliseconds, on the server and here. */
  readonly statementTimeoutMs?: number;
  /** How long a statement may wait for a lock, in milliseconds; as long as it may take by default. */
  readonly lockTimeoutMs?: number;
  /** How much later than the server we end it, for a server that has fallen silent; 5 s by default. */
  readonly silenceMs?: number;
  /** The server that every session must be with, if it matters. */
  readonly identity?: ServerIdentity;
  /** Called when another server answered, or the same one as a standby. */
  readonly onOtherServer?: () => void;
  /** Told of sessions that break while nobody uses them. */
  readonly onIdleError: (error: Error) => void;
}

/** Sessions whose statements name our schema as `@mpp.` and find nothing but PostgreSQL's own without one. */
export function createPool(connection: Connection, options: PoolOptions): pg.Pool {
  const timeout = options.statementTimeoutMs;
  const config = sessionConfig(connection, options.purpose);
  const pool = new pg.Pool({
    ...config,
    max: options.max,
    min: options.min ?? 0,
    idleTimeoutMillis: 60_000,
    // pg-pool waits for the promise, though its types do not say so.
    // eslint-disable-next-line @typescript-eslint/no-misused-promises
    onConnect: async (client) => {
      await setUp(client, config, {
        schema: options.schema,
        statementMs: timeout,
        lockMs: options.lockTimeoutMs ?? timeout,
      });
      if (options.identity) await mustBe(client, options.identity, options.onOtherServer);
    },
    ...(timeout === undefined ? {} : { query_timeout: timeout + (options.silenceMs ?? 5_000) }),
  });
  pool.on('error', options.onIdleError);
  // A killed session can emit 'error' more than once, and an unheard one ends the process.
  pool.on('connect', (client) => client.on('error', () => undefined));
  return pool;
}

/**
 * Opens sessions until there are so many, for whoever needs them next.
 *
 * @param tryOut run on each: what it reads and plans is known to the session from then on
 * @throws when one could not be had
 */
export async function fill(
  pool: pg.Pool,
  count: number,
  tryOut: (client: pg.PoolClient) => Promise<unknown>,
): Promise<void> {
  if (pool.totalCount >= count) return;
  const opening = Array.from({ length: count }, async () => {
    const client = await pool.connect();
    // One that fails here is not kept.
    return tryOut(client).then(
      () => client,
      (error: unknown) => {
        client.release(true);
        throw error;
      },
    );
  });
  const opened = await Promise.allSettled(opening);
  // Not before all are there: one that is given back is what the next one gets.
  for (const one of opened) if (one.status === 'fulfilled') one.value.release();
  for (const one of opened) if (one.status === 'rejected') throw one.reason;
}

async function mustBe(
  client: pg.ClientBase,
  identity: ServerIdentity,
  onOtherServer: (() => void) | undefined,
): Promise<void> {
  try {
    await checkIdentity(client, identity);
  } catch (error) {
    if (error instanceof DatabaseStateError) onOtherServer?.();
    throw error;
  }
}
