import pg from 'pg';
import { waitFor, type Server } from '../servers/index.js';

/** A statement that was sent and is not answered yet. */
export interface Sent {
  readonly answer: Promise<pg.QueryResult<Record<string, unknown>>>;
}

/** A client of the cluster, one statement at a time, so that a test says who does what after whom. */
export class Actor {
  readonly server: Server;
  readonly pid: number;
  readonly #session: pg.Client;
  readonly #observer: pg.Client;
  #lost = false;

  private constructor(server: Server, pid: number, session: pg.Client, observer: pg.Client) {
    this.server = server;
    this.pid = pid;
    this.#session = session;
    this.#observer = observer;
    const lose = (): void => void (this.#lost = true);
    session.on('error', lose);
    session.on('end', lose);
  }

  /** @param application its application_name, which is none of the controllers'. */
  static async connect(server: Server, application = 'shop', user = 'postgres'): Promise<Actor> {
    const observer = await server.connect('observer');
    const session = new pg.Client({
      ...server.connection,
      user,
      application_name: application,
    });
    await session.connect();
    const { rows } = await session.query<{ pid: number }>('SELECT pg_backend_pid() AS pid');
    return new Actor(server, rows[0]?.pid ?? 0, session, observer);
  }

  /** True once its session was ended by somebody. */
  get isLost(): boolean {
    return this.#lost;
  }

  async query(
    text: string,
    values: readonly unknown[] = [],
  ): Promise<pg.QueryResult<Record<string, unknown>>> {
    return this.#session.query(text, [...values]);
  }

  /** Opens a transaction and runs a statement in it. */
  async begin(text: string, values: readonly unknown[] = []): Promise<void> {
    await this.query('BEGIN');
    await this.query(text, values);
  }

  /** Sends a statement and does not wait for its answer. */
  send(text: string, values: readonly unknown[] = []): Sent {
    const answer = this.query(text, values);
    answer.catch(() => undefined);
    return { answer };
  }

  /** Sends a statement, and returns once it waits for a session of the controllers. */
  async sendAndWait(text: string, values: readonly unknown[] = []): Promise<Sent> {
    const sent = this.send(text, values);
    await Promise.race([
      this.waitsForHold(),
      sent.answer.then(() => {
        throw new Error(`${text} did not wait for a hold`);
      }),
    ]);
    return sent;
  }

  /** Returns once it waits for a session of the controllers. */
  async waitsForHold(): Promise<void> {
    await waitFor('a client to wait for a hold', async () => {
      const { rowCount } = await this.#observer.query(WAITS_FOR_HOLD, [this.pid]);
      return rowCount !== 0;
    });
  }

  /** Returns once a session of the controllers waits for this one. */
  async isInTheWay(): Promise<void> {
    await waitFor('a hold to wait for this client', async () => {
      const { rowCount } = await this.#observer.query(HOLD_WAITS_FOR, [this.pid]);
      return rowCount !== 0;
    });
  }

  /** Returns once its session was ended by somebody. */
  async waitUntilLost(): Promise<void> {
    await waitFor('the session of a client to be ended', () => Promise.resolve(this.#lost));
  }

  /** Idempotent. */
  async end(): Promise<void> {
    await Promise.all(
      [this.#session, this.#observer].map((session) => session.end().catch(() => undefined)),
    );
  }
}

const WAITS_FOR_HOLD = `
  SELECT
  FROM pg_stat_activity AS a
  WHERE a.application_name ~ '^mpp-controller (group|shared locks|pause)'
    AND a.pid = ANY (pg_blocking_pids($1::integer))`;

const HOLD_WAITS_FOR = `
  SELECT
  FROM pg_stat_activity AS a
  WHERE a.application_name ~ '^mpp-controller (group|shared locks|pause)'
    AND $1::integer = ANY (pg_blocking_pids(a.pid))`;
