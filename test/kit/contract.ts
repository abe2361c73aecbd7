import pg from 'pg';
import { expect } from 'vitest';
import { applyMigrations } from '../../src/postgres/migrate.js';
import { nameSchema } from '../../src/postgres/schema-name.js';
import { openSession } from '../../src/postgres/session.js';
import { TestBed, type Server, type Settings, type Template } from './servers/index.js';
import { installStandin } from './standin/install.js';

/** Schemas that the contract must hold in: the default, and a name that needs every quoting. */
export const SCHEMAS = [
  { schema: 'public', database: 'plain' },
  { schema: `My "Schema"; it's`, database: 'awkward' },
] as const;

/** One server without a controller, for tests of what the SQL alone guarantees. */
export class ContractServer {
  readonly server: Server;
  readonly #testBed: TestBed;
  readonly #databases: ContractDatabase[] = [];

  private constructor(testBed: TestBed, server: Server) {
    this.#testBed = testBed;
    this.server = server;
  }

  static async start(template: Template, settings: Settings = {}): Promise<ContractServer> {
    const testBed = await TestBed.open({ template });
    try {
      const server = await testBed.createServer('contract', settings);
      await server.start();
      return new ContractServer(testBed, server);
    } catch (error) {
      await testBed.close();
      throw error;
    }
  }

  /** Makes a database, empty but for Citus where there is one. */
  async createDatabase(name: string): Promise<void> {
    await this.server.withSession((session) =>
      session.query(`CREATE DATABASE ${session.escapeIdentifier(name)} STRATEGY file_copy`),
    );
    if (!this.server.binaries.hasCitus) return;
    const session = await this.server.connect('test', name);
    await session.query('CREATE EXTENSION citus').finally(() => session.end());
  }

  /** Makes a database with our objects in `schema`. */
  async database(name: string, schema = 'public'): Promise<ContractDatabase> {
    await this.createDatabase(name);
    const session = await this.server.connect('test', name);
    try {
      await applyMigrations(session, { schema, lockTimeoutMs: 10_000 });
    } finally {
      await session.end();
    }
    const database = await ContractDatabase.open(this.server, name, schema);
    this.#databases.push(database);
    return database;
  }

  /** The same with a catalog of Citus, which the commands ask for. */
  async citusDatabase(name: string): Promise<ContractDatabase> {
    const database = await this.database(name);
    if (!this.server.binaries.hasCitus) await installStandin(database.db);
    return database;
  }

  async stop(): Promise<void> {
    await Promise.all(this.#databases.map((database) => database.close()));
    await this.#testBed.close();
  }
}

/** Who a session logs in as; its search_path is our schema unless told otherwise. */
export interface SessionOptions {
  readonly user?: string;
  readonly searchPath?: string;
}

/** One database with the contract in it, and the sessions of its tests. */
export class ContractDatabase {
  readonly schema: string;
  /** A superuser's session. */
  readonly db: pg.Client;
  readonly #server: Server;
  readonly #database: string;
  readonly #sessions: pg.Client[];

  private constructor(server: Server, database: string, schema: string, db: pg.Client) {
    this.#server = server;
    this.#database = database;
    this.schema = schema;
    this.db = db;
    this.#sessions = [db];
  }

  static async open(server: Server, database: string, schema: string): Promise<ContractDatabase> {
    const db = await server.connect('test', database);
    const opened = new ContractDatabase(server, database, schema, db);
    await nameSchema(db, schema).query(`SET search_path = ${opened.quotedSchema}`);
    return opened;
  }

  get quotedSchema(): string {
    return pg.escapeIdentifier(this.schema);
  }

  /** Opens a further session; it is closed with the database. */
  async session({ user, searchPath }: SessionOptions = {}): Promise<pg.Client> {
    const { connection } = this.#server;
    const session = await openSession(
      { ...connection, database: this.#database, ...(user === undefined ? {} : { user }) },
      'test',
    );
    this.#sessions.push(session);
    nameSchema(session, this.schema);
    await session.query(`SET search_path = ${searchPath ?? this.quotedSchema}`);
    return session;
  }

  /** Reports with a plain INSERT; what is left out takes its default. @returns the task's id. */
  async report(values: TaskValues, session = this.db): Promise<string> {
    const { text, parameters } = insertStatement(values);
    const { rows } = await session.query<{ id: string }>(`${text} RETURNING id`, parameters);
    return rows[0]?.id ?? '';
  }

  /** Has a session lock a group as a controller that works on it does, until its transaction ends. */
  async lockGroup(groupid: number, session: pg.Client): Promise<void> {
    await this.db.query('INSERT INTO mpp_groups VALUES ($1) ON CONFLICT DO NOTHING', [groupid]);
    await session.query('BEGIN');
    await session.query('SELECT FROM mpp_groups WHERE groupid = $1 FOR UPDATE', [groupid]);
  }

  async status(id: string): Promise<{ status: string; reason: string | null }> {
    const { rows } = await this.db.query<{ status: string; reason: string | null }>(
      'SELECT status, reason FROM mpp_tasks WHERE id = $1',
      [id],
    );
    const [row] = rows;
    if (row === undefined) throw new Error(`there is no task ${id}`);
    return row;
  }

  /** Forgets all tasks and their log. */
  async clear(): Promise<void> {
    await this.db.query('DELETE FROM mpp_tasks');
    await this.db.query('DELETE FROM mpp_task_log');
    await this.db.query('DELETE FROM mpp_controllers');
  }

  async close(): Promise<void> {
    await Promise.all(this.#sessions.map((session) => session.end().catch(() => undefined)));
  }
}

/** Columns of mpp_tasks and their values, as a client gives them. */
export type TaskValues = Readonly<Record<string, unknown>>;

/** A report that is fine but for what a test changes. */
export const FINE: TaskValues = { event: 'before_demote', groupid: 1, nodename: 'worker-1' };

export interface Statement {
  readonly text: string;
  readonly parameters: unknown[];
}

/** The plain INSERT. */
export function insertStatement(values: TaskValues): Statement {
  const columns = Object.keys(values);
  const places = columns.map((_, index) => `$${index + 1}`);
  return {
    text: `INSERT INTO mpp_tasks (${columns.join(', ')}) VALUES (${places.join(', ')})`,
    parameters: Object.values(values),
  };
}

/** A call by named arguments, such as `SELECT mpp_submit(event => $1)`. */
export function callStatement(start: string, values: TaskValues, rest = ''): Statement {
  const named = Object.keys(values).map((name, index) => `${name} => $${index + 1}`);
  return {
    text: `${start}(${named.join(', ')}${rest})`,
    parameters: Object.values(values),
  };
}

/** Runs a statement that must be refused. @returns PostgreSQL's error. */
export async function refusal(
  session: pg.Client,
  { text, parameters }: Statement,
): Promise<pg.DatabaseError> {
  const error: unknown = await session.query(text, parameters).then(
    () => undefined,
    (refused: unknown) => refused,
  );
  expect(error, `${text} must be refused`).toBeInstanceOf(pg.DatabaseError);
  return error as pg.DatabaseError;
}

/** The SQLSTATE that a statement is refused with. */
export async function sqlstateOf(
  session: pg.Client,
  text: string,
  parameters: unknown[] = [],
): Promise<string | undefined> {
  return (await refusal(session, { text, parameters })).code;
}
