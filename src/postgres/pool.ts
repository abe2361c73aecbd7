import { setMaxListeners } from 'node:events';
import pg from 'pg';
import { DatabaseStateError, PoolBusyError } from '../errors.js';
import { within } from '../wait.js';
import type { Queryable } from './queries.js';
import { isLoginRefused } from './sqlstate.js';
import { CLOSE_MS, Sockets, sessionConfig, setUp, type Connection } from './session.js';
import { checkIdentity, type ServerIdentity } from './identity.js';

export interface PoolOptions {
  /** Of mpp-controller's objects; see SetUp. */
  readonly schema: string;
  /** What the sessions are for, in application_name. */
  readonly purpose: string;
  readonly max: number;
  /** So many are not closed when they have not been used for a minute; none by default. */
  readonly min?: number;
  /** How long a caller waits while all sessions are in use, in milliseconds; see PoolBusyError. */
  readonly busyMs?: number;
  /** Ends a statement that takes longer, in milliseconds, on the server and here. */
  readonly statementTimeoutMs?: number;
  /** How long a statement may wait for a lock, in milliseconds; as long as it may take by default. */
  readonly lockTimeoutMs?: number;
  /** How much later than the server it is ended here, for a server that has fallen silent; 5 s by default. */
  readonly silenceMs?: number;
  /** The server that every session must be with, if it matters. */
  readonly identity?: ServerIdentity;
  /** Called when another server answered, or the same one as a standby. */
  readonly onOtherServer?: () => void;
  /** Called with the error of an idle session that breaks. */
  readonly onIdleError: (error: Error) => void;
  /** Shared by all sessions that log in with the same credentials. */
  readonly gate?: LoginGate;
  /** Aborted when the server does not answer: all sessions are closed at once, those in use as well. */
  readonly severed?: AbortSignal;
}

/** Sessions whose statements name the schema as `@mpp.` and find nothing but PostgreSQL's own without one. */
export function createPool(connection: Connection, options: PoolOptions): pg.Pool {
  return new BoundedPool(connection, options);
}

/** A pool that never waits without bound: not for a session, and not for a peer at the end. */
class BoundedPool extends pg.Pool {
  readonly #pool: PoolOptions;
  readonly #sockets: Sockets;
  #ended: Promise<void> | undefined;
  readonly #sever = (): void => this.#sockets.destroy();

  constructor(connection: Connection, pool: PoolOptions) {
    const timeout = pool.statementTimeoutMs;
    const config = sessionConfig(connection, pool.purpose);
    const sockets = new Sockets(config);
    super({
      ...config,
      stream: sockets.create,
      max: pool.max,
      min: pool.min ?? 0,
      idleTimeoutMillis: 60_000,
      // pg-pool waits for the promise, though its types do not say so.
      // eslint-disable-next-line @typescript-eslint/no-misused-promises
      onConnect: async (client) => {
        await setUp(client, config, {
          schema: pool.schema,
          statementMs: timeout,
          lockMs: pool.lockTimeoutMs ?? timeout,
        });
        if (pool.identity) await mustBe(client, pool.identity, pool.onOtherServer);
      },
      ...(timeout === undefined ? {} : { query_timeout: timeout + (pool.silenceMs ?? 5_000) }),
    });
    this.#pool = pool;
    this.#sockets = sockets;
    this.on('error', pool.onIdleError);
    // A killed session can emit 'error' more than once, and an unheard one ends the process.
    this.on('connect', (client) => client.on('error', () => undefined));
    if (pool.severed === undefined) return;
    // One pool a node: Node.js warns of a leak from eleven on.
    setMaxListeners(0, pool.severed);
    pool.severed.addEventListener('abort', this.#sever);
  }

  override connect(): Promise<pg.PoolClient>;
  override connect(callback: ConnectCallback): void;
  override connect(callback?: ConnectCallback): Promise<pg.PoolClient> | undefined {
    const connecting = this.#connect();
    if (callback === undefined) return connecting;
    connecting.then(
      (client) => callback(undefined, client, (error) => client.release(error)),
      (error: unknown) => callback(error as Error, undefined, () => undefined),
    );
    return undefined;
  }

  /** Resolves when no session is left: what has not closed itself in time is closed. Idempotent. */
  override end(): Promise<void>;
  override end(callback: () => void): void;
  override end(callback?: () => void): Promise<void> | undefined {
    this.#ended ??= this.#end();
    if (callback === undefined) return this.#ended;
    void this.#ended.then(callback);
    return undefined;
  }

  async #connect(): Promise<pg.PoolClient> {
    const { gate, busyMs } = this.#pool;
    // An open session needs no login.
    if (this.idleCount === 0) gate?.check();
    if (this.#pool.severed?.aborted) throw new Error('the sessions with this server were closed');
    const isBusy = this.idleCount === 0 && this.totalCount >= this.#pool.max;
    try {
      const connecting = super.connect();
      const client =
        isBusy && busyMs !== undefined ? await this.#waitFor(connecting, busyMs) : await connecting;
      gate?.succeeded();
      return client;
    } catch (error) {
      gate?.failed(error);
      throw error;
    }
  }

  async #waitFor(connecting: Promise<pg.PoolClient>, ms: number): Promise<pg.PoolClient> {
    const client = await within(ms, connecting, undefined);
    if (client !== undefined) return client;
    // It stays in the pool's queue; what comes of it goes to the next one.
    connecting.then(
      (late) => late.release(),
      () => undefined,
    );
    const { max, purpose } = this.#pool;
    throw new PoolBusyError(
      `all ${max} sessions for ${purpose} are in use; it is tried again, and MPP_MAX_SESSIONS allows more`,
    );
  }

  async #end(): Promise<void> {
    this.#pool.severed?.removeEventListener('abort', this.#sever);
    const ending = super.end().catch(() => undefined);
    await within(CLOSE_MS, ending, undefined);
    await this.#sockets.close(this.#pool.severed?.aborted ? 0 : CLOSE_MS);
  }
}

type ConnectCallback = (
  error: Error | undefined,
  client: pg.PoolClient | undefined,
  done: (release?: Error | boolean) => void,
) => void;

/**
 * Opens sessions until there are so many, for the next uses.
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

const FIRST_MS = 250;
const MOST_MS = 30_000;

/** 0.25 s, then twice as long each time, up to 30 s. */
export function loginDelay(refusals: number): number {
  return Math.min(FIRST_MS * 2 ** Math.min(Math.max(refusals, 1) - 1, 20), MOST_MS);
}

/**
 * Keeps the sessions of one controller from logging in again and again with credentials that were refused:
 * unlike a lost network, that does not get better by itself, and each attempt is a line in the server's log.
 */
export class LoginGate {
  readonly #now: () => number;
  #refusals = 0;
  #until = 0;
  #error: unknown;

  /** @param now a clock in milliseconds that never goes back */
  constructor(now: () => number = () => performance.now()) {
    this.#now = now;
  }

  /** Milliseconds until the next attempt may be made; 0 when it may be made now. */
  get waitMs(): number {
    return Math.max(0, this.#until - this.#now());
  }

  /** @throws the refusal, when it is too early for another attempt. */
  check(): void {
    if (this.waitMs > 0) throw this.#error;
  }

  succeeded(): void {
    this.#refusals = 0;
    this.#until = 0;
  }

  /** Takes note of why there is no session. Anything but a refused login changes nothing. */
  failed(error: unknown): void {
    if (!isLoginRefused(error) || this.waitMs > 0) return;
    this.#refusals += 1;
    this.#error = error;
    this.#until = this.#now() + loginDelay(this.#refusals);
  }
}

/** How many sessions one controller may have on the coordinator at once, by what they are for. */
export interface SessionBudget {
  /** In all. */
  readonly total: number;
  /** For the table of tasks. */
  readonly queue: number;
  /** One for each group that is held or worked on. */
  readonly groups: number;
  /** What several holds lock together. */
  readonly pause: number;
  /** To look at lock waits. */
  readonly watch: number;
  /** Kept open while nothing is held, so that a hold need not connect first. */
  readonly kept: { readonly groups: number; readonly pause: number; readonly watch: number };
}

/** What the server allows. */
export interface ServerConnections {
  /** max_connections. */
  readonly max: number;
  /** superuser_reserved_connections and reserved_connections. */
  readonly reserved: number;
}

/** Control, listen, the search for another coordinator, and the probe of the coordinator itself. */
const OTHERS = 4;
/** Four that a hold shares while it lasts, four while it is opened, one to read which tables and shards a group has. */
const PAUSE = 9;
const FEW = { queue: 2, watch: 1 };
const MANY = { queue: 4, watch: 4 };
/** With less than that no group can be held. */
export const LEAST_SESSIONS = OTHERS + PAUSE + FEW.queue + FEW.watch + 1;

/**
 * Divides what one controller may open: at most `most`, and at most half of what the server has for
 * ordinary sessions. Of these, at most a quarter of what the server has is kept open while nothing is held.
 * Pure.
 *
 * The sessions of the other databases of MPP_DATABASES come on top.
 */
export function divideSessions(most: number, server: ServerConnections): SessionBudget {
  const free = Math.max(server.max - server.reserved, 0);
  const total = Math.max(Math.min(most, Math.floor(free / 2)), LEAST_SESSIONS);
  const rest = total - OTHERS - PAUSE;
  const { queue, watch } = rest < 2 * (MANY.queue + MANY.watch) ? FEW : MANY;
  const spare = Math.max(0, Math.floor(free / 4) - OTHERS - queue);
  const groups = Math.min(1, spare);
  const keptWatch = Math.min(2, watch, spare - groups);
  const keptPause = Math.min(5, spare - groups - keptWatch);
  return {
    total,
    queue,
    groups: rest - queue - watch,
    pause: PAUSE,
    watch,
    kept: { groups, pause: keptPause, watch: keptWatch },
  };
}

export async function readServerConnections(db: Queryable): Promise<ServerConnections> {
  const { rows } = await db.query<ServerConnections>(CONNECTIONS);
  const [row] = rows;
  if (row === undefined) throw new Error('the statement CONNECTIONS returns one row');
  return row;
}

/** reserved_connections is there from PostgreSQL 16 on. */
const CONNECTIONS = `
  SELECT current_setting('max_connections')::integer AS max,
         current_setting('superuser_reserved_connections')::integer
           + coalesce(current_setting('reserved_connections', true)::integer, 0) AS reserved`;
