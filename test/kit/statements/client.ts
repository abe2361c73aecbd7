import pg from 'pg';
import { errorText } from '../../../src/postgres/session.js';
import type { Server } from '../servers/index.js';

/** How a statement, or a row of them, has ended. */
export type Answer =
  | { readonly failed: false }
  | { readonly failed: true; readonly code: string; readonly message: string };

/** A client that sends statements and is looked at from outside. */
export class StatementClient {
  readonly server: Server;
  readonly pid: number;
  /** Names its work on other nodes. */
  readonly globalPid: string;
  readonly #session: pg.Client;
  #answer: Answer | undefined;
  #lost: Answer | undefined;

  private constructor(server: Server, session: pg.Client, pid: number, globalPid: string) {
    this.server = server;
    this.pid = pid;
    this.globalPid = globalPid;
    this.#session = session;
    // The first says why: the server's message comes before the end of the connection.
    session.on('error', (error) => (this.#lost ??= failure(error)));
  }

  /** @param application its application_name, which is none of the controllers'. */
  static async connect(server: Server, application = 'shop'): Promise<StatementClient> {
    const session = new pg.Client({ ...server.connection, application_name: application });
    await session.connect();
    const { rows } = await session.query<{ pid: number; gpid: string }>(WHO);
    return new StatementClient(server, session, rows[0]?.pid ?? 0, rows[0]?.gpid ?? '');
  }

  /** Of the last statements that were sent; undefined while they run. */
  get answer(): Answer | undefined {
    return this.#answer;
  }

  /** How its session was ended from outside, while no statement ran; undefined while it was not. */
  get lost(): Answer | undefined {
    return this.#lost;
  }

  /** Runs statements one after the other. @throws Error of the first that fails */
  async run(statements: readonly string[]): Promise<void> {
    for (const text of statements) await this.#session.query(text);
  }

  /** Sends statements one after the other, and does not wait for their end. */
  send(statements: readonly string[]): void {
    this.#answer = undefined;
    this.run(statements).then(
      () => (this.#answer = { failed: false }),
      (error: unknown) => (this.#answer = failure(error)),
    );
  }

  /** True while its statement waits, on any of the servers, for a session that `pattern` names. */
  async waitsFor(servers: readonly Server[], pattern: string): Promise<boolean> {
    return isFound(servers, WAITS_FOR, (server) => {
      const pid = server === this.server ? this.pid : null;
      return [pid, this.globalPid, pattern];
    });
  }

  /** True while its statement sleeps on another of these servers. */
  async sleeps(servers: readonly Server[]): Promise<boolean> {
    const others = servers.filter((server) => server !== this.server);
    return isFound(others, SLEEPS, () => [this.globalPid]);
  }

  async end(): Promise<void> {
    await this.#session.end().catch(() => undefined);
  }
}

/** True when one of the servers that run has a row for this query. */
async function isFound(
  servers: readonly Server[],
  text: string,
  valuesFor: (server: Server) => unknown[],
): Promise<boolean> {
  for (const server of servers.filter(({ isRunning }) => isRunning)) {
    const { rowCount } = await server.withSession((db) => db.query(text, valuesFor(server)));
    if (rowCount !== 0) return true;
  }
  return false;
}

function failure(error: unknown): Answer {
  const code = error instanceof pg.DatabaseError ? error.code : undefined;
  // What node-postgres says once the server has closed the connection.
  return { failed: true, code: code ?? '08006', message: errorText(error) };
}

const WHO = 'SELECT pg_backend_pid() AS pid, citus_backend_gpid()::text AS gpid';

const SLEEPS = `
  SELECT
  FROM pg_stat_activity AS a
  WHERE a.application_name ~ ('^citus_[a-z_]+ gpid=' || $1 || '$') AND a.wait_event = 'PgSleep'`;

/** Its sessions on this server, and the sessions that they wait for, directly or through others. */
const WAITS_FOR = `
  WITH RECURSIVE waited_for (pid) AS (
    SELECT unnest(pg_blocking_pids(a.pid))
    FROM pg_stat_activity AS a
    WHERE a.pid = $1::integer OR a.application_name ~ ('^citus_[a-z_]+ gpid=' || $2 || '$')
    UNION
    SELECT unnest(pg_blocking_pids(w.pid)) FROM waited_for AS w
  )
  SELECT FROM waited_for JOIN pg_stat_activity AS a USING (pid)
  WHERE a.application_name ~ $3`;
