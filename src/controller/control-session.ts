import type pg from 'pg';
import type { AbstractMPP, AbstractMPPHandler } from '../mpp/abstract.js';
import { closeSession, eachServer, openOnServer, type Connection } from '../postgres/session.js';
import { readIdentity, type ServerIdentity } from '../postgres/identity.js';
import { checkMigrated, refuseNewer } from '../postgres/migrate.js';
import { refuseReadOnly } from '../postgres/connection/target.js';
import { Turn, within } from '../wait.js';
import { Leadership, type Attempt, refuseOtherSchema } from './leadership.js';

/** The SQL contract that a process works by. */
export interface Contract {
  readonly schema: string;
  /** The newest migration that it knows. */
  readonly known: number;
}

interface ControlOptions {
  readonly connection: Connection;
  readonly contract: Contract;
  readonly mpp: AbstractMPP;
  readonly heartbeatMs: number;
  /** Id of this controller. */
  readonly controller: string;
}

interface ControlParts {
  readonly client: pg.Client;
  readonly connection: Connection;
  readonly handler: AbstractMPPHandler;
  readonly identity: ServerIdentity;
  readonly leadership: Leadership;
  readonly contract: Contract;
  /** How long it may be without a statement once it may lead. */
  readonly silenceMs: number;
}

/**
 * The control session. The controller that has the leadership on it is the active one; the lock behind
 * that belongs to the session, so it is free the moment the server sees that the controller is gone.
 */
export class ControlSession {
  readonly client: pg.Client;
  /** With the one server that this session is with. */
  readonly connection: Connection;
  readonly handler: AbstractMPPHandler;
  /** Of the server that it is with. */
  readonly identity: ServerIdentity;
  readonly #contract: Contract;
  readonly #leadership: Leadership;
  readonly #silenceMs: number;
  #isBounded = false;
  readonly #ended = new AbortController();
  readonly #turn = new Turn();

  private constructor(parts: ControlParts) {
    this.client = parts.client;
    this.connection = parts.connection;
    this.handler = parts.handler;
    this.identity = parts.identity;
    this.#contract = parts.contract;
    this.#leadership = parts.leadership;
    this.#silenceMs = parts.silenceMs;
    const end = (): void => this.#ended.abort();
    this.client.on('error', end);
    this.client.on('end', end);
  }

  /**
   * @throws UnreachableError, or DatabaseStateError: `IN_RECOVERY` on a standby, `READ_ONLY` on a server that
   *   takes no writes, `SCHEMA_…` when the SQL contract is not this version's, `OTHER_SCHEMA` when the
   *   controller of another schema leads in this database, `NO_…` when Citus or a right is missing.
   */
  static async open(options: ControlOptions): Promise<ControlSession> {
    const { connection, contract, mpp, heartbeatMs, controller } = options;
    const bounds = {
      query_timeout: QUERY_TIMEOUT_MS + SILENCE_MS,
      statement_timeout: QUERY_TIMEOUT_MS,
      lock_timeout: LOCK_TIMEOUT_MS,
    };
    const { client, index } = await openOnServer(
      { ...connection, ...bounds },
      'control',
      contract.schema,
    );
    try {
      // On a standby as well: else it would not be known before the controller is needed.
      await refuseNewer(client, contract.schema, contract.known);
      const identity = await readIdentity(client);
      const handler = await mpp.inspect(client);
      await checkMigrated(client, contract.schema, contract.known);
      await refuseReadOnly(client);
      const leadership = new Leadership(client, controller);
      await refuseOtherSchema(client);
      const server = eachServer(connection)[index] ?? connection;
      return new ControlSession({
        ...{ client, connection: server, handler, identity, leadership, contract },
        silenceMs: Math.max(heartbeatMs * MISSED_HEARTBEATS, 1_000),
      });
    } catch (error) {
      await closeSession(client);
      throw error;
    }
  }

  /** Aborted when the session has ended, for any reason. */
  get ended(): AbortSignal {
    return this.#ended.signal;
  }

  /**
   * A migration may come at any time, and what an older version would write then is wrong.
   *
   * @throws DatabaseStateError `SCHEMA_…` when the SQL contract is no longer this version's.
   */
  async checkMigrated(): Promise<void> {
    await checkMigrated(this.client, this.#contract.schema, this.#contract.known);
  }

  /** Tries to lead; see Leadership. */
  async tryLead(): Promise<Attempt> {
    await this.#boundSilence();
    return this.#leadership.tryLead();
  }

  /** Leads again after another control session of the same controller was lost. */
  async regain(): Promise<Attempt> {
    await this.#boundSilence();
    return this.#leadership.regain();
  }

  /**
   * A controller that hangs must not keep the leadership. Before that its session may be silent: nodes that do
   * not answer are asked first, which can take longer than a few short heartbeats.
   */
  async #boundSilence(): Promise<void> {
    if (this.#isBounded) return;
    await this.client.query(SET_IDLE_TIMEOUT, [`${this.#silenceMs}ms`]);
    this.#isBounded = true;
  }

  /** @returns undefined while this session leads, else what has happened. */
  async lostBecause(): Promise<string | undefined> {
    return this.#leadership.lostBecause();
  }

  /** Does something on this session once it has answered all else, also what is not waited for any more. */
  async ask<T>(work: () => Promise<T>): Promise<T> {
    return this.#turn.run(work);
  }

  /** @returns false when it has not answered all that it was asked within so many milliseconds. */
  async isQuietWithin(ms: number): Promise<boolean> {
    const quiet = this.#turn.run(() => Promise.resolve(true));
    return within(ms, quiet, false);
  }

  /** Gives the leadership back, if it has it, and ends the session. Bounded, and never throws. */
  async close(): Promise<void> {
    if (!this.#ended.signal.aborted && this.#leadership.leads) {
      const resigning = this.ask(() => this.#leadership.resign()).catch(() => undefined);
      await within(RESIGN_MS, resigning, undefined);
    }
    this.#ended.abort();
    await closeSession(this.client, RESIGN_MS);
  }

  /** Ends a session that was lost, without a word to the server and without giving the leadership back. */
  discard(): void {
    this.#ended.abort();
    this.client.connection.stream.destroy();
  }
}

const QUERY_TIMEOUT_MS = 5_000;
/** How much later than the server a statement is ended here, for a server that has fallen silent. */
const SILENCE_MS = 500;
/** No statement of this session is worth waiting for a lock of another one. */
const LOCK_TIMEOUT_MS = 1_000;
const RESIGN_MS = 500;

/** After so many heartbeats without a statement the server ends the session. */
const MISSED_HEARTBEATS = 3;
const SET_IDLE_TIMEOUT = "SELECT set_config('idle_session_timeout', $1, false)";
