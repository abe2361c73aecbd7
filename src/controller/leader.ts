import type pg from 'pg';
import type { AbstractMPP, AbstractMPPHandler } from '../mpp/abstract.js';
import { readIdentity, type ServerIdentity } from '../postgres/identity.js';
import { checkMigrated, refuseNewer } from '../postgres/migrate.js';
import { LEADER_LOCK } from '../postgres/locks.js';
import { openSession, type Connection } from '../postgres/session.js';

/** The SQL contract that a process works by. */
export interface Contract {
  readonly schema: string;
  /** The newest migration that it knows. */
  readonly known: number;
}

/**
 * The control session: whoever has the leader lock on it is the active controller. The lock belongs
 * to the session, so it is free the moment the server sees that the controller is gone.
 */
export class ControlSession {
  readonly client: pg.Client;
  readonly handler: AbstractMPPHandler;
  /** Of the server that it is with. */
  readonly identity: ServerIdentity;
  readonly #contract: Contract;
  readonly #ended = new AbortController();

  private constructor(
    client: pg.Client,
    handler: AbstractMPPHandler,
    identity: ServerIdentity,
    contract: Contract,
  ) {
    this.client = client;
    this.handler = handler;
    this.identity = identity;
    this.#contract = contract;
    const end = (): void => this.#ended.abort();
    client.on('error', end);
    client.on('end', end);
  }

  /**
   * @throws UnreachableError, or DatabaseStateError: `IN_RECOVERY` on a standby, `SCHEMA_…` when the
   *   SQL contract is not this version's, `NO_…` when Citus or a right is missing.
   */
  static async open(
    connection: Connection,
    contract: Contract,
    mpp: AbstractMPP,
    heartbeatMs: number,
  ): Promise<ControlSession> {
    const client = await openSession(
      { ...connection, query_timeout: QUERY_TIMEOUT_MS, statement_timeout: QUERY_TIMEOUT_MS },
      'control',
      contract.schema,
    );
    try {
      await client.query(SET_IDLE_TIMEOUT, [
        `${Math.max(heartbeatMs * MISSED_HEARTBEATS, 1_000)}ms`,
      ]);
      // On a standby as well: else nobody would know before the controller is needed.
      await refuseNewer(client, contract.schema, contract.known);
      const identity = await readIdentity(client);
      const handler = await mpp.inspect(client);
      await checkMigrated(client, contract.schema, contract.known);
      return new ControlSession(client, handler, identity, contract);
    } catch (error) {
      await client.end().catch(() => undefined);
      throw error;
    }
  }

  /** Aborted when the session has ended, whoever ended it. */
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

  /** @returns true when this session is now, or was already, that of the active controller. */
  async tryLead(): Promise<boolean> {
    const { rows } = await this.client.query<{ leads: boolean }>(TRY_LEAD, [LEADER_LOCK]);
    return rows[0]?.leads ?? false;
  }

  async close(): Promise<void> {
    this.#ended.abort();
    await this.client.end().catch(() => undefined);
  }
}

const QUERY_TIMEOUT_MS = 10_000;

/** A controller that hangs must not keep the lead: after so many heartbeats the server takes it. */
const MISSED_HEARTBEATS = 3;
const SET_IDLE_TIMEOUT = "SELECT set_config('idle_session_timeout', $1, false)";

const TRY_LEAD = 'SELECT pg_try_advisory_lock($1, 0) AS leads';
