import type { Pool, PoolClient } from 'pg';
import { type Overview, readOverview } from '../controller/overview.js';
import { type Status, readStatus } from '../controller/status.js';
import { UnreachableError } from '../errors.js';
import type { Logger } from '../logger.js';
import { createPool } from '../postgres/pool.js';
import { errorText } from '../postgres/session.js';
import type { ObservedServer } from '../tasks/observer.js';
import { within } from '../wait.js';
import { type ClusterState, readClusterState } from './cluster-state.js';

interface ReaderOptions {
  readonly server: ObservedServer;
  readonly schema: string;
  readonly nodesQuery: string;
  readonly ttlMs: number;
  readonly sources: readonly string[];
  readonly logger: Logger;
}

/** So long one reading answers all who ask. */
const SHARED_MS = 1_000;
const STATEMENT_MS = 1_500;
const LOCK_MS = 500;
const SILENCE_MS = 500;
/** For the session and the statement together: less than a scrape may take. */
const MOST_MS = 3_000;

/** Something that is read at most once a second, however many ask; a failure is shared as well. */
export class SharedReading<T> {
  readonly #read: () => Promise<T>;
  readonly #sharedMs: number;
  #reading: Promise<T> | undefined;
  #endedAt: number | undefined;

  constructor(read: () => Promise<T>, sharedMs = SHARED_MS) {
    this.#read = read;
    this.#sharedMs = sharedMs;
  }

  async get(): Promise<T> {
    const isOver =
      this.#endedAt !== undefined && performance.now() - this.#endedAt >= this.#sharedMs;
    if (this.#reading === undefined || isOver) {
      this.#endedAt = undefined;
      this.#reading = this.#read().finally(() => (this.#endedAt = performance.now()));
    }
    return this.#reading;
  }
}

/** Reads what the routes show, on one session of its own with the server that the controller works on. */
export class ServerReader {
  readonly #options: ReaderOptions;
  readonly #pool: Pool;
  readonly #ended = new AbortController();
  readonly #state = new SharedReading(() => this.#bounded(this.#readState()));
  readonly #status = new SharedReading(() => this.#bounded(this.#withClient(readStatus)));
  readonly #overview = new SharedReading(() => this.#bounded(this.#withClient(readOverview)));
  #since: string | null = null;

  constructor(options: ReaderOptions) {
    this.#options = options;
    const { server, schema, logger } = options;
    this.#pool = createPool(server.connection, {
      ...{ schema, purpose: 'metrics', max: 1, identity: server.identity },
      ...{ statementTimeoutMs: STATEMENT_MS, lockTimeoutMs: LOCK_MS, silenceMs: SILENCE_MS },
      onIdleError: (error) => logger.debug({ err: error }, 'the session for metrics was lost'),
      severed: this.#ended.signal,
    });
  }

  /** The tasks that ended before this leadership were counted by the controller that led then, or by none. */
  beginCounting(): void {
    this.#since = null;
  }

  /** @throws when the server does not answer in time. */
  async state(): Promise<ClusterState> {
    return this.#state.get();
  }

  /** @throws when the server does not answer in time. */
  async status(): Promise<Status> {
    return this.#status.get();
  }

  /** @throws when the server does not answer in time. */
  async overview(): Promise<Overview> {
    return this.#overview.get();
  }

  /** At once: what is being read fails. */
  async stop(): Promise<void> {
    this.#ended.abort();
    await this.#pool.end();
  }

  async #readState(): Promise<ClusterState> {
    const { nodesQuery, ttlMs, sources } = this.#options;
    const state = await readClusterState(this.#pool, {
      ...{ nodesQuery, ttlMs, sources },
      since: this.#since,
    });
    this.#since = state.endedUntil;
    return state;
  }

  async #withClient<T>(read: (client: PoolClient) => Promise<T>): Promise<T> {
    const client = await this.#pool.connect();
    try {
      const value = await read(client);
      client.release();
      return value;
    } catch (error) {
      client.release(true);
      throw error;
    }
  }

  async #bounded<T extends object>(work: Promise<T>): Promise<T> {
    work.catch((error: unknown) => {
      this.#options.logger.debug({ err: error }, `nothing was read for HTTP: ${errorText(error)}`);
    });
    const read = await within(MOST_MS, work, undefined);
    if (read === undefined) {
      throw new UnreachableError(`the database has not answered within ${MOST_MS} ms`);
    }
    return read;
  }
}
